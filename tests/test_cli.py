import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_nlp import __main__ as command
from lit_nlp import cli

GOOD = ["a warm and moving film", "I loved every minute", "good acting, good story", "it stays with you"]
BAD = ["dull and lifeless", "I hated the awful plot", "a bad film", "far too long to be fun"]


@pytest.fixture
def project(tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a config, data of three splits, and a backbone that may be deleted."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bert, "backbone")
    rows = [
        {"text": text, "label": label} for label, texts in (("positive", GOOD), ("negative", BAD)) for text in texts
    ]
    for split in ("train", "val", "test"):
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"class_path": "lit_nlp.SentimentModule", "init_args": {"backbone": "backbone"}},
        "data": {
            "class_path": "lit_nlp.SentimentDataModule",
            "init_args": {
                **{split: f"{split}.jsonl" for split in ("train", "val", "test")},
                "predict": "test.jsonl",
                "batch_size": 4,
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "precision": "32-true"},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def lit_nlp(*args: str) -> int:
    return command.main([args[0], "--config", "config.yaml", *args[1:]])


def fitted(*args: str) -> str:
    assert lit_nlp("fit", *args) == 0
    return "checkpoints/sentiment/best.ckpt"


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_leaves_all_that_the_design_names(project: Path) -> None:
    checkpoint = fitted()
    for verb in ("validate", "test", "predict"):
        assert lit_nlp(verb, "--ckpt_path", checkpoint) == 0
    run = Path("checkpoints/sentiment")
    names = {path.name for path in run.iterdir()}
    assert names >= {"best.ckpt", "last.ckpt", "fit.yaml", "validate.yaml", "test.yaml", "predict.yaml"}
    assert names >= {"metrics.json", "test.md", "wrong_predictions.jsonl", "predictions.jsonl", "tensorboard", "csv"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"val/accuracy", "test/accuracy", "test/f1", "test/mean_absolute_error", "test/recall/positive"} <= set(
        metrics
    )
    predictions = lines("checkpoints/sentiment/predictions.jsonl")
    assert [row["text"] for row in predictions] == GOOD + BAD
    for row in predictions:
        assert set(row["probabilities"]) == {"negative", "positive"}
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    wrong = lines("checkpoints/sentiment/wrong_predictions.jsonl")
    assert len(wrong) == round(8 * (1 - metrics["test/accuracy"]))
    assert [row["loss_nats"] for row in wrong] == sorted((row["loss_nats"] for row in wrong), reverse=True)


def test_explain_writes_a_page_and_attributions_whose_words_lie_in_the_text(project: Path) -> None:
    checkpoint = fitted()
    assert lit_nlp("explain", "--ckpt_path", checkpoint, "--limit", "3", "--output", "reports/x") == 0
    assert Path("reports/x/index.html").read_text().startswith("<!doctype html>")
    rows = lines("reports/x/attributions.jsonl")
    assert len(rows) == 3
    for row in rows:
        assert row["label"] in ("negative", "positive")
        assert all(row["text"][word["start"] : word["end"]] == word["text"] for word in row["words"])


def test_explain_takes_one_text_and_a_target(project: Path) -> None:
    checkpoint = fitted()
    arguments = ["--ckpt_path", checkpoint, "--text", "a good film", "--target", "negative"]
    assert lit_nlp("explain", *arguments) == 0
    (row,) = lines("reports/sentiment/attributions.jsonl")
    assert (row["text"], row["target"], row["method"]) == ("a good film", "negative", "integrated_gradients")
    page = Path("reports/sentiment/index.html").read_text()
    facts = dict(re.findall("<dt><bdi>(.*?)</bdi></dt><dd><bdi>(.*?)</bdi></dd>", page))
    assert (facts["Taken from"], facts["Explained"], facts["Seed"]) == ("the command line", "negative", "0")


def test_explain_compares_methods_and_says_which_to_trust(project: Path) -> None:
    Path("marked.jsonl").write_text('{"text": [[0, 4]]}\n' * 8)
    arguments = ["--methods", "saliency,feature_ablation", "--limit", "2", "--contrast", "negative"]
    measured = ["--sensitivity", "true", "--rationales", "marked.jsonl"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments, *measured) == 0
    rows = lines("reports/sentiment/attributions.jsonl")
    assert [row["method"] for row in rows] == ["saliency"] * 2 + ["feature_ablation"] * 2 + ["random"] * 2
    assert rows[2]["target"] in ("positive rather than negative", "negative")
    page = Path("reports/sentiment/index.html").read_text()
    told = "2 texts are too few to tell a method from random scores: comparing 2 of them takes at least 7."
    assert json.loads(Path("reports/sentiment/report.json").read_text())["comparison"]["reason"] == told
    assert told.partition(":")[0] in page
    assert "max sensitivity" in page
    assert "auprc" in page


def test_rationales_of_more_rows_than_are_read_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("marked.jsonl").write_text('{"text": [[0, 4]]}\n' * 8)
    arguments = ["--methods", "saliency", "--rationales", "marked.jsonl", "--data.limit", "5"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments) == 2
    assert "lit-nlp: marked.jsonl, line 6: it is of no row, the split has 5; " in capsys.readouterr().err


def test_a_row_is_drawn_by_its_number_in_the_split(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = fitted()
    arguments = ["--method", "saliency", "--limit", "8", "--png", "5"]
    assert lit_nlp("explain", "--ckpt_path", checkpoint, *arguments) == 0
    assert Path("reports/sentiment/row-5.png").read_bytes().startswith(b"\x89PNG")
    assert [row["text"] for row in lines("reports/sentiment/attributions.jsonl")] == GOOD + BAD
    assert lit_nlp("explain", "--ckpt_path", checkpoint, *arguments[:-1], "99") == 2
    told = "explain.png: row 99 is none of those that are explained; these are 0, 1, 2, 3, 4, 5, 6, 7; name it among"
    assert f"{told} --rows" in capsys.readouterr().err
    assert "test, all 8 rows" in Path("reports/sentiment/index.html").read_text()
    assert lit_nlp("explain", "--ckpt_path", checkpoint, "--method", "saliency", "--limit", "3") == 0
    assert "test, 3 of 8 rows" in Path("reports/sentiment/index.html").read_text()
    chosen = ["--method", "saliency", "--rows", "[6, 2]", "--png", "6"]
    assert lit_nlp("explain", "--ckpt_path", checkpoint, *chosen) == 0
    assert [row["row"] for row in lines("reports/sentiment/attributions.jsonl")] == [6, 2]
    assert lit_nlp("explain", "--ckpt_path", checkpoint, "--rows", "[8]") == 2
    assert "data.test: test has rows 0 to 7, but no row 8" in capsys.readouterr().err
    for blank, mistake in (
        (["--target", ""], "target: the target is blank; leave it out, or name one"),
        (["--contrast", " "], "contrast: the contrast is blank; leave it out, or name one"),
        (["--methods", ""], "methods: there are no methods to compare; name one"),
        (["--rows", "[]"], "explain.rows: there are no rows"),
        (["--reference", "true", "--target", "positive"], "explain.reference: the class is named twice"),
    ):
        assert lit_nlp("explain", "--ckpt_path", checkpoint, *blank) == 2
        assert mistake in capsys.readouterr().err
    capsys.readouterr()
    assert lit_nlp("explain", "--ckpt_path", checkpoint, "--method", "saliency", "--reference", "true") == 0
    explained = lines("reports/sentiment/attributions.jsonl")
    assert [row["target"] for row in explained] == [row["label"] for row in explained]
    assert "what the data says" in Path("reports/sentiment/index.html").read_text()


def test_explain_shows_training_examples_that_spoke_for_a_prediction(project: Path) -> None:
    arguments = ["--text", GOOD[0], "--influence", "true", "--method", "saliency"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments) == 0
    page = Path("reports/sentiment/index.html").read_text()
    assert "training examples that moved this" in page
    assert "train.jsonl, line " in page


def test_influence_needs_the_training_rows_alone(project: Path) -> None:
    arguments = ["--text", GOOD[0], "--influence", "true", "--method", "saliency", "--data.val", "gone.jsonl"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments) == 0


def test_texts_without_labels_are_explained(project: Path) -> None:
    Path("texts.txt").write_text("\n".join(GOOD))
    arguments = ["--split", "predict", "--data.predict", "texts.txt", "--method", "saliency"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments) == 0
    assert len(Path("reports/sentiment/attributions.jsonl").read_text().splitlines()) == len(GOOD)


def test_influence_by_other_rows_is_refused_before_anything_is_explained(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fitted()
    monkeypatch.setattr("lit_nlp.explain.attribute", lambda *_, **__: pytest.fail("explained"))
    Path("fewer.jsonl").write_text("".join(Path("train.jsonl").read_text().splitlines(keepends=True)[1:]))
    arguments = ["--text", GOOD[0], "--influence", "true", "--data.train", "fewer.jsonl"]
    assert lit_nlp("explain", "--ckpt_path", checkpoint, *arguments) == 2
    assert "data.train: the checkpoint was trained on rows of " in capsys.readouterr().err


def test_what_explanations_hang_on_is_told(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    layer = ["--method", "layer_integrated_gradients", "--layer", "model.bert.encoder.layer.1", "--baseline", "mask"]
    assert lit_nlp("explain", "--ckpt_path", fitted(), "--text", GOOD[0], *layer) == 0
    assert "(layer_integrated_gradients): " in caplog.text
    facts = json.loads(Path("reports/sentiment/report.json").read_text())["facts"]
    assert facts["Layer"] == "model.bert.encoder.layer.1"
    assert facts["Blank words are"] == "[mask]"
    assert {"Tolerance", "Seed"} < facts.keys()


def test_a_second_run_neither_fails_nor_overwrites(project: Path) -> None:
    first = Path(fitted()).read_bytes()
    assert lit_nlp("fit") == 0
    assert Path("checkpoints/sentiment/best.ckpt").read_bytes() == first
    assert Path("checkpoints/sentiment-2/best.ckpt").exists()
    for _ in range(3):
        assert lit_nlp("predict", "--ckpt_path", "checkpoints/sentiment/best.ckpt") == 0
    kept = sorted(path.name for path in Path("checkpoints/sentiment").glob("predictions*.jsonl"))
    assert kept == ["predictions-1.jsonl", "predictions-2.jsonl", "predictions.jsonl"]


def test_the_name_chooses_the_folder(project: Path) -> None:
    assert lit_nlp("fit", "--name", "mine") == 0
    assert Path("checkpoints/mine/best.ckpt").exists()


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "explain"])
def test_every_verb_but_fit_demands_a_checkpoint(project: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert lit_nlp(verb) == 2
    assert f"{verb} needs a checkpoint" in capsys.readouterr().err


def test_without_the_backbone_a_checkpoint_tests_the_same(project: Path) -> None:
    checkpoint = fitted()
    assert lit_nlp("predict", "--ckpt_path", checkpoint) == 0
    before = lines("checkpoints/sentiment/predictions.jsonl")
    shutil.rmtree("backbone")
    assert lit_nlp("predict", "--ckpt_path", checkpoint) == 0
    assert lines("checkpoints/sentiment/predictions.jsonl") == before


def test_the_labels_of_a_test_are_the_checkpoints_own(project: Path) -> None:
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["model"]["class_path"] = "lit_nlp.TextClassificationModule"
    config["data"]["class_path"] = "lit_nlp.TextClassificationDataModule"
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert lit_nlp("fit") == 0
    Path("test.jsonl").write_text('{"text": "a good film", "label": "positive"}\n')
    checkpoint = "checkpoints/text_classification/best.ckpt"
    assert lit_nlp("test", "--ckpt_path", checkpoint, "--data.train", "gone.jsonl") == 0
    assert set(torch.load(checkpoint, weights_only=True)["hyper_parameters"]["labels"]) == {"negative", "positive"}


def test_a_report_is_titled_by_its_task_and_a_run_of_another_name(project: Path) -> None:
    some = ("--method", "saliency", "--limit", "1")
    assert lit_nlp("explain", "--ckpt_path", fitted(), *some) == 0
    assert lit_nlp("fit", "--name", "stars") == 0
    assert lit_nlp("explain", "--ckpt_path", "best", "--name", "stars", *some) == 0
    pages = [Path(f"reports/{name}/index.html").read_text("utf-8") for name in ("sentiment", "stars")]
    titles = [page.partition("<title>")[2].partition("</title>")[0] for page in pages]
    assert titles == ["Why the model decided: sentiment", "Why the model decided: sentiment (stars)"]


def test_the_number_of_classes_reaches_the_model_from_the_data(project: Path) -> None:
    rows = [{"text": f"{text} {label}", "label": label} for text in GOOD for label in ("a", "b", "c")]
    Path("topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--data.train", "topics.jsonl", "--data.val", "topics.jsonl"]
    classes = ["--model", "lit_nlp.TextClassificationModule", "--data", "lit_nlp.TextClassificationDataModule"]
    assert command.main(["fit", "--config", "config.yaml", *classes, *arguments]) == 0
    checkpoint = torch.load("checkpoints/text_classification/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["labels"] == ["a", "b", "c"]
    assert checkpoint["state_dict"]["model.classifier.weight"].shape[0] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.label_smoothing", "0.5"],
            "asked for --model.label_smoothing 0.5, but the checkpoint was trained with",
        ),
        (["--model.init_args.weight_decay=0.5"], "asked for --model.weight_decay 0.5"),
        (["--data.max_length", "17"], "asked for data.max_length 17"),
        (["--data.labels", "[bad, good]"], "asked for data.labels ['bad', 'good']"),
        (["--model.labels", "[bad, good]"], "labels ['bad', 'good']"),
        (["--model", "lit_nlp.TextClassificationModule"], "it was written by SentimentModule"),
    ],
)
def test_a_conflict_with_the_checkpoint_stops(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    checkpoint = fitted()
    assert lit_nlp("test", "--ckpt_path", checkpoint, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_what_only_changes_how_a_model_runs_is_no_conflict(project: Path) -> None:
    checkpoint = fitted()
    assert lit_nlp("test", "--ckpt_path", checkpoint, "--model.attn_implementation", "eager") == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tset"], "did you mean 'test'?"),
        (["fit", "--config", "gone.yaml"], "gone.yaml: there is no such config file"),
        (["fit", "--config", "broken.yaml"], "broken.yaml, line 2: broken YAML: mapping values are not allowed here"),
        (["fit", "--config", "list.yaml"], "list.yaml: the config names no options; see configs/"),
        (["fit", "--config", "https://example.org/x.yaml"], "read from a local file only"),
        (
            ["fit", "--config", "config.yaml", "--model.learning_rat", "1"],
            "model: Option 'learning_rat' is not accepted; did you mean 'learning_rate'?",
        ),
        (["fit", "--config", "config.yaml", "--model", "lit_nlp.QuestionAnsweringModule"], "of one task"),
        (["fit", "--config", "config.yaml", "--model", "lit_nlp.TranslationModule"], "of one task"),
        (["fit", "--config", "config.yaml", "--model.learning_rate", "-1"], "learning_rate must be above 0"),
        (["fit", "--config", "config.yaml", "--data.train", "gone.csv"], "gone.csv: no such file"),
        (["fit", "--config", "config.yaml", "--model.backbone", "./gone"], "there is no such folder or file"),
        (["fit", "--config", "config.yaml", "--data.backbone", "other"], "model.backbone"),
        (["fit", "--config", "config.yaml", "--ckpt_path", "last"], "last.ckpt: there is no such checkpoint file"),
        (["test", "--config", "config.yaml", "--ckpt_path", "http://x/y.ckpt"], "not from a URL"),
        (["fit"], "give a task's --config FILE, such as --config configs/sentiment.yaml"),
        (["fit", "--trainer.max_epochs", "1"], "required"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    project: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    Path("broken.yaml").write_text("name: x\ndata: train: x.csv\n")
    Path("list.yaml").write_text("- a\n- b\n")
    assert command.main(args) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-nlp: ")]
    assert message in line


def test_a_bad_row_is_named_by_file_and_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("train.jsonl").open("a") as file:
        file.write('{"text": "fine", "label": "postive"}\n')
    assert lit_nlp("fit") == 2
    expected = "train.jsonl, line 9: label 'postive' is not one of negative, positive; did you mean 'positive'?"
    assert expected in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_the_lines_and_ends_with_status_2(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lit_nlp("fit", "--model.learning_rate", "1e30", "--trainer.max_epochs", "9", "--data.batch_size", "2") == 2
    error = capsys.readouterr().err
    assert "not finite" in error
    assert "train.jsonl, line " in error


def test_configs_compose_and_both_spellings_of_an_argument_work(project: Path) -> None:
    Path("overlay.yaml").write_text("trainer:\n  max_steps: 1\n")
    arguments = ["--config", "overlay.yaml", "--data.batch_size", "2", "--model.init_args.learning_rate", "3e-5"]
    assert lit_nlp("fit", *arguments) == 0
    saved = yaml.safe_load(Path("checkpoints/sentiment/fit.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 1
    assert saved["data"]["init_args"]["batch_size"] == 2
    assert saved["model"]["init_args"]["learning_rate"] == 3e-5


def test_a_saved_config_runs_again(project: Path) -> None:
    fitted()
    assert command.main(["fit", "--config", "checkpoints/sentiment/fit.yaml"]) == 0
    first, second = (
        torch.load(f"checkpoints/{name}/last.ckpt", weights_only=True)["state_dict"]
        for name in ("sentiment", "sentiment-2")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fit_goes_on_from_the_last_checkpoint_in_its_folder(project: Path) -> None:
    fitted()
    assert lit_nlp("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert torch.load("checkpoints/sentiment/last.ckpt", weights_only=True)["epoch"] == 1
    assert not Path("checkpoints/sentiment-2").exists()


@pytest.mark.parametrize(("ratio", "chosen"), [(4.0, "bf16-mixed"), (0.5, "32-true")])
def test_precision_follows_what_the_machine_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str
) -> None:
    monkeypatch.setattr(cli, "_product_seconds", lambda matrix: ratio if matrix.dtype == torch.float32 else 1.0)
    assert cli.fastest_precision("cpu") == chosen


def test_beside_googles_tool_the_command_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "distribution", lambda name: name)
    assert command.main(["fit"]) == 2
    assert "install the two in separate environments" in capsys.readouterr().err


def test_help_and_version_answer_without_loading_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys, lit_nlp.__main__ as m; m.main(['--help']); m.main(['--version']); print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "fit        fine-tune" in printed
    assert printed.endswith("False\n")


def test_pre_training_ends_with_a_folder_that_another_config_takes_as_its_backbone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("texts.txt").write_text("\n".join(GOOD + BAD))
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["model"] = {
        "class_path": "lit_nlp.LanguageModelingModule",
        "init_args": {
            "backbone": "scratch:{model_type: bert, vocab_size: 90, hidden_size: 8, num_hidden_layers: 1,"
            " num_attention_heads: 1, intermediate_size: 8}"
        },
    }
    config["data"] = {
        "class_path": "lit_nlp.LanguageModelingDataModule",
        "init_args": {"objective": "masked", **dict.fromkeys(("train", "val", "test", "predict"), "texts.txt")},
    }
    Path("pretrain.yaml").write_text(yaml.safe_dump(config))
    assert command.main(["fit", "--config", "pretrain.yaml", "--name", "pretrain"]) == 0
    folder = "checkpoints/pretrain/backbone"
    names = {path.name for path in Path(folder).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    best = torch.load("checkpoints/pretrain/best.ckpt", weights_only=True)["state_dict"]
    weights = load_file(f"{folder}/model.safetensors")
    assert weights
    assert all(torch.equal(best[f"model.{name}"], weight) for name, weight in weights.items())

    for verb in ("test", "predict"):
        arguments = ["--config", "pretrain.yaml", "--ckpt_path", "checkpoints/pretrain/best.ckpt"]
        assert command.main([verb, *arguments]) == 0
    metrics = json.loads(Path("checkpoints/pretrain/metrics.json").read_text())
    assert metrics["test/perplexity"] == pytest.approx(math.exp(metrics["test/loss"]), rel=1e-5)
    predictions = lines("checkpoints/pretrain/predictions.jsonl")
    assert [row["text"] for row in predictions] == GOOD + BAD
    assert all(row["perplexity"] > 1 for row in predictions)

    assert lit_nlp("fit", "--model.backbone", folder) == 0
    assert lit_nlp("test", "--ckpt_path", "checkpoints/sentiment/best.ckpt") == 0


def test_only_what_is_pre_trained_leaves_a_backbone(project: Path) -> None:
    fitted()
    assert not Path("checkpoints/sentiment/backbone").exists()


def test_a_configuration_from_scratch_may_have_a_single_key(project: Path) -> None:
    given = ["--model.backbone", "scratch:{model_type: bert}", "--trainer.fast_dev_run", "true"]
    small = ["--data.max_length", "16"]
    assert lit_nlp("fit", *given, *small) == 0
    assert lit_nlp("fit", "--model.backbone=scratch:{model_type: brt}") == 2


def test_an_argument_that_the_data_contradicts_is_refused_also_where_it_is_the_default(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"text": "film", "answer_start": 7}
    rows = [
        {"id": "a", "question": "what", "context": "a warm film", "answers": [answer]},
        {"id": "b", "question": "what", "context": "a warm film", "answers": []},
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = ["--model", "lit_nlp.QuestionAnsweringModule", "--data", "lit_nlp.QuestionAnsweringDataModule"]
    asked = ["fit", "--config", "config.yaml", *classes, "--data.val", "train.jsonl"]
    assert command.main([*asked, "--model.unanswerable", "false"]) == 2
    assert "model.unanswerable is False, but the data says True" in capsys.readouterr().err


# What a checkpoint brings along


def test_a_regression_goes_through_every_verb(project: Path) -> None:
    rows = [{"text": text, "label": i / 3} for i, text in enumerate(GOOD + BAD)]
    for split in ("train", "val", "test"):
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = ["--model", "lit_nlp.TextClassificationModule", "--data", "lit_nlp.TextClassificationDataModule"]
    shared = ["--config", "config.yaml", *classes]
    assert command.main(["fit", *shared, "--data.problem_type", "regression"]) == 0
    checkpoint = ["--ckpt_path", "checkpoints/text_classification/best.ckpt"]
    for verb in ("validate", "test", "predict", "explain"):
        assert command.main([verb, *shared, *checkpoint]) == 0
    assert "test/pearson" in json.loads(Path("checkpoints/text_classification/metrics.json").read_text())
    assert command.main(["fit", *shared, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0


def test_cutoffs_come_from_the_checkpoint_and_may_not_contradict_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val", "test"):
        rows = [{"text": text, "label": 1 + i % 5} for i, text in enumerate(GOOD + BAD)]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratings = ["--data.classes", "3", "--data.cutoffs", "[2.5, 3.5]"]
    checkpoint = fitted(*ratings)
    assert lit_nlp("test", "--ckpt_path", checkpoint) == 0
    without = json.loads(Path("checkpoints/sentiment/metrics.json").read_text())
    assert lit_nlp("test", "--ckpt_path", checkpoint, "--data.cutoffs", "[2.5, 3.5]") == 0
    assert json.loads(Path("checkpoints/sentiment/metrics.json").read_text()) == without
    assert lit_nlp("test", "--ckpt_path", checkpoint, "--data.cutoffs", "[1.5, 4.5]") == 2
    assert "asked for data.cutoffs [1.5, 4.5], but the checkpoint was trained with cutoffs" in capsys.readouterr().err


def test_what_a_config_says_of_lengths_gives_way_to_the_checkpoint(project: Path) -> None:
    checkpoint = fitted("--data.max_length", "17", "--data.doc_stride", "4")
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["data"]["init_args"]["max_length"] = 30
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert lit_nlp("predict", "--ckpt_path", checkpoint) == 0
    saved = yaml.safe_load(Path("checkpoints/sentiment/fit.yaml").read_text())
    assert saved["data"]["init_args"]["max_length"] == 17


def test_rows_that_were_held_out_stay_held_out_whatever_the_seed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--data.val", "null", "--data.val_fraction", "0.5"]
    checkpoint = fitted(*held_out, "--data.seed", "1")
    assert lit_nlp("validate", "--ckpt_path", checkpoint, "--data.val", "null") == 0
    assert lit_nlp("validate", "--ckpt_path", checkpoint, "--data.val", "null", "--data.seed", "2") == 2
    assert "asked for data.seed 2" in capsys.readouterr().err


# Runs and their folders


def test_a_resumed_run_goes_on_in_its_own_folder(project: Path) -> None:
    assert lit_nlp("fit", "--name", "x") == 0
    first = Path("checkpoints/x/last.ckpt").read_bytes()
    assert lit_nlp("fit", "--name", "x") == 0
    assert lit_nlp("fit", "--name", "x", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert Path("checkpoints/x/last.ckpt").read_bytes() == first
    assert torch.load("checkpoints/x-2/last.ckpt", weights_only=True)["epoch"] == 1
    assert {path.name for path in Path("checkpoints").iterdir()} == {"x", "x-2"}


def test_a_run_of_another_name_is_not_taken_for_a_later_one(project: Path) -> None:
    assert lit_nlp("fit", "--name", "x") == 0
    assert lit_nlp("fit", "--name", "x-3") == 0
    assert lit_nlp("fit", "--name", "v1.0") == 0
    assert lit_nlp("fit", "--name", "v1.0") == 0
    assert lit_nlp("predict", "--name", "x", "--ckpt_path", "best") == 0
    assert lit_nlp("predict", "--name", "v1.0", "--ckpt_path", "best") == 0
    wrote = {path.parent.name for path in Path("checkpoints").glob("*/predictions.jsonl")}
    assert wrote == {"x", "v1.0-2"}


@pytest.mark.parametrize("verb", ["test", "predict", "explain", "fit"])
def test_a_checkpoint_that_is_named_by_nothing_is_refused(
    verb: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lit_nlp(verb, "--ckpt_path", "") == 2
    assert "lit-nlp: ckpt_path: the path of the checkpoint is blank; give a file" in capsys.readouterr().err
    assert not Path("checkpoints").exists()


# What Lightning or the system refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.val_check_interval", "99"], "val_check_interval"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer: accumulate_grad_batches must be at least 1, got 0"),
        (["--trainer.strategy", "nonsense"], "nonsense"),
        (["--trainer.overfit_batches", "1"], "trainer: overfit_batches is set; set data.limit instead"),
        (["--data.num_workers", "-1"], "num_workers must be at least 0, got -1"),
        (["--name", "../x"], "'../x' is no name of a folder"),
        (["--name", ".."], "'..' is no name of a folder"),
        (["--nam", "x"], "nam"),
        (["--trainer.max_epoch", "1"], "max_epoch"),
        (["--data.columns.txt", "text"], "data.columns: 'txt' is not one of text, text_pair, label;"),
        (["--trainer.default_root_dir", "config.yaml"], "config.yaml"),
    ],
)
def test_what_does_not_fit_the_trainer_or_the_disk_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert lit_nlp("fit", *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-nlp: ")]
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--text", "b"], "explain takes one text"),
        (["--text", "  "], "there is no text"),
        (["--text_pair", "a"], "there is no text"),
        (["--text", "caf\udce9"], "text 0 (counted from 0): a lone surrogate, half of a character"),
    ],
)
def test_explain_wants_one_text_that_says_something(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert lit_nlp("explain", "--ckpt_path", fitted(), *arguments) == 2
    assert message in capsys.readouterr().err


def test_unlabelled_texts_of_a_file_are_explained_too(project: Path) -> None:
    checkpoint = fitted()
    Path("new.jsonl").write_text('{"text": "a good film"}\n')
    arguments = ["--data.predict", "new.jsonl", "--split", "predict"]
    assert lit_nlp("explain", "--ckpt_path", checkpoint, *arguments) == 0
    (row,) = lines("reports/sentiment/attributions.jsonl")
    assert (row["text"], row["label"]) == ("a good film", None)


def test_a_module_of_another_project_runs_with_our_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    Path("foreign.py").write_text(
        "import torch\nfrom lightning.pytorch import LightningModule\n"
        "class Foreign(LightningModule):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Embedding(400, 2)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return torch.nn.functional.cross_entropy(self.layer(batch['input_ids'][:, 0]), batch['labels'])\n"
        "    def configure_optimizers(self):\n        return torch.optim.SGD(self.parameters(), 0.1)\n"
    )
    data = ["--data", "lit_nlp.SentimentDataModule", "--data.train", "train.jsonl", "--data.val", "val.jsonl"]
    trainer = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"]
    assert command.main(["fit", "--model", "foreign.Foreign", *data, "--data.backbone", "backbone", *trainer]) == 0


@pytest.mark.parametrize(("verb", "split"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_a_file_that_is_trained_on_and_measured_is_told(
    verb: str, split: str, project: Path, recwarn: pytest.WarningsRecorder
) -> None:
    quick = [*([] if verb == "fit" else ["--ckpt_path", fitted()]), "--trainer.fast_dev_run", "true"]
    assert lit_nlp(verb, *quick) == 0
    assert not [each for each in recwarn if "is data.train" in str(each.message)]
    with pytest.warns(UserWarning, match=f"^data.{split}: train.jsonl is data.train, too: what is measured there"):
        assert lit_nlp(verb, *quick, f"--data.{split}", "train.jsonl") == 0


# A run that does nothing, or ends early


def test_who_trains_nothing_is_told_what_is_done_already(
    project: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert lit_nlp("fit", "--trainer.max_steps", "0", "--name", "none") == 2
    assert "trainer.max_steps: nothing was trained: steps done already: 0" in capfd.readouterr().err
    assert lit_nlp("fit", "--trainer.max_steps", "1", "--name", "one") == 0
    assert f"Checkpoints: {Path('checkpoints/one/last.ckpt')}: the run ended before it was validated" in caplog.text
    assert "monitored key" not in capfd.readouterr().err
    assert lit_nlp("fit", "--ckpt_path", "last", "--name", "one", "--trainer.max_steps", "1") == 2
    assert "trainer.max_steps: nothing was trained: steps done already: 1, epochs: 0" in capfd.readouterr().err
    spent = ("--trainer.max_time", "00:00:00:00")
    assert lit_nlp("fit", "--ckpt_path", "last", "--name", "one", *spent) == 2
    assert "trainer.max_time: nothing was trained: steps done already: 1, epochs: 0" in capfd.readouterr().err
    assert lit_nlp("fit", "--ckpt_path", "last", "--name", "one") == 0, "the rest of the epoch"
    steps = torch.load("checkpoints/one/last.ckpt", weights_only=True)["global_step"]
    assert steps > 1
    capfd.readouterr()
    assert lit_nlp("fit", "--ckpt_path", "last", "--name", "one") == 2
    problem = f"nothing was trained: steps done already: {steps}, epochs: 1"
    assert f"trainer.max_epochs: {problem}; raise it to go on" in capfd.readouterr().err


def test_ctrl_c_while_it_is_still_being_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    assert command.main(["fit"]) == 130
    assert capfd.readouterr().err == "lit-nlp: interrupted\n"
