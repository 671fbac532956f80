import inspect
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lit_nlp import __main__ as command
from tests import language_models

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
TASKS = [path for path in CONFIGS if path.parent.name == "configs"]
OVERLAYS = [path for path in CONFIGS if path.parent.name == "trainer"]


def test_every_config_is_found() -> None:
    assert len(TASKS) == 8
    assert len(OVERLAYS) == 5
    assert len(CONFIGS) == 13


def first_command(path: Path) -> list[str]:
    comment, *arguments = shlex.split(path.read_text().splitlines()[0])
    assert comment == "#"
    return arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_begins_with_the_command_that_runs_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = first_command(path)
    assert program == "lit-nlp"
    assert str(path.relative_to(ROOT)) in arguments
    with pytest.raises(SystemExit) as ended:
        command.main([*arguments, "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    own = yaml.safe_load(path.read_text())
    for part, given in own.items():
        # What builds an object is printed with the object's defaults.
        plain = {k: v for k, v in given.items() if not isinstance(v, dict | list)} if isinstance(given, dict) else {}
        assert {name: printed[part][name] for name in plain} == plain
        assert isinstance(given, dict) or printed[part] == given


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_runs_a_step_of_every_verb(
    path: Path, tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overlays = [
        "--config",
        str(ROOT / "configs/trainer/cpu.yaml"),
        "--config",
        str(ROOT / "configs/trainer/debug.yaml"),
    ]
    own = yaml.safe_load(path.read_text())["model"]["init_args"]["backbone"]
    backbone = own if own.startswith("scratch:") else bert
    if path.stem == "pretrain_masked":
        backbone = language_models.save("roberta", tmp_path / "backbone")
    shared = ["--config", str(path), *overlays, "--model.backbone", backbone, "--data.max_length", "64"]
    assert command.main(["fit", *shared]) == 0
    checkpoint = ["--ckpt_path", f"checkpoints/{path.stem}/last.ckpt"]
    config = ["--config", str(path), *overlays, "--data.max_length", "64", *checkpoint]
    for verb in ("validate", "test", "predict"):
        assert command.main([verb, *config]) == 0
    decides = not path.stem.startswith("pretrain")
    # What a model writes after two batches is mostly nothing.
    writes = ["--reference", "true"] if path.stem in ("translation", "generative_question_answering") else []
    explained = command.main(["explain", *config, "--limit", "2", "--method", "saliency", *writes])
    assert explained == (0 if decides else 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_line_of_a_config_repeats_a_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(path.read_text())
    defaults_of_trainer = inspect.signature(Trainer.__init__).parameters
    for argument, value in config.get("trainer", {}).items():
        assert value != defaults_of_trainer[argument].default, f"trainer.{argument}"
    for part in ("model", "data"):
        if part in config:
            module, _, name = config[part]["class_path"].rpartition(".")
            ancestors = getattr(import_module(module), name).__mro__
            for argument, value in config[part]["init_args"].items():
                defaults = [
                    inspect.signature(ancestor.__init__).parameters[argument].default
                    for ancestor in ancestors
                    if argument in inspect.signature(ancestor.__init__).parameters
                ]
                assert value != defaults[0], f"{part}.{argument}"
