"""Generative question answering: an answer written word by word, measured by its words."""

import re
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.text import rouge_score

from lit_nlp.generation import question_with_context
from lit_nlp.metrics.question_answering import SquadMetric
from lit_nlp.modules.base import Batch
from lit_nlp.modules.text_to_text import TextToTextModule
from lit_nlp.tokenization import Text


class GenerativeQuestionAnsweringModule(TextToTextModule):
    """Writes an answer to a question, from a context that stands beside it or from what the weights know.

    Measured by exact match and token F1 as SQuAD counts them, and by ROUGE-L's F1 (Lin 2004), in percent; of
    several answers the best counts.

    Args:
        kwargs: The arguments of `TextToTextModule`.
    """

    parts: ClassVar[tuple[str, str]] = ("question", "answer")

    def new_metrics(self) -> MetricCollection:
        """Return exact match and F1, and ROUGE-L."""
        return MetricCollection({"squad": SquadMetric(), "rouge": RougeL()}, compute_groups=False)

    def update_metrics(self, metrics: MetricCollection, hypotheses: list[str], references: list[Any]) -> None:
        """Add hypotheses and all answers that count; every question gets an answer, so nothing speaks for none."""
        squad = {"predictions": hypotheses, "null_odds": [0.0] * len(hypotheses), "answers": references}
        metrics.update(**squad, preds=hypotheses, target=references)

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that tells the best checkpoint, and its direction."""
        return "val/f1", "max"

    def source_of(self, text: Text) -> str:
        """Return a question, or a question and its context as one text."""
        return text if isinstance(text, str) else question_with_context(*text)

    def references(self, batch: Batch) -> list[Any]:
        """Return all answers that count for each row."""
        return batch["answers"] if "answers" in batch else [[text] for text in super().references(batch)]


class RougeL(Metric):
    """ROUGE-L's F1 in percent, as a sum over answers: torchmetrics' keeps a list, which processes can't join.

    Each text counts with the best of its references. Words are runs of letters and digits of any script, where the
    original drops all but ASCII.
    """

    full_state_update = False
    total: Tensor
    texts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("texts", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, preds: list[str], target: list[list[str]]) -> None:
        """Add texts, each with its references."""
        scores = rouge_score(preds, target, accumulate="best", rouge_keys="rougeL", normalizer=_letters)
        mean = scores["rougeL_fmeasure"]
        self.total += float(mean) * len(preds)
        self.texts += len(preds)

    def compute(self) -> dict[str, Tensor]:
        """Return `rouge_l`."""
        return {"rouge_l": 100 * self.total / self.texts}


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower())
