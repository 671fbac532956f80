"""Sentiment: classes in their natural order, so that being wrong by one counts less than by four."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection

from lit_nlp.modules.text_classification import TextClassificationModule


class SentimentModule(TextClassificationModule):
    """Text classification whose classes run from negative to positive.

    Next to accuracy it measures the mean absolute error, in classes, between predicted and given polarity.

    Args:
        labels: The classes' names from negative to positive. None: negative, positive.
        kwargs: The arguments of `TextClassificationModule`.
    """

    def __init__(self, backbone: str, *, labels: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, labels=labels or ["negative", "positive"], problem_type="single_label", **kwargs)
        # problem_type is fixed here, and so no argument that a checkpoint could give back.
        self.save_hyperparameters({"labels": self.labels}, ignore="problem_type")

    def new_metrics(self) -> MetricCollection:
        """Add the mean absolute error to the metrics of classification."""
        metrics = super().new_metrics()
        metrics.add_metrics({"mean_absolute_error": _PolarityError()})
        return metrics


class _PolarityError(MeanAbsoluteError):
    """The mean absolute error of the most probable class's number."""

    def update(self, preds: Float[Tensor, "rows classes"], target: Shaped[Tensor, " rows"]) -> None:
        super().update(preds.argmax(dim=1).to(torch.float), target.to(torch.float))
