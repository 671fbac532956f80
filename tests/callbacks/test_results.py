"""What a run leaves beside its checkpoints says what the model did, row by row."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from lit_nlp import TextClassificationDataModule, TextClassificationModule
from lit_nlp.callbacks.results import ResultsWriter
from lit_nlp.data.base import TextDataModule
from tests.backbones import CORPUS
from tests.contract import plain_trainer, write_rows

LABELS = ["cold", "hot", "mild"]
# Nine texts of different lengths, so that batches of four take them in another order than the file's.
TEXTS = [*CORPUS, "good", "a bad ending", "the music"]
GIVEN = [0, 1, 2, 0, 1, 2, 0, 1, 2]
# Rows 1, 3, 4 and 8 are wrong, by more and less; row 4 the most, row 3 the least.
SAID = torch.tensor(
    [
        [3.0, 0.0, 0.0],
        [2.0, 0.0, 0.0],
        [0.0, 0.0, 1.0],
        [0.0, 0.5, 0.0],
        [0.0, 0.0, 9.0],
        [0.0, 0.0, 5.0],
        [1.0, 0.5, 0.0],
        [0.0, 2.0, 0.0],
        [4.0, 0.0, 0.0],
    ]
)


class Known(TextClassificationModule):
    """Says what it is told to say of each row."""

    said: Tensor = SAID

    def forward_batch(self, batch: Any) -> Tensor:
        return self.said[torch.unique_consecutive(batch["row"])]


Data = Callable[..., TextDataModule]


@pytest.fixture
def data(bert: str, tmp_path: Path) -> Data:
    def make(
        given: list[Any] | None = None, texts: list[str] = TEXTS, pair: str | None = None, **arguments: Any
    ) -> TextDataModule:
        names = given or [LABELS[label] for label in GIVEN]
        rows = [{"text": text, "label": name} for text, name in zip(texts, names, strict=True)]
        if pair:
            rows = [{**row, "text_pair": pair} for row in rows]
        source = write_rows(tmp_path / "rows.jsonl", rows)
        sources = {"train": source, "val": source, "test": source, "predict": source}
        return TextClassificationDataModule(bert, **{**sources, "batch_size": 4, "max_length": 32, **arguments})

    return make


@pytest.fixture
def known(bert: str) -> Known:
    return Known(bert, labels=LABELS)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def nats(row: int) -> float:
    return -SAID[row].log_softmax(0)[GIVEN[row]].item()


# After test


def test_wrong_predictions_are_all_told_the_worst_first(known: Known, data: Data, tmp_path: Path) -> None:
    plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")]).test(known, data(), verbose=False)
    wrong = lines(tmp_path / "run" / "wrong_predictions.jsonl")
    expected = sorted((row for row in range(9) if SAID[row].argmax() != GIVEN[row]), key=nats, reverse=True)
    assert expected == [4, 8, 1, 3]
    assert [each["row"] for each in wrong] == expected
    for each, row in zip(wrong, expected, strict=True):
        said = int(SAID[row].argmax())
        assert (each["text"], each["label"], each["prediction"]) == (TEXTS[row], LABELS[GIVEN[row]], LABELS[said])
        assert each["loss_nats"] == pytest.approx(nats(row), rel=1e-5)
        assert each["probability"] == pytest.approx(SAID[row].softmax(0)[said].item(), rel=1e-5)
        assert list(each["probabilities"].values()) == pytest.approx(SAID[row].softmax(0).tolist(), rel=1e-5)


def test_metrics_are_flat_and_those_that_were_measured(known: Known, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")])
    (measured,) = trainer.test(known, data(), verbose=False)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == pytest.approx(measured)
    assert written["test/accuracy"] == pytest.approx(5 / 9)


def test_the_table_shows_metrics_and_confusion(bert: str, data: Data, tmp_path: Path) -> None:
    module = Known(bert, labels=["cold", "hot|warm", "mild"])
    labels = [module.labels[label] for label in GIVEN]
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path / "run")])
    trainer.test(module, data(labels, labels=module.labels), verbose=False)
    table = (tmp_path / "run" / "test.md").read_text()
    assert "| test/accuracy | 0.5556 |\n" in table
    assert table.endswith(
        "Rows are the given labels, columns the predicted ones.\n"
        "\n"
        "| | cold | hot\\|warm | mild |\n"
        "|---|---|---|---|\n"
        "| cold | 2 | 1 | 0 |\n"
        "| hot\\|warm | 1 | 1 | 1 |\n"
        "| mild | 1 | 0 | 2 |\n"
    )


def test_where_nothing_is_wrong_the_list_is_empty(known: Known, data: Data, tmp_path: Path) -> None:
    known.said = torch.nn.functional.one_hot(torch.tensor(GIVEN)).float() * 9
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(known, data(), verbose=False)
    assert (tmp_path / "wrong_predictions.jsonl").read_text() == ""


def test_a_second_run_keeps_the_results_of_the_first(known: Known, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path)])
    trainer.test(known, data(), verbose=False)
    names = ["metrics.json", "test.md", "wrong_predictions.jsonl"]
    first = {name: (tmp_path / name).read_bytes() for name in names}
    known.said = -SAID
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(known, data(), verbose=False)
    for name in names:
        assert (tmp_path / name).read_bytes() != first[name]
        assert (tmp_path / name.replace(".", "-1.")).read_bytes() == first[name]


def test_a_test_that_broke_off_leaves_nothing_to_the_next(known: Known, data: Data, tmp_path: Path) -> None:
    class BreakOff(Callback):
        left = 2

        def on_test_batch_end(self, *_: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("out of memory")

    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path), BreakOff()])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.test(known, data(), verbose=False)
    trainer.test(known, data(), verbose=False)
    assert [each["row"] for each in lines(tmp_path / "wrong_predictions.jsonl")] == [4, 8, 1, 3]


def test_with_several_labels_a_row_is_wrong_if_one_of_them_is(bert: str, data: Data, tmp_path: Path) -> None:
    module = Known(bert, labels=LABELS, problem_type="multi_label")
    module.said = torch.tensor([[2.0, -2.0, -2.0], [-2.0, 2.0, 2.0], [-3.0, -3.0, -3.0]])
    rows = data([["cold"], ["hot"], ["mild"]], TEXTS[:3], problem_type="multi_label", labels=LABELS)
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(module, rows, verbose=False)
    wrong = lines(tmp_path / "wrong_predictions.jsonl")
    assert [(each["row"], each["label"], each["prediction"]) for each in wrong] == [
        (2, ["mild"], []),
        (1, ["hot"], ["hot", "mild"]),
    ]
    loss = (math.log(1 + math.exp(3)) + 2 * math.log(1 + math.exp(-3))) / 3
    assert wrong[0]["loss_nats"] == pytest.approx(loss, rel=1e-5)


def test_scores_are_told_by_their_distance(bert: str, data: Data, tmp_path: Path) -> None:
    module = Known(bert, problem_type="regression")
    module.said = torch.tensor([[1.0], [0.5], [3.0]])
    rows = data([1.0, 2.0, 2.5], TEXTS[:3], problem_type="regression")
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(module, rows, verbose=False)
    wrong = lines(tmp_path / "wrong_predictions.jsonl")
    told = [(each["row"], each["label"], each["prediction"], each["loss"]) for each in wrong]
    assert told == [(1, 2.0, 0.5, 2.25), (2, 2.5, 3.0, 0.25)]
    assert "probability" not in wrong[0]


# After predict


@pytest.mark.parametrize("arguments", [{}, {"pair": "a film"}, {"max_length": 8, "doc_stride": 1}])
def test_predictions_come_in_the_order_of_the_file(
    arguments: dict[str, Any], known: Known, data: Data, tmp_path: Path
) -> None:
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).predict(known, data(**arguments))
    written = lines(tmp_path / "predictions.jsonl")
    assert [each["text"] for each in written] == TEXTS
    assert [each["row"] for each in written] == list(range(9))
    assert [each["label"] for each in written] == [LABELS[label] for label in SAID.argmax(1).tolist()]
    assert [each.get("text_pair") for each in written] == [arguments.get("pair")] * 9
    for each, row in zip(written, SAID.softmax(1).tolist(), strict=True):
        assert list(each["probabilities"]) == LABELS
        assert list(each["probabilities"].values()) == pytest.approx(row, rel=1e-5)


def test_a_second_prediction_keeps_the_first(known: Known, data: Data, tmp_path: Path) -> None:
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).predict(known, data())
    first = (tmp_path / "predictions.jsonl").read_bytes()
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).predict(known, data(texts=TEXTS[::-1]))
    assert (tmp_path / "predictions-1.jsonl").read_bytes() == first
    assert [each["text"] for each in lines(tmp_path / "predictions.jsonl")] == TEXTS[::-1]


def test_batches_of_another_data_module_are_told_without_texts(known: Known, data: Data, tmp_path: Path) -> None:
    ours = data()
    ours.setup("predict")
    tensors = [{k: v for k, v in batch.items() if isinstance(v, Tensor)} for batch in ours.predict_dataloader()]
    loader = torch.utils.data.DataLoader(tensors, batch_size=None)
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).predict(known, loader)
    written = lines(tmp_path / "predictions.jsonl")
    assert not any("text" in each for each in written)
    assert [each["row"] for each in written] == list(range(9))


class Foreign(BoringModel):
    """Another project's module: what its steps return is no row of ours."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"rows": [1, 2], "x": super().validation_step(batch, batch_idx)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"rows": [1, 2], "y": super().test_step(batch, batch_idx)}


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_another_projects_module_is_left_alone(verb: str, tmp_path: Path) -> None:
    getattr(plain_trainer(callbacks=[ResultsWriter(tmp_path)]), verb)(Foreign())
    assert not list(tmp_path.glob("*.jsonl"))


