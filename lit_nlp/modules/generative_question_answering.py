"""Generative question answering: an answer written word by word, measured by its words."""

from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.text import ROUGEScore

from lit_nlp.metrics.question_answering import SquadMetric
from lit_nlp.modules.base import Batch, Files
from lit_nlp.modules.text_to_text import Generated, TextToTextModule


class GenerativeQuestionAnsweringModule(TextToTextModule):
    """Writes an answer to a question, from a context that stands beside it or from what the weights know.

    Measured by exact match and token F1 as SQuAD counts them, and by ROUGE-L's F1 (Lin 2004), in percent; of
    several answers the best counts.

    Args:
        kwargs: The arguments of `TextToTextModule`.
    """

    def new_metrics(self) -> nn.ModuleDict:
        """Return exact match and F1, and ROUGE-L."""
        return nn.ModuleDict({"words": SquadMetric(), "rouge": RougeL()})

    def update_metrics(self, metrics: dict[str, Metric], hypotheses: list[str], references: list[Any]) -> None:
        """Add hypotheses and all answers that count; every question gets an answer, so nothing speaks for none."""
        metrics["words"].update(hypotheses, [0.0] * len(hypotheses), references)
        metrics["rouge"].update(hypotheses, references)

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that tells the best checkpoint, and its direction."""
        return "val/f1", "max"

    def references(self, batch: Batch) -> list[Any]:
        """Return all answers that count for each row."""
        return batch["answers"] if "answers" in batch else [[text] for text in super().references(batch)]

    def test_files(self, rows: list[Generated]) -> Files:
        """Return all answers, those with the highest loss first."""
        ranked = sorted(rows, key=lambda row: -(row.loss_nats or 0.0))
        return {"test_predictions.jsonl": self.predict_files(ranked)["predictions.jsonl"]}


class RougeL(ROUGEScore):
    """ROUGE-L's F1 in percent."""

    def __init__(self) -> None:
        super().__init__(rouge_keys="rougeL", accumulate="best")

    def compute(self) -> dict[str, Tensor]:
        """Return `rouge_l`."""
        return {"rouge_l": 100 * super().compute()["rougeL_fmeasure"]}
