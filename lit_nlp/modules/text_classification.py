"""Text classification: one label, several, or a score, by any encoder or decoder-only backbone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics import classification as tc
from torchmetrics import regression as tr
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from lit_nlp.errors import CheckpointError, ConfigError, TargetError, known_name, require
from lit_nlp.files import json_lines
from lit_nlp.metrics.calibration import CalibrationError
from lit_nlp.modules.base import Batch, EvaluationSplit, Files, TransformerModule, as_json
from lit_nlp.modules.first_token import first_token_only
from lit_nlp.modules.heads import Float32Linear, linear_layers, read_by
from lit_nlp.targets import RUNNER_UP, AttributionTarget, Label, Place, Reading, stand_elsewhere
from lit_nlp.tokenization import Encoded, Text, Tokens, by_length, check_as_many, check_texts, encode

# Keeps the slope of (1 - p)^gamma finite for gamma below 1.
_TINY = 1e-6

ProblemType = Literal["single_label", "multi_label", "regression"]


# Not frozen: Lightning copies what predict_step returns field by field.
@dataclass
class ClassificationPrediction:
    """What the module says of one text.

    Attributes:
        text: The text; None where the module saw its tokens only.
        label: The most probable class, or all classes with a probability of at least a half, or the score.
        probability: Of the label; for several labels, that each class is decided rightly; None for a score.
        probabilities: Class -> probability; empty for a score.
        text_pair: The second text of a pair.
        row: The row's number in its split, where the data module told it.
    """

    text: str | None
    label: str | list[str] | float
    probability: float | None
    probabilities: dict[str, float]
    text_pair: str | None = None
    row: int | None = None


@dataclass
class Tested:
    """What a test found of one row.

    Attributes:
        prediction: What the module says.
        label: What the data says.
        loss: The row's own, in nats; for a score squared.
    """

    prediction: ClassificationPrediction
    label: str | list[str] | float
    loss: float

    @property
    def row(self) -> int | None:
        """The row's number in its split."""
        return self.prediction.row

    def as_json(self) -> dict[str, Any]:
        """Return what is told of a wrong prediction: a prediction's fields, with the true `label`."""
        unit = "loss" if self.prediction.probability is None else "loss_nats"
        told = {"label": self.label, "prediction": self.prediction.label, unit: self.loss}
        return as_json(self.prediction) | told