# After validate and fit


def test_validation_and_test_stand_in_one_file(known: Known, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path)])
    (validated,) = trainer.validate(known, data(), verbose=False)
    (tested,) = trainer.test(known, data(), verbose=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx({**validated, **tested})
    assert not (tmp_path / "metrics-1.json").exists()


def test_a_later_test_replaces_all_figures_of_an_earlier_one(known: Known, data: Data, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"test/best_f1": 1.0, "val/loss": 2.0}))
    (tested,) = plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(known, data(), verbose=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx({"val/loss": 2.0, **tested})
    assert json.loads((tmp_path / "metrics-1.json").read_text()) == {"test/best_f1": 1.0, "val/loss": 2.0}


def test_validate_leaves_what_a_test_leaves_in_a_folder_of_its_own(known: Known, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(callbacks=[ResultsWriter(tmp_path)])
    trainer.validate(known, data(), verbose=False)
    assert not (tmp_path / "wrong_predictions.jsonl").exists()
    trainer.test(known, data(), verbose=False)
    validated = lines(tmp_path / "val" / "wrong_predictions.jsonl")
    assert [each["row"] for each in validated] == [4, 8, 1, 3]
    assert validated == lines(tmp_path / "wrong_predictions.jsonl")
    assert "| val/accuracy | 0.5556 |\n" in (tmp_path / "val.md").read_text()


class Learning(Known):
    """Has the accuracies 1/9, 7/9, 5/9, … in the epochs, whatever it learns."""

    def on_validation_epoch_start(self) -> None:
        right = [1, 7, 5][self.current_epoch]
        given = torch.tensor(GIVEN)
        answers = torch.where(torch.arange(9) < right, given, (given + 1) % 3)
        self.said = torch.nn.functional.one_hot(answers, 3).float()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return TextClassificationModule.forward_batch(self, batch).sum()


def test_a_fit_tells_the_metrics_of_its_best_checkpoint(bert: str, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(max_epochs=3, num_sanity_val_steps=2, callbacks=[ResultsWriter(tmp_path)])
    trainer.fit(Learning(bert, labels=LABELS), data())
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["val/accuracy"] == pytest.approx(7 / 9)
    assert {name.partition("/")[0] for name in written} == {"val"}


class Lowering(Learning):
    """Calls the lowest accuracy the best."""

    monitor = ("val/accuracy", "min")


def test_the_best_may_be_the_lowest(bert: str, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(max_epochs=3, callbacks=[ResultsWriter(tmp_path)])
    trainer.fit(Lowering(bert, labels=LABELS), data())
    assert json.loads((tmp_path / "metrics.json").read_text())["val/accuracy"] < 7 / 9


class Diverging(Learning):
    """Has no finite accuracy in its first epoch."""

    def figures(self, measured: dict[str, Any]) -> dict[str, Tensor]:
        figures = super().figures(measured)
        return figures if self.current_epoch else dict.fromkeys(figures, torch.tensor(torch.nan))


def test_a_metric_that_is_not_finite_is_none_of_the_best(bert: str, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(max_epochs=3, callbacks=[ResultsWriter(tmp_path)])
    trainer.fit(Diverging(bert, labels=LABELS), data())
    assert json.loads((tmp_path / "metrics.json").read_text())["val/accuracy"] == pytest.approx(7 / 9)


def test_a_fit_that_is_resumed_remembers_the_best_from_before(bert: str, data: Data, tmp_path: Path) -> None:
    trainer = plain_trainer(max_epochs=2, callbacks=[ResultsWriter(tmp_path / "run")])
    trainer.fit(Learning(bert, labels=LABELS), data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = plain_trainer(max_epochs=3, callbacks=[ResultsWriter(tmp_path / "run")])
    resumed.fit(Learning(bert, labels=LABELS), data(), ckpt_path=str(tmp_path / "x.ckpt"))
    assert resumed.callback_metrics["val/accuracy"] == pytest.approx(5 / 9)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val/accuracy"] == pytest.approx(7 / 9)


def test_a_figure_that_is_undefined_is_null_and_the_file_is_json(bert: str, data: Data, tmp_path: Path) -> None:
    module = Known(bert, problem_type="regression")
    module.said = torch.ones(3, 1)  # a constant correlates with nothing
    rows = data([1.0, 2.0, 2.5], TEXTS[:3], problem_type="regression")
    plain_trainer(callbacks=[ResultsWriter(tmp_path)]).test(module, rows, verbose=False)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert written["test/pearson"] is None
