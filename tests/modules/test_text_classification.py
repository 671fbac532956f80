import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_nlp import TextClassificationDataModule, TextClassificationModule
from lit_nlp.data.base import TextDataModule
from lit_nlp.errors import CheckpointError, ConfigError, NonFiniteError, UserError
from lit_nlp.explain import attribute
from lit_nlp.modules.base import TransformerModule
from lit_nlp.modules.text_classification import ProblemType, multi_label_losses, single_label_losses
from tests.backbones import CORPUS
from tests.contract import Contract, plain_trainer, save, write_rows

LABELS = ["cold", "mild", "hot"]


class TestSingleLabel(Contract):
    texts = CORPUS

    def data(self, backbone: str, folder: Path) -> TextDataModule:
        rows = [{"text": text, "label": LABELS[row % 3]} for row, text in enumerate(CORPUS)]
        return data_module(backbone, folder, rows)

    def module(self, backbone: str, data: Any, **arguments: Any) -> TransformerModule:
        return TextClassificationModule(
            backbone, labels=data.labels, max_length=data.max_length, doc_stride=data.doc_stride, **arguments
        )


class TestPairsInWindows(TestSingleLabel):
    texts = tuple((text, "a film") for text in CORPUS)

    def data(self, backbone: str, folder: Path) -> TextDataModule:
        rows = [{"text": one, "text_pair": other, "label": i % 3} for i, (one, other) in enumerate(self.texts)]
        return data_module(backbone, folder, rows, max_length=16, doc_stride=2)


class TestMultiLabel(TestSingleLabel):
    def data(self, backbone: str, folder: Path) -> TextDataModule:
        rows = [{"text": text, "label": "|".join(LABELS[: i % 3 + 1])} for i, text in enumerate(CORPUS)]
        return data_module(backbone, folder, rows, problem_type="multi_label")

    def module(self, backbone: str, data: Any, **arguments: Any) -> TransformerModule:
        return super().module(backbone, data, problem_type="multi_label", **arguments)


class TestRegression(TestSingleLabel):
    def data(self, backbone: str, folder: Path) -> TextDataModule:
        rows = [{"text": text, "label": i / 4} for i, text in enumerate(CORPUS)]
        return data_module(backbone, folder, rows, problem_type="regression")

    def module(self, backbone: str, data: Any, **arguments: Any) -> TransformerModule:
        return super().module(backbone, data, problem_type="regression", **arguments)


def data_module(backbone: str, folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> TextDataModule:
    source = write_rows(folder / "rows.jsonl", rows)
    return TextClassificationDataModule(
        backbone,
        **{"train": source, "val": source, "test": source, "predict": source},
        **{"batch_size": 4, "max_length": 48, **arguments},
    )


# Losses, against formulas written out in float64

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 4.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 0, 1])
SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 3.0, 1.5], dtype=torch.float64)


def log_softmax(row: Sequence[float]) -> list[float]:
    return [value - math.log(math.fsum(map(math.exp, row))) for value in row]


