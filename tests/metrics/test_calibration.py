"""The calibration error is torchmetrics' own, from sums that don't grow with the rows."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_nlp.metrics.calibration import CalibrationError


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("at_once", [1, 32, 200])
def test_batches_add_up_to_torchmetrics_figure_of_all_rows(classes: int, at_once: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    probabilities = torch.softmax(3 * torch.randn(200, classes, generator=generator), dim=1)
    # Confidences at the bins' edges, and of 1.
    probabilities[:3, :2] = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.8, 0.2]])
    probabilities[:3, 2:] = 0
    labels = torch.randint(classes, (200,), generator=generator)
    metric = CalibrationError()
    for start in range(0, 200, at_once):
        metric.update(probabilities[start : start + at_once], labels[start : start + at_once])
    expected = multiclass_calibration_error(probabilities, labels, classes, n_bins=15)
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-6)


def test_what_is_kept_does_not_grow_with_the_rows() -> None:
    metric = CalibrationError()
    before = {name: state.shape for name, state in metric.metric_state.items()}
    for _ in range(3):
        metric.update(torch.tensor([[0.7, 0.3], [0.1, 0.9]]), torch.tensor([0, 0]))
    assert {name: state.shape for name, state in metric.metric_state.items()} == before