class TextClassificationModule(TransformerModule):
    """A pretrained encoder or decoder with a classification head, all of it trained.

    Encoders pool as they were made to (BERT's first token); decoders pool the last token that isn't
    padding. A text that was split into windows has the mean of their logits.

    Args:
        labels: The classes' names, in the order of the logits. For regression, the score's name.
        problem_type: `single_label` (cross-entropy), `multi_label` (binary cross-entropy for each class)
            or `regression` (squared error).
        class_weights: A weight for each class, or `balanced`: rows / (classes * rows of the class), by
            `label_counts`; for several labels, a weight for each class's positives.
        label_counts: The training rows of each class.
        focal_gamma: Above 0, the focal loss: each row weighs (1 - p)^gamma, p being what the model
            gives its label (Lin et al. 2017, "Focal Loss for Dense Object Detection").
        doc_stride: Split texts longer than `max_length` into windows that overlap by this many tokens,
            when the module tokenises texts by itself. None: truncate.
        pairs: Whether it was trained on pairs of texts, and so is asked of pairs only. None: not told.
        kwargs: The arguments of `TransformerModule`.

    Raises:
        ConfigError: Labels are missing, or arguments don't go together.
    """

    task = "text_classification"

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: str,
        *,
        labels: list[str] | None = None,
        problem_type: ProblemType = "single_label",
        class_weights: Literal["balanced"] | list[float] | None = None,
        label_counts: list[int] | None = None,
        focal_gamma: float = 0.0,
        doc_stride: int | None = None,
        pairs: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.labels = labels or (["score"] if problem_type == "regression" else [])
        self.problem_type, self.focal_gamma, self.doc_stride, self.pairs = problem_type, focal_gamma, doc_stride, pairs
        if problem_type == "regression":
            require(len(self.labels) == 1, f"labels must name one score for regression, got {labels}", "model")
        else:
            require(len(self.labels) >= 2, f"labels must name at least 2 classes, got {labels}", "model")
        require(len(set(self.labels)) == len(self.labels), f"labels must differ, got {labels}", "model")
        super().__init__(backbone, **kwargs)
        self.save_hyperparameters()
        if class_weights is not None or focal_gamma or self.label_smoothing:
            require(
                problem_type != "regression",
                "class_weights, focal_gamma and label_smoothing don't go with regression",
                "model",
            )
        require(focal_gamma >= 0, f"focal_gamma must be at least 0, got {focal_gamma}", "model")
        require(
            not (focal_gamma and self.label_smoothing),
            "focal_gamma and label_smoothing don't go together; choose one",
            "model",
        )
        if problem_type == "regression":
            # A score of some 40 would be a multiple of 1/4 in bfloat16, and most scores the same.
            heads = [part for part in self.model.modules() if type(part) is nn.Linear and part.out_features == 1]
            for head in heads[-1:]:  # gates of experts have one output, too
                head.__class__ = Float32Linear
        weights = self._weights(class_weights, label_counts)
        self.register_buffer("class_weights", weights, persistent=False)
        self.confusion: Int[Tensor, "labels predictions"] | None = None

    def auto_class(self, config: PreTrainedConfig) -> Any:
        """Return the class that pools a sequence and classifies it."""
        return AutoModelForSequenceClassification

    def config_changes(self) -> dict[str, Any]:
        """Size the head and name its outputs."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def forward(self, **inputs: Int[Tensor, "sequences sequence"]) -> Float[Tensor, "sequences classes"]:
        """Return the logits of each sequence."""
        with first_token_only(self.model):
            return cast(Tensor, self.model(**inputs).logits)

    def forward_batch(self, batch: Batch) -> Float[Tensor, "rows classes"]:
        """Return the logits of each row, in float32."""
        logits = self(**self.inputs(batch)).float()
        # Where each row is one sequence, the GPU needn't be asked which of them belong together.
        one_each = "labels" in batch and len(batch["labels"]) == len(logits)
        return logits if one_each or "row" not in batch else self.pool(logits, batch["row"])

    def pool(
        self, logits: Float[Tensor, "sequences classes"], row: Int[Tensor, " sequences"]
    ) -> Float[Tensor, "rows classes"]:
        """Average the logits of the windows of each row; a row's windows stand together."""
        _, group, sizes = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        if len(sizes) == len(row):
            return logits
        sums = logits.new_zeros(len(sizes), logits.shape[1]).index_add(0, group, logits)
        return sums / sizes.unsqueeze(1)

    def row_losses(self, outputs: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's loss, scaled so that the mean over rows is the mean weighted by class."""
        return self._losses(outputs, batch, self.class_weights, smoothing=self.label_smoothing, gamma=self.focal_gamma)

    def own_losses(self, outputs: Float[Tensor, "rows classes"], batch: Batch) -> Float[Tensor, " rows"]:
        """Return each row's loss as if there were neither weights, smoothing, gamma, nor rows beside it."""
        return self._losses(outputs, batch, weights=None, smoothing=0.0, gamma=0.0)

    @property
    def differs_in_width_alone(self) -> bool:
        """Whether no row has several windows, of which batches hold now more and now less."""
        return self.doc_stride is None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take no weights that were trained with the classes in other places.

        Raises:
            CheckpointError: They were.
        """
        trained = checkpoint.get("hyper_parameters", {}).get("labels") or self.labels
        if stand_elsewhere(self.labels, trained):
            problem = f"the checkpoint was trained with the labels {trained}, the module has {self.labels}"
            raise CheckpointError(problem, where="ckpt_path", mend="give the module those of the checkpoint")
        super().on_load_checkpoint(checkpoint)

    # Evaluation

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that tells the best checkpoint, and its direction."""
        if self.problem_type == "regression":
            return "val/mean_squared_error", "min"
        return ("val/f1" if self.problem_type == "multi_label" else "val/accuracy"), "max"

    def new_metrics(self) -> MetricCollection:
        """Return the metrics that a split is measured by."""
        if self.problem_type == "regression":
            return MetricCollection(_regression_metrics())
        if self.problem_type == "multi_label":
            return MetricCollection(_multi_label_metrics(len(self.labels)))
        return MetricCollection(_single_label_metrics(len(self.labels)))

    def evaluate(self, split: EvaluationSplit, batch: Batch) -> list[Tested]:
        """Measure a batch."""
        logits = self.forward_batch(batch)
        losses = self.own_losses(logits, batch)
        self.log_loss(split, losses, len(losses))
        self.metrics_of(split).update(self.probabilities(logits), self._metric_labels(batch))
        labels = map(self.label_of, batch["labels"])
        return list(map(Tested, self._predictions_of(logits, batch), labels, losses.tolist()))

    def figures(self, measured: dict[str, Any]) -> dict[str, Tensor]:
        """Return all figures but the confusion matrix, those of a class under its name."""
        self.confusion = measured.pop("confusion", None)
        figures: dict[str, Tensor] = {}
        for name, value in measured.items():
            figures |= {name: value} if value.ndim == 0 else _by_label(name, value, self.labels)
        return figures

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ClassificationPrediction]:
        """Return the predictions of a batch, with its texts and row numbers where it holds them."""
        return self._predictions_of(self.forward_batch(batch), batch)

    def evaluation_files(self, rows: Sequence[Tested]) -> Files:
        """Return the rows whose prediction isn't their label, the highest loss first."""
        told = ((row.label != row.prediction.label, row.loss) for row in rows)
        found = np.fromiter(told, [("wrong", bool), ("loss", float)], len(rows))
        ranked = np.lexsort((-found["loss"], ~found["wrong"]))[: found["wrong"].sum()]
        return {"wrong_predictions.jsonl": json_lines(rows[int(i)].as_json() for i in ranked)}

    # Predictions

    def predict_texts(self, texts: Sequence[Text], batch_size: int = 32) -> list[ClassificationPrediction]:
        """Return what the module says of texts, or of pairs of texts, in their order.

        Args:
            texts: Texts, or tuples of two.
            batch_size: Sequences that are run at once.
        """
        encoded = self.encode(texts)
        if not texts:
            return []
        lengths = [len(tokens["input_ids"]) for tokens in encoded.sequences]
        logits = torch.empty(len(lengths), len(self.labels), device=self.device)
        with self.evaluating(), torch.inference_mode():
            for some in by_length(lengths, batch_size):
                logits[some] = self(**self.pad([encoded.sequences[i] for i in some])).float()
        return self.predictions(self.pool(logits, torch.tensor(encoded.row, device=self.device)), texts)

    def predictions(
        self,
        logits: Float[Tensor, "rows classes"],
        texts: Sequence[Text | None],
        rows: Sequence[int | None] | None = None,
    ) -> list[ClassificationPrediction]:
        """Return logits as typed predictions.

        Raises:
            UserError: They are no numbers, or infinite.
        """
        self.check_numbers(logits)
        probabilities = self.probabilities(logits).tolist()
        numbers = rows or [None] * len(texts)
        return [self._prediction(*each) for each in zip(probabilities, texts, numbers, strict=True)]

    def probabilities(self, logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """Return each class's probability; for regression the scores as they are."""
        if self.problem_type == "regression":
            return logits
        return logits.sigmoid() if self.problem_type == "multi_label" else logits.softmax(dim=1)

    def label_of(self, target: Float[Tensor, " classes"] | Int[Tensor, ""]) -> str | list[str] | float:
        """Return a row's target, as the loss takes it, as the name, names or score that it stands for."""
        if self.problem_type == "regression":
            return float(target)
        if self.problem_type == "multi_label":
            return [label for label, given in zip(self.labels, target.tolist(), strict=True) if given]
        return self.labels[int(target)]

    # Attribution

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Tokenise texts, or pairs of texts, as they were in training.

        Raises:
            ConfigError: It is no list of texts, single texts come where pairs were trained on, or the reverse; or a
                text has no tokens.
        """
        check_texts(texts)
        if self.pairs is not None and any(isinstance(text, tuple) != self.pairs for text in texts):
            trained, other = ("pairs of texts", "(text, text_pair)") if self.pairs else ("single texts", "strings")
            raise ConfigError(f"the model was trained on {trained}", where="texts", mend=f"give it {other}")
        encoded = encode(self.tokenizer, texts, max_length=self.max_length, doc_stride=self.doc_stride)
        for row, tokens in zip(encoded.row, encoded.sequences, strict=True):
            if not tokens["input_ids"]:  # a decoder's tokenizer may add none to an empty text
                raise ConfigError(f"text {row} (counted from 0) has no tokens", where="texts", mend="leave it out")
        if any(encoded.truncated):
            rank_zero_warn(
                f"{sum(encoded.truncated)} of {len(texts)} texts are longer than max_length={self.max_length} tokens"
                " and were truncated."
            )
        return encoded

    def targets(self) -> list[str]:
        """Return the names of what can be explained, in the order of the logits."""
        return self.labels

    def score(self, outputs: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the logit of each row's target class."""
        return outputs.gather(1, target.unsqueeze(1)).squeeze(1)

    def log_probability(
        self, outputs: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the log probability of each row's target class; of a regression the score itself."""
        outputs = outputs.float()
        if self.problem_type == "regression":
            return self.score(outputs, target)
        logs = F.logsigmoid(outputs) if self.problem_type == "multi_label" else outputs.log_softmax(1)
        return self.score(logs, target)

    def target_choices(self) -> list[tuple[str | None, str | None]]:
        """Return each class, and what is said rather than the class behind it; of a regression the score alone."""
        if self.problem_type == "regression":
            return [(None, None)]
        return [*((label, None) for label in self.labels), (None, RUNNER_UP)]

    def attribution_targets(
        self,
        texts: Sequence[Text],
        *,
        target: str | None = None,
        contrast: str | None = None,
        outputs: Sequence[Label] | None = None,
        batch_size: int = 16,
    ) -> list[AttributionTarget]:
        """Return a class's logit for each text, as the mean over its windows; by default that of the highest.

        Args:
            texts: Texts, or pairs of texts.
            target: The class.
            contrast: A class whose logit is taken off; `runner-up`: the most probable of the others.
            outputs: What is taken as the class of each text, where there is one. None: what the module says.
            batch_size: Sequences that are run at once.

        Raises:
            ConfigError: There is no such class, or there are more or fewer outputs than texts, or several a text.
            TargetError: Of no text the contrast is another class than the target.
        """
        check_as_many(texts, outputs=outputs)
        given = [None] * len(texts) if outputs is None else list(map(self._class_of, outputs))
        if target is not None:
            known_name(target, self.labels, "target")
        if contrast is not None and contrast == target:
            raise ConfigError(f"{contrast!r} can't be told apart from itself", where="contrast", mend="name another")
        if contrast is not None:
            known_name(contrast, self.labels + ([RUNNER_UP] if len(self.labels) > 1 else []), "contrast")
        encoded = self.encode(texts)
        readings: list[list[Tokens]] = [[] for _ in texts]
        places: list[list[list[Place | None]]] = [[] for _ in texts]
        for row, sequence, parts, spans in zip(
            encoded.row, encoded.sequences, encoded.part, encoded.offsets, strict=True
        ):
            readings[row].append(sequence)
            places[row].append([Place(p, *s) if p >= 0 else None for p, s in zip(parts, spans, strict=True)])
        found = []
        for row, said in enumerate(self.predict_texts(texts, batch_size)):
            ranked = dict(sorted(said.probabilities.items(), key=lambda item: -item[1]))
            chosen = (
                target or given[row] or next((name for name in ranked or self.labels if name != contrast), contrast)
            )
            if chosen == contrast:
                continue
            other = next(name for name in ranked if name != chosen) if contrast == RUNNER_UP else contrast
            weights = {chosen: 1.0} | ({other: -1.0} if other else {})
            terms = [(weight / len(readings[row]), [self.labels.index(str(name))]) for name, weight in weights.items()]
            found.append(
                AttributionTarget(
                    row=row,
                    name=" rather than ".join(map(str, weights)),
                    text=said.text or "",
                    text_pair=said.text_pair,
                    parts=("first text", "second text") if said.text_pair is not None else ("text", "text pair"),
                    kind="class",
                    prediction=said.label,
                    probability=said.probability,
                    probabilities=ranked,
                    readings=[
                        Reading(sequence, {"input_ids": where}, terms)
                        for sequence, where in zip(readings[row], places[row], strict=True)
                    ],
                )
            )
        if texts and not found:
            raise TargetError(f"{contrast!r} can't be told apart from itself", where="contrast", mend="name another")
        return found

    def _class_of(self, label: Label) -> str:
        if self.problem_type != "single_label":
            problem = "a text has a score, or any number of classes, of which none is explained by itself"
            raise ConfigError(problem, where="outputs", mend="leave them out")
        return known_name(str(label), self.labels, "outputs")

    # Accounting for what is said: texts and their labels, and the head

    def asked(
        self, texts: Sequence[Text], labels: Sequence[Label] | None = None, *, batch_size: int = 16
    ) -> list[Batch]:
        """Return texts with their class, classes or score.

        Raises:
            ConfigError: A label is none of the classes, not one, or no number where a score is asked for.
        """
        given = labels if labels is not None else [said.label for said in self.predict_texts(texts, batch_size)]
        targets, encoded = [self.target_of(label) for label in given], self.encode(texts)
        windows: list[list[Tokens]] = [[] for _ in texts]
        for row, tokens in zip(encoded.row, encoded.sequences, strict=True):
            windows[row].append(tokens)
        lengths = [sum(len(tokens["input_ids"]) for tokens in own) for own in windows]
        return [
            {
                **self.pad([tokens for i in some for tokens in windows[i]]),
                "row": torch.tensor([i for i in some for _ in windows[i]], device=self.device),
                "labels": torch.tensor([targets[i] for i in some], device=self.device),
            }
            for some in by_length(lengths, batch_size)
        ]

    def most_wrong(self, texts: Sequence[Text], labels: Sequence[Label]) -> list[int]:
        """Return the texts with wrong classes, the surest first, or with a wrong score, the farthest off first."""
        said = self.predict_texts(texts)
        wrong = [i for i, (one, label) in enumerate(zip(said, labels, strict=True)) if not _same(one.label, label)]

        def how_wrong(i: int) -> float:
            sure, off = said[i].probability, (said[i].label, labels[i])
            return float(sure) if sure is not None else abs(cast(float, off[0]) - cast(float, off[1]))

        return sorted(wrong, key=how_wrong, reverse=True)

    def target_of(self, label: Label) -> int | list[float]:
        """Return a name, names or a score as the loss takes it: what `label_of` makes of it is the same again.

        Raises:
            ConfigError: It is none of the classes, not one, or no number where a score is asked for.
        """
        if self.problem_type == "regression":
            if not isinstance(label, int | float):
                raise ConfigError(f"expected a score, got {label!r}", where="labels")
            return [float(label)]
        given = label if isinstance(label, list) else [label]
        names = [known_name(str(name), self.labels, "label") for name in given]
        if self.problem_type == "multi_label":
            return [float(name in names) for name in self.labels]
        if len(names) != 1:
            raise ConfigError(f"expected one class, got {label!r}", where="labels")
        return self.labels.index(names[0])

    def head(self) -> nn.Linear:
        """Return the linear layer that makes the logits.

        Raises:
            ConfigError: The last linear layer doesn't make as many.
        """
        linear = [part for part in self.model.modules() if isinstance(part, nn.Linear)]
        if not linear or linear[-1].out_features != len(self.labels):
            raise self._no_head()
        return linear[-1]

    def head_features(self, batch: Batch) -> Float[Tensor, "rows features"]:
        """Return what the head reads of each row, the mean over its windows, with a 1 for its bias.

        Raises:
            ConfigError: The logits are not what the head makes of it.
        """
        features = read_by(self.head(), lambda: self(**self.inputs(batch)))
        if features is None:
            raise self._no_head()
        return self.pool(features, batch["row"])

    def _no_head(self) -> ConfigError:
        return ConfigError(
            "the logits are not what the last linear layer makes of what it reads",
            where="layers",
            mend=f"name layers, such as {', '.join(linear_layers(self)[-3:]) or 'the embeddings'}",
        )

    def _predictions_of(self, logits: Float[Tensor, "rows classes"], batch: Batch) -> list[ClassificationPrediction]:
        texts = batch.get("text", [None] * len(logits))
        pairs = batch.get("text_pair", [None] * len(logits))
        rows = torch.unique_consecutive(batch["row"]).tolist() if "row" in batch else None
        return self.predictions(logits, [(t, p) if p else t for t, p in zip(texts, pairs, strict=True)], rows)

    def _losses(
        self, logits: Float[Tensor, "rows classes"], batch: Batch, weights: Tensor | None, **shape: float
    ) -> Float[Tensor, " rows"]:
        labels = batch["labels"]
        if self.problem_type == "regression":
            return F.mse_loss(logits, labels.float().view_as(logits), reduction="none").mean(1)
        if self.problem_type == "multi_label":
            return multi_label_losses(logits, labels.float(), weights, **shape)
        return single_label_losses(logits, labels, weights, **shape)

    def _metric_labels(self, batch: Batch) -> Tensor:
        if self.problem_type == "regression":
            return batch["labels"].float().view(-1, 1)
        return batch["labels"].long() if self.problem_type == "multi_label" else batch["labels"]

    def _prediction(self, probabilities: list[float], text: Text | None, row: int | None) -> ClassificationPrediction:
        first, second = text if isinstance(text, tuple) else (text, None)
        if self.problem_type == "regression":
            return ClassificationPrediction(first, probabilities[0], None, {}, second, row)
        by_label = dict(zip(self.labels, probabilities, strict=True))
        if self.problem_type == "multi_label":
            chosen = [label for label, probability in by_label.items() if probability >= 0.5]
            joint = math.prod(max(p, 1 - p) for p in probabilities)
            return ClassificationPrediction(first, chosen, joint, by_label, second, row)
        best = max(by_label, key=lambda label: by_label[label])
        return ClassificationPrediction(first, best, by_label[best], by_label, second, row)

    def _weights(
        self, class_weights: Literal["balanced"] | list[float] | None, label_counts: list[int] | None
    ) -> Float[Tensor, " classes"] | None:
        if class_weights is None:
            return None
        if class_weights != "balanced":
            require(
                len(class_weights) == len(self.labels),
                f"{len(class_weights)} class_weights for {len(self.labels)} classes",
                "model",
            )
            require(min(class_weights) > 0, f"class_weights must be above 0, got {class_weights}", "model")
            return torch.tensor(class_weights, dtype=torch.float)
        require(
            self.problem_type == "single_label",
            "balanced class_weights go with single_label only; give a list",
            "model",
        )
        if not label_counts or len(label_counts) != len(self.labels) or min(label_counts) < 1:
            raise ConfigError(
                f"balanced class_weights need training rows of every class, got label_counts={label_counts}",
                where="model.class_weights",
                mend="give the weights as a list",
            )
        counts = torch.tensor(label_counts, dtype=torch.float)
        return counts.sum() / (len(counts) * counts)


def single_label_losses(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    weights: Float[Tensor, " classes"] | None,
    *,
    smoothing: float,
    gamma: float,
) -> Float[Tensor, " rows"]:
    """Return cross-entropies in nats whose mean is the mean weighted by the labels' classes.

    With `gamma` above 0 the focal loss, (1 - p)^gamma times the cross-entropy (Lin et al. 2017).
    """
    losses = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")
    if gamma:
        label_probability = logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        losses = (1 - label_probability).clamp_min(_TINY) ** gamma * losses
    if weights is None:
        return losses
    return losses * (len(labels) / weights[labels].sum())


def multi_label_losses(
    logits: Float[Tensor, "rows classes"],
    labels: Float[Tensor, "rows classes"],
    weights: Float[Tensor, " classes"] | None,
    *,
    smoothing: float,
    gamma: float,
) -> Float[Tensor, " rows"]:
    """Return each row's mean binary cross-entropy in nats; `weights` are those of the positives."""
    smooth = labels * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")
    if gamma:
        right = torch.where(labels > 0.5, logits, -logits).sigmoid()
        losses = (1 - right).clamp_min(_TINY) ** gamma * losses
    return losses.mean(1)


def _same(one: Label, other: Label) -> bool:
    """Whether two labels are the same, in whatever order several stand."""
    return set(one) == set(other) if isinstance(one, list) and isinstance(other, list) else one == other


class _R2(tr.R2Score):
    """R2, which a single row leaves undefined."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else torch.tensor(torch.nan, device=self.device)


def _by_label(name: str, values: Float[Tensor, " classes"], labels: list[str]) -> dict[str, Tensor]:
    return {f"{name}/{label}": value for label, value in zip(labels, values, strict=True)}


def _single_label_metrics(classes: int) -> dict[str, Metric | MetricCollection]:
    return {
        "accuracy": tc.MulticlassAccuracy(classes, average="micro"),
        "f1": tc.MulticlassF1Score(classes, average="macro"),
        "calibration_error": CalibrationError(),
        "precision": tc.MulticlassPrecision(classes, average=None),
        "recall": tc.MulticlassRecall(classes, average=None),
        "confusion": tc.MulticlassConfusionMatrix(classes),
    }


def _multi_label_metrics(classes: int) -> dict[str, Metric | MetricCollection]:
    return {
        "exact_match": tc.MultilabelExactMatch(classes),
        "f1": tc.MultilabelF1Score(classes, average="macro"),
        "f1_micro": tc.MultilabelF1Score(classes, average="micro"),
        "average_precision": tc.MultilabelAveragePrecision(classes, average="macro"),
        "precision": tc.MultilabelPrecision(classes, average=None),
        "recall": tc.MultilabelRecall(classes, average=None),
    }


def _regression_metrics() -> dict[str, Metric | MetricCollection]:
    return {
        "mean_squared_error": tr.MeanSquaredError(),
        "mean_absolute_error": tr.MeanAbsoluteError(),
        "pearson": tr.PearsonCorrCoef(),
        "spearman": tr.SpearmanCorrCoef(),
        "r2": _R2(),
    }