def log_sigmoid(value: float) -> float:
    return -math.log(1 + math.exp(-value))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_smoothed_labels_weighted_by_class(smoothing: float, weights: Tensor | None) -> None:
    losses = single_label_losses(LOGITS, CLASSES, weights, smoothing=smoothing, gamma=0.0)
    w = [1.0] * 3 if weights is None else weights.tolist()
    expected = []
    for row, label in zip(LOGITS.tolist(), CLASSES.tolist(), strict=True):
        shares = [smoothing / 3 + (1 - smoothing) * (label == c) for c in range(3)]
        expected.append(-math.fsum(shares[c] * w[c] * log_softmax(row)[c] for c in range(3)))
    total = math.fsum(w[label] for label in CLASSES.tolist())
    assert losses.tolist() == pytest.approx([loss * 4 / total for loss in expected], rel=1e-12)
    assert losses.mean().item() == pytest.approx(math.fsum(expected) / total, rel=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_focal_loss_discounts_what_is_known_already(weights: Tensor | None) -> None:
    losses = single_label_losses(LOGITS, CLASSES, weights, smoothing=0.0, gamma=2.0)
    w = [1.0] * 3 if weights is None else weights.tolist()
    logs = [log_softmax(row)[label] for row, label in zip(LOGITS.tolist(), CLASSES.tolist(), strict=True)]
    total = math.fsum(w[label] for label in CLASSES.tolist())
    expected = [
        -w[label] * (1 - math.exp(log)) ** 2 * log * 4 / total
        for label, log in zip(CLASSES.tolist(), logs, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_losses_slope_is_finite_where_the_model_is_sure(gamma: float) -> None:
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    single = single_label_losses(logits, torch.tensor([0]), None, smoothing=0.0, gamma=gamma)
    several = multi_label_losses(logits, torch.tensor([[1.0, 0.0]]), None, smoothing=0.0, gamma=gamma)
    (single.sum() + several.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_with_several_labels_each_class_has_its_own_cross_entropy(
    gamma: float, smoothing: float, weights: Tensor | None
) -> None:
    losses = multi_label_losses(LOGITS, SEVERAL, weights, smoothing=smoothing, gamma=gamma)
    w = [1.0] * 3 if weights is None else weights.tolist()
    expected = []
    for row, labels in zip(LOGITS.tolist(), SEVERAL.tolist(), strict=True):
        terms = []
        for value, label, weight in zip(row, labels, w, strict=True):
            yes = label * (1 - smoothing) + smoothing / 2
            loss = -weight * yes * log_sigmoid(value) - (1 - yes) * log_sigmoid(-value)
            right = math.exp(log_sigmoid(value if label else -value))
            terms.append((1 - right) ** gamma * loss)
        expected.append(math.fsum(terms) / 3)
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_score_has_the_squared_error(bert: str) -> None:
    module = TextClassificationModule(bert, problem_type="regression")
    losses = module.row_losses(torch.tensor([[1.0], [-2.0]]), {"labels": torch.tensor([[0.5], [1.0]])})
    assert losses.tolist() == [0.25, 9.0]


def test_a_module_trains_on_the_loss_that_its_arguments_ask_for(bert: str) -> None:
    outputs, batch = LOGITS.float(), {"labels": CLASSES}
    module = TextClassificationModule(bert, labels=LABELS, class_weights=WEIGHTS.tolist(), label_smoothing=0.2)
    reference = torch.nn.CrossEntropyLoss(WEIGHTS.float(), label_smoothing=0.2)(outputs, CLASSES)
    assert module.row_losses(outputs, batch).mean().item() == pytest.approx(reference.item())
    focal = TextClassificationModule(bert, labels=LABELS, focal_gamma=2.0)
    assert torch.equal(
        focal.row_losses(outputs, batch), single_label_losses(outputs, CLASSES, None, smoothing=0.0, gamma=2.0)
    )
    several = TextClassificationModule(
        bert, labels=LABELS, problem_type="multi_label", class_weights=WEIGHTS.tolist(), focal_gamma=1.0
    )
    assert torch.equal(
        several.row_losses(outputs, {"labels": SEVERAL}),
        multi_label_losses(outputs, SEVERAL.float(), WEIGHTS.float(), smoothing=0.0, gamma=1.0),
    )


def test_balanced_weights_are_inverse_to_the_counts(bert: str) -> None:
    counts = [6, 3, 1]
    module = TextClassificationModule(bert, labels=LABELS, class_weights="balanced", label_counts=counts)
    given = np.repeat(np.arange(3), counts)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=given)
    assert module.class_weights is not None
    assert module.class_weights.tolist() == pytest.approx(expected.tolist())


def test_weights_may_be_whole_numbers(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python lets an int pass for a float
    module = TextClassificationModule(bert, labels=LABELS, class_weights=[1, 2, 3])
    assert module.row_losses(LOGITS.float(), {"labels": CLASSES}).isfinite().all()


# Metrics, against sklearn and scipy


class Known(TextClassificationModule):
    """Says what it is told to say of each row."""

    said: Tensor

    def forward_batch(self, batch: Any) -> Tensor:
        return self.said[batch["row"]]


class RowLosses(Callback):
    """Keeps what the test step says of each row's loss."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.kept += [row.loss for row in outputs["rows"]]


def measured(
    bert: str, said: Tensor, given: Tensor, *callbacks: Callback, **arguments: Any
) -> tuple[dict[str, float], Known]:
    """Test a module that says `said` in uneven batches: 4, 4, … and the rest."""
    module = Known(bert, **arguments)
    module.said = said
    batches: Any = [{"row": rows, "labels": given[rows]} for rows in torch.arange(len(said)).split(4)]
    assert len(batches[-1]["row"]) < 4
    trainer = plain_trainer(callbacks=list(callbacks))
    (metrics,) = trainer.test(module, DataLoader(batches, batch_size=None), verbose=False)
    (validated,) = trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    assert {name.replace("val/", "test/"): value for name, value in validated.items()} == metrics
    return {name.removeprefix("test/"): value for name, value in metrics.items()}, module


def test_single_label_metrics_are_sklearns(bert: str) -> None:
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(43, 4, generator=generator) * 2
    labels = torch.randint(0, 3, (43,), generator=generator)  # the fourth class is predicted but never right
    names = [*LABELS, "boiling"]
    metrics, module = measured(bert, said, labels, labels=names)
    predicted, given = said.argmax(1).numpy(), labels.numpy()
    assert metrics.pop("loss") == pytest.approx(torch.nn.CrossEntropyLoss()(said, labels).item(), rel=1e-5)
    assert metrics.pop("accuracy") == pytest.approx(sklearn.metrics.accuracy_score(given, predicted))
    assert metrics.pop("f1") == pytest.approx(sklearn.metrics.f1_score(given, predicted, average="macro"))
    assert metrics.pop("calibration_error") == pytest.approx(calibration_error(said, labels), rel=1e-5)
    precision, recall, _, _ = sklearn.metrics.precision_recall_fscore_support(
        given, predicted, labels=range(4), zero_division=0
    )
    for name, one, other in zip(names, precision, recall, strict=True):
        assert metrics.pop(f"precision/{name}") == pytest.approx(one)
        assert metrics.pop(f"recall/{name}") == pytest.approx(other)
    assert metrics == {}
    assert module.confusion is not None
    assert module.confusion.tolist() == sklearn.metrics.confusion_matrix(given, predicted, labels=range(4)).tolist()


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """The mean distance of confidence and accuracy in 15 bins of confidence, weighted by their rows."""
    rows = [(max(p), p.index(max(p)) == y) for p, y in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)]
    error = 0.0
    for number in range(15):
        inside = [(p, right) for p, right in rows if number / 15 < p <= (number + 1) / 15]
        error += abs(sum(right for _, right in inside) - sum(p for p, _ in inside)) / len(rows)
    return error


def test_multi_label_metrics_are_sklearns(bert: str) -> None:
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(43, 3, generator=generator)
    labels = torch.randint(0, 2, (43, 3), generator=generator).float()
    metrics, _ = measured(bert, said, labels, labels=LABELS, problem_type="multi_label")
    scores, predicted, given = said.sigmoid().numpy(), (said > 0).numpy(), labels.numpy()
    assert metrics.pop("loss") == pytest.approx(torch.nn.BCEWithLogitsLoss()(said, labels).item(), rel=1e-5)
    assert metrics.pop("exact_match") == pytest.approx(sklearn.metrics.accuracy_score(given, predicted))
    for name, average in (("f1", "macro"), ("f1_micro", "micro")):
        assert metrics.pop(name) == pytest.approx(sklearn.metrics.f1_score(given, predicted, average=average))
    expected = sklearn.metrics.average_precision_score(given, scores, average="macro")
    assert metrics.pop("average_precision") == pytest.approx(expected, rel=1e-5)
    precision, recall, _, _ = sklearn.metrics.precision_recall_fscore_support(given, predicted)
    for name, one, other in zip(LABELS, precision, recall, strict=True):
        assert metrics.pop(f"precision/{name}") == pytest.approx(one)
        assert metrics.pop(f"recall/{name}") == pytest.approx(other)
    assert metrics == {}


def test_regression_metrics_are_sklearns_and_scipys(bert: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(43, 1, generator=generator)
    said = labels + torch.randn(43, 1, generator=generator)
    metrics, _ = measured(bert, said, labels, problem_type="regression")
    one, other = labels[:, 0].numpy(), said[:, 0].numpy()
    assert metrics == pytest.approx(
        {
            "loss": sklearn.metrics.mean_squared_error(one, other),
            "mean_squared_error": sklearn.metrics.mean_squared_error(one, other),
            "mean_absolute_error": sklearn.metrics.mean_absolute_error(one, other),
            "pearson": scipy.stats.pearsonr(one, other).statistic,
            "spearman": scipy.stats.spearmanr(one, other).statistic,
            "r2": sklearn.metrics.r2_score(one, other),
        },
        rel=1e-4,
    )


def test_a_single_score_has_no_r2_and_no_correlation(bert: str) -> None:
    module = Known(bert, problem_type="regression")
    module.said = torch.tensor([[1.0]])
    batch: Any = [{"row": torch.tensor([0]), "labels": torch.tensor([[3.0]])}]
    (metrics,) = plain_trainer().test(module, DataLoader(batch, batch_size=None), verbose=False)
    assert metrics["test/mean_absolute_error"] == 2.0
    assert math.isnan(metrics["test/r2"])


def test_each_validation_is_measured_for_itself(bert: str) -> None:
    module = Known(bert, labels=LABELS)
    trainer = plain_trainer()
    labels = torch.zeros(4, dtype=torch.long)
    loader = DataLoader([{"row": torch.arange(4), "labels": labels}], batch_size=None)
    for right in (True, False, True):
        module.said = torch.tensor([[1.0, 0.0, 0.0] if right else [0.0, 1.0, 0.0]] * 4)
        (metrics,) = trainer.validate(module, loader, verbose=False)
        assert metrics["val/accuracy"] == float(right)


def test_a_rows_loss_is_told_in_nats_whatever_is_trained_on_and_whoever_shares_its_batch(bert: str) -> None:
    rows, said, given = RowLosses(), LOGITS.repeat(2, 1)[:7], CLASSES.repeat(2)[:7]
    trained_on = {"class_weights": [1.0, 10.0, 0.1], "label_smoothing": 0.3}
    measured(bert, said.float(), given, rows, labels=LABELS, **trained_on)
    expected = [-log_softmax(row)[label] for row, label in zip(said.tolist(), given.tolist(), strict=True)]
    assert rows.kept == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [
        ("single_label", ("val/accuracy", "max")),
        ("multi_label", ("val/f1", "max")),
        ("regression", ("val/mean_squared_error", "min")),
    ],
)
def test_the_monitored_metric_is_one_that_is_logged(
    problem_type: ProblemType, expected: tuple[str, str], bert: str
) -> None:
    labels = None if problem_type == "regression" else LABELS
    module = TextClassificationModule(bert, labels=labels, problem_type=problem_type)
    assert module.monitor == expected
    assert expected[0].removeprefix("val/") in module.new_metrics()


# Predictions


def test_predictions_come_in_the_order_of_the_texts_whatever_the_batches(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    texts = [*CORPUS, "good", CORPUS[0]]
    alone = [module.predict_texts([text])[0] for text in texts]
    for batch_size in (1, 3, 32):
        found = module.predict_texts(texts, batch_size=batch_size)
        assert [prediction.text for prediction in found] == texts
        for prediction, expected in zip(found, alone, strict=True):
            assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert alone[0] == alone[-1]


def test_predicting_leaves_the_module_as_it_was(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS).train()
    module.model.bert.embeddings.eval()
    modes = [part.training for part in module.modules()]
    first, second = module.predict_texts(CORPUS), module.predict_texts(CORPUS)
    assert first == second, "dropout is off"
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()


def test_no_texts_have_no_predictions(bert: str) -> None:
    assert TextClassificationModule(bert, labels=LABELS).predict_texts([]) == []


@pytest.mark.parametrize("pairs", [None, True])
def test_what_is_no_list_of_texts_is_refused(bert: str, pairs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    module = TextClassificationModule(bert, labels=LABELS, pairs=pairs)
    for texts in "a film", "", None, iter(["a film"]):
        with pytest.raises(ConfigError, match="texts: expected a list of texts, got "):
            module.predict_texts(texts)


def test_both_texts_of_a_pair_decide_and_are_told(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    one, other = module.predict_texts([("good", "a dull film"), ("good", "a warm film")])
    assert (one.text, one.text_pair) == ("good", "a dull film")
    assert one.probabilities != other.probabilities
    with pytest.raises(ConfigError, match="single texts and pairs are mixed"):
        module.predict_texts(["good", ("good", "bad")])


def test_a_model_trained_on_pairs_is_asked_of_pairs_only_and_the_reverse(bert: str) -> None:
    of_pairs = TextClassificationModule(bert, labels=LABELS, pairs=True)
    with pytest.raises(
        ConfigError, match=r"texts: the model was trained on pairs of texts; give it \(text, text_pair\)"
    ):
        of_pairs.predict_texts(["good"])
    with pytest.raises(ConfigError, match="texts: the model was trained on single texts; give it strings"):
        TextClassificationModule(bert, labels=LABELS, pairs=False).predict_texts([("good", "bad")])
    assert of_pairs.predict_texts([("good", "bad")])


def test_a_text_without_tokens_is_refused_where_the_tokenizer_adds_none(bert: str, llama: str) -> None:
    assert TextClassificationModule(bert, labels=LABELS).predict_texts([""])
    with pytest.raises(ConfigError, match=r"texts: text 1 \(counted from 0\) has no tokens; leave it out"):
        TextClassificationModule(llama, labels=LABELS).predict_texts(["good", ""])


def test_a_text_in_windows_has_the_mean_of_their_logits(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS, max_length=8, doc_stride=2).eval()
    texts = ["good", " ".join(CORPUS[:2]), "a bad film"]
    encoded = module.encode(texts)
    windows = [encoded.row.count(text) for text in range(3)]
    assert windows[0] == 1 < windows[1]
    with torch.no_grad():
        each = [module(**module.pad([sequence]))[0] for sequence in encoded.sequences]
        batch = module.pad(encoded.sequences) | {"row": torch.tensor(encoded.row)}
        pooled = module.forward_batch(batch)
    expected = torch.stack(
        [torch.stack([each[i] for i, row in enumerate(encoded.row) if row == text]).mean(0) for text in range(3)]
    )
    torch.testing.assert_close(pooled, expected)
    for prediction, logits in zip(module.predict_texts(texts, batch_size=2), expected, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)


def test_words_of_a_text_in_windows_add_up_to_the_mean_of_the_windows_changes(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS, max_length=8, doc_stride=2).eval()
    text, table, tokenizer = " ".join(CORPUS[:2]), module.model.get_input_embeddings(), module.tokenizer
    (found,) = attribute(module, [text], target="hot", tolerance=0.001)
    changes = []
    for sequence in module.encode([text]).sequences:
        ids = torch.tensor([sequence["input_ids"]])
        ends = torch.isin(ids, torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id]))
        blank = torch.where(ends, ids, tokenizer.pad_token_id)
        with torch.no_grad():
            full, empty = (module.model(inputs_embeds=table(each)).logits[0, 2] for each in (ids, blank))
        changes.append(float(full - empty))
    assert len(changes) > 1
    credit = sum(word.score for word in found.words) + found.special_score
    assert credit == pytest.approx(sum(changes) / len(changes), rel=0.01)


def test_a_prediction_is_the_most_probable_class(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    (prediction,) = module.predictions(torch.tensor([[0.0, math.log(2), math.log(5)]]), ["x"], [7])
    assert (prediction.text, prediction.label, prediction.row) == ("x", "hot", 7)
    assert prediction.probability == pytest.approx(5 / 8)
    assert prediction.probabilities == pytest.approx({"cold": 1 / 8, "mild": 2 / 8, "hot": 5 / 8})


def test_with_several_labels_all_that_are_more_likely_than_not_are_predicted(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS, problem_type="multi_label")
    (prediction,) = module.predictions(torch.tensor([[math.log(3), -math.log(4), 0.0]]), ["x"])
    assert prediction.label == ["cold", "hot"]
    assert prediction.probabilities == pytest.approx({"cold": 0.75, "mild": 0.2, "hot": 0.5})
    assert prediction.probability == pytest.approx(0.75 * 0.8 * 0.5)


def test_a_score_has_no_probability(bert: str) -> None:
    module = TextClassificationModule(bert, problem_type="regression")
    (prediction,) = module.predictions(torch.tensor([[2.5]]), ["x"])
    assert (prediction.label, prediction.probability, prediction.probabilities) == (2.5, None, {})


@pytest.mark.parametrize(
    ("problem_type", "target", "label"),
    [
        ("single_label", torch.tensor(2), "hot"),
        ("multi_label", torch.tensor([1.0, 0.0, 1.0]), ["cold", "hot"]),
        ("regression", torch.tensor([0.5]), 0.5),
    ],
)
def test_a_target_has_the_name_that_a_prediction_would_have(
    problem_type: ProblemType, target: Tensor, label: object, bert: str
) -> None:
    labels = None if problem_type == "regression" else LABELS
    module = TextClassificationModule(bert, labels=labels, problem_type=problem_type)
    assert module.label_of(target) == label


def test_the_runner_up_is_the_most_probable_of_the_other_classes(bert: str) -> None:
    module = TextClassificationModule(bert, labels=["a", "b", "c"])
    said = module.predict_texts(CORPUS[:3])
    found = module.attribution_targets(CORPUS[:3], contrast="runner-up")
    for one, target in zip(said, found, strict=True):
        first, second, _ = sorted(one.probabilities, key=lambda label: -one.probabilities[label])
        assert target.name == f"{first} rather than {second}"
    assert module.target_choices() == [("a", None), ("b", None), ("c", None), (None, "runner-up")]


def test_classes_that_are_given_are_explained_in_place_of_the_predicted_ones(bert: str) -> None:
    module = TextClassificationModule(bert, labels=["a", "b", "c"])
    given = ["a", "b", "c"]
    found = module.attribution_targets(CORPUS[:3], outputs=given)
    assert [each.name for each in found] == given
    assert [each.readings[0].terms for each in found] == [[(1.0, [0])], [(1.0, [1])], [(1.0, [2])]]
    # Of those, one can't be told apart from itself.
    assert [each.name for each in module.attribution_targets(CORPUS[:3], outputs=given, contrast="b")] == [
        "a rather than b",
        "c rather than b",
    ]
    for wrong, problem in (
        (["a"], "outputs: there are 3 texts but 1 outputs"),
        (["a", "b", "d"], "outputs: 'd' is not one of a, b, c"),
        ("abc", "outputs: expected a list of outputs, got one output"),
    ):
        with pytest.raises(ConfigError, match=problem):
            module.attribution_targets(CORPUS[:3], outputs=wrong)
    for several in (
        TextClassificationModule(bert, problem_type="regression"),
        TextClassificationModule(bert, labels=["a", "b"], problem_type="multi_label"),
    ):
        with pytest.raises(ConfigError, match="outputs: a text has a score, or any number of classes"):
            several.attribution_targets(CORPUS[:1], outputs=["a"])


def test_of_several_labels_the_most_wrong_are_others_than_were_given_in_any_order(bert: str) -> None:
    module = TextClassificationModule(bert, labels=["a", "b", "c"], problem_type="multi_label")
    with torch.no_grad():
        module.head().bias.copy_(torch.tensor([5.0, 5.0, -5.0]))
    assert module.most_wrong(CORPUS[:3], [["b", "a"], ["a"], ["a", "b"]]) == [1]


def test_the_most_wrong_scores_are_the_farthest_off(bert: str) -> None:
    module = TextClassificationModule(bert, problem_type="regression")
    said = [float(one.label) for one in module.predict_texts(CORPUS[:3])]
    assert module.most_wrong(CORPUS[:3], [said[0] - 1, said[1], said[2] + 2]) == [2, 0]


def test_the_score_is_the_logit_of_the_target(bert: str) -> None:
    module = TextClassificationModule(bert, labels=LABELS)
    assert torch.equal(module.score(LOGITS, torch.tensor([0, 1, 2, 0])), LOGITS[range(4), [0, 1, 2, 0]])


# Backbones


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_logits_are_those_of_transformers_own_classifier(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    module = TextClassificationModule(folder, labels=LABELS).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    theirs = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, pad_token_id=tokenizer.pad_token_id
    )
    theirs.load_state_dict(module.model.state_dict())
    inputs = tokenizer(CORPUS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.eval()(**inputs).logits
        found = module(**module.pad(module.encode(CORPUS).sequences))
    assert torch.equal(found, expected)
    assert module.model.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("texts", [CORPUS, ["good</s>", CORPUS[0], "bad</s></s>"]])
def test_a_decoder_reads_the_last_token_that_is_not_padding(texts: list[str], llama: str) -> None:
    module = TextClassificationModule(llama, labels=LABELS).eval()
    assert module.tokenizer.pad_token == module.tokenizer.eos_token == "</s>"
    sequences = module.encode(texts).sequences
    batch = module.pad(sequences)
    assert not batch["attention_mask"].all()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "padding stands on the right"
    with torch.no_grad():
        alone = torch.cat([module(**module.pad([sequence])) for sequence in sequences])
        torch.testing.assert_close(module(**batch), alone)
        # the head at the last token, taken by hand
        hidden = module.model.model(**module.pad(sequences[1:2])).last_hidden_state[:, -1]
        torch.testing.assert_close(module.model.score(hidden), alone[1:2])


def test_the_end_of_text_token_learns_although_it_pads(llama: str, bert: str) -> None:
    module = TextClassificationModule(llama, labels=LABELS)
    end = module.tokenizer.eos_token_id
    batch = module.pad(module.encode(["good</s>bad", "a longer text that is not the last of its batch"]).sequences)
    module(**batch).square().sum().backward()
    gradient = module.model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient[end].abs().sum() > 0
    assert TextClassificationModule(bert, labels=LABELS).model.get_input_embeddings().padding_idx == 0


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model: labels must name at least 2 classes, got None"),
        ({"labels": ["one"]}, "model: labels must name at least 2 classes, got ['one']"),
        ({"labels": ["a", "b", "a"]}, "model: labels must differ, got ['a', 'b', 'a']"),
        ({"labels": LABELS, "class_weights": [1.0, 2.0]}, "model: 2 class_weights for 3 classes"),
        (
            {"labels": LABELS, "class_weights": "balanced"},
            "model.class_weights: balanced class_weights need training rows of every class, got label_counts=None;"
            " give the weights as a list",
        ),
        (
            {"labels": LABELS, "class_weights": "balanced", "label_counts": [3, 0, 2]},
            "model.class_weights: balanced class_weights need training rows of every class,"
            " got label_counts=[3, 0, 2]; give the weights as a list",
        ),
        (
            {"labels": LABELS, "class_weights": "balanced", "label_counts": [3, 2]},
            "model.class_weights: balanced class_weights need training rows of every class,"
            " got label_counts=[3, 2]; give the weights as a list",
        ),
        (
            {"labels": LABELS, "class_weights": "balanced", "problem_type": "multi_label", "label_counts": [1, 1, 1]},
            "model: balanced class_weights go with single_label only; give a list",
        ),
        (
            {"problem_type": "regression", "class_weights": [1.0]},
            "model: class_weights, focal_gamma and label_smoothing don't go with regression",
        ),
        (
            {"problem_type": "regression", "focal_gamma": 1.0},
            "model: class_weights, focal_gamma and label_smoothing don't go with regression",
        ),
        (
            {"labels": LABELS, "focal_gamma": 1.0, "label_smoothing": 0.1},
            "model: focal_gamma and label_smoothing don't go together; choose one",
        ),
        ({"labels": LABELS, "focal_gamma": -1.0}, "model: focal_gamma must be at least 0, got -1.0"),
        (
            {"labels": LABELS, "class_weights": [1.0, -1.0, 1.0]},
            "model: class_weights must be above 0, got [1.0, -1.0, 1.0]",
        ),
        (
            {"labels": LABELS, "class_weights": [1.0, 0.0, 1.0]},
            "model: class_weights must be above 0, got [1.0, 0.0, 1.0]",
        ),
        (
            {"problem_type": "regression", "label_smoothing": 0.1},
            "model: class_weights, focal_gamma and label_smoothing don't go with regression",
        ),
        (
            {"problem_type": "regression", "labels": ["a", "b"]},
            "model: labels must name one score for regression, got ['a', 'b']",
        ),
    ],
)
def test_arguments_that_are_wrong_or_do_not_go_together_are_named(
    arguments: dict[str, Any], message: str, bert: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        TextClassificationModule(bert, **arguments)
    assert str(raised.value) == message


def test_what_is_no_number_is_not_told(bert: str, tmp_path: Path) -> None:
    module = TextClassificationModule(bert, labels=["a", "b"])
    with torch.no_grad():
        module.model.classifier.bias[0] = torch.nan
    with pytest.raises(UserError, match=r"^what the model says is no finite number; take a checkpoint from before"):
        module.predict_texts(["a film"])
    # While it is fitted, the update tells; what is validated before is not the last word.
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(CORPUS)])
    data = TextClassificationDataModule(bert, train=rows, val=rows, test=rows, labels=["a", "b"])
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 0"):
        plain_trainer(num_sanity_val_steps=1).fit(module, data)
    with pytest.raises(UserError, match="the model says is no finite number"):
        plain_trainer().test(module, data)


def test_a_checkpoint_of_labels_in_other_places_is_not_taken(bert: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(CORPUS)])
    data = TextClassificationDataModule(bert, train=rows, val=rows, test=rows, labels=["a", "b"])
    path = save(TextClassificationModule(bert, labels=["b", "a"]), tmp_path / "x.ckpt")
    for run in plain_trainer().fit, plain_trainer().test:
        with pytest.raises(
            CheckpointError, match=r"^ckpt_path: the checkpoint was trained with the labels \['b', 'a'\]"
        ):
            run(TextClassificationModule(bert, labels=["a", "b"]), datamodule=data, ckpt_path=path)


@pytest.mark.parametrize("backbone", ["bert", "roberta", "llama"])
def test_a_score_is_not_rounded_to_half_precision(backbone: str, request: pytest.FixtureRequest) -> None:
    module = TextClassificationModule(request.getfixturevalue(backbone), problem_type="regression").eval()
    with torch.autocast("cpu", torch.bfloat16):
        scores = torch.tensor([each.label for each in module.predict_texts(CORPUS)])
    assert not torch.equal(scores, scores.bfloat16().float())
    module.bfloat16()
    assert module(**module.pad(module.encode(CORPUS).sequences)).dtype == torch.float32


def test_two_processes_measure_what_one_does(bert: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(CORPUS[:5])]
    data = TextClassificationDataModule(
        bert, test=write_rows(tmp_path / "rows.jsonl", rows), labels=["a", "b"], batch_size=2
    )
    module = TextClassificationModule(bert, labels=["a", "b"])
    (one,) = plain_trainer().test(module, data, verbose=False)
    (two,) = plain_trainer(strategy="ddp_spawn", devices=2).test(module, data, verbose=False)
    assert two == pytest.approx(one, nan_ok=True)
