"""The calibration error by sums: torchmetrics' own keeps the confidence of every row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

_BINS = 15


class CalibrationError(Metric):
    """The expected calibration error of the most probable class (Naeini et al. 2015), in 15 bins of equal width.

    From 0 to 1: how far, within a bin, the share of right predictions is from their mean confidence, averaged over
    the rows of all bins.
    """

    full_state_update = False
    gaps: Float[Tensor, " bins"]
    rows: Int[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        # As in torchmetrics, a confidence of 1 has a bin of its own.
        self.add_state("gaps", torch.zeros(_BINS + 1), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probabilities: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]) -> None:
        """Add rows."""
        confidences, predicted = probabilities.float().max(dim=1)
        edges = torch.linspace(0, 1, _BINS + 1, dtype=confidences.dtype, device=confidences.device)
        bins = torch.bucketize(confidences, edges, right=True) - 1
        self.gaps.index_add_(0, bins, predicted.eq(labels).float() - confidences)
        self.rows += len(labels)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean gap."""
        return self.gaps.abs().sum() / self.rows
