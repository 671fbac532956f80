"""What is given wrongly is told in one line: the option, what was expected, what came, and what may have been meant."""

from pathlib import Path

import pytest
import yaml

from lit_nlp import __main__ as command

CLASSES = ["--model", "lit_nlp.SentimentModule", "--data", "lit_nlp.SentimentDataModule", "--model.backbone", "gone"]
ATTRIBUTION = "--trainer.callbacks+=lit_nlp.AttributionCallback"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.batch_size", "2.5"], "data.batch_size: expected int, got '2.5'; see lit-nlp fit --help"),
        (["--data.limit", "all"], "data.limit: expected int or null, got 'all'; see lit-nlp fit --help"),
        (
            ["--data.train", "{a: 1}"],
            "data.train: expected str, list or null, got \"{'a': 1}\"; see lit-nlp fit --help",
        ),
        (["--data.columns.text", "{a: b}"], "data.columns: expected str, list or null, got \"{'a': 'b'}\""),
        (["--model.learning_rate", "fast"], "model.learning_rate: expected float, got 'fast'; see lit-nlp fit --help"),
        (["--model.scheduler", "step"], "model.scheduler: expected 'linear', 'cosine' or 'constant', got 'step'"),
        (["--trainer.max_epochs", "three"], "trainer.max_epochs: expected int or null, got 'three'"),
        (["--trainer.logger", "none"], "trainer.logger: expected dot import path string, Iterable, bool or null, got"),
        (["--data.tran", "x.csv"], "data: Option 'tran' is not accepted; did you mean 'train'?\n"),
        (["--model.optimiser", "sgd"], "model: Option 'optimiser' is not accepted; see lit-nlp fit --help\n"),
        (
            [ATTRIBUTION, "--trainer.callbacks.init_args.limt=3"],
            "trainer.callbacks: Option 'limt' is not accepted; did",
        ),
        (
            ["--trainer.max_epoch", "1"],
            "unrecognized arguments: --trainer.max_epoch 1; did you mean 'trainer.max_epochs'?",
        ),
        (["--config", "list.yaml"], "trainer.callbacks: Option 'limt' is not accepted; did you mean 'limit'?\n"),
        (["--trainer.plugins", "x"], "trainer.plugins: expected dot import path string, list or null, got 'x'"),
        (["--dat.train", "x.csv"], "unrecognized arguments: --dat.train x.csv; did you mean 'data'?\n"),
        (["--max_epochs", "1"], "unrecognized arguments: --max_epochs 1; did you mean 'trainer.max_epochs'?\n"),
        (["--config", "section.yaml"], "does not accept option 'trianer.max_epochs'; did you mean 'trainer'?\n"),
        (["--ckpt_pat", "x"], "unrecognized arguments: --ckpt_pat x; did you mean 'ckpt_path'?\n"),
        (
            ["--config", "misspelt.yaml"],
            "does not accept option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
        ),
        (
            ["--data", "lit_nlp.SentimentDatamodul"],
            "no attribute 'SentimentDatamodul'; did you mean 'SentimentDataModule'?",
        ),
        (
            ["--data", "elsewhere.Data"],
            "class_path 'elsewhere.Data': No module named 'elsewhere'; see lit-nlp fit --help",
        ),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_a_mistake_names_its_option_and_the_mend(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("misspelt.yaml").write_text("trainer:\n  max_epoch: 1\n")
    Path("section.yaml").write_text("trianer:\n  max_epochs: 1\n")
    callbacks = [{"class_path": "lit_nlp.AttributionCallback", "init_args": {"limt": 3}}]
    Path("list.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    assert command.main(["fit", *CLASSES, *arguments]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines(keepends=True) if line.startswith("lit-nlp: ")]
    assert told in line
    assert line.count("see lit-nlp") <= 1
    assert not any(word in line for word in ("Parser key", "Union", "<class", "typing."))
