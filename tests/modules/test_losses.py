import pytest
import torch
from torch.nn import functional as F

from lit_nlp.modules import losses
from lit_nlp.modules.losses import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("part", [1, 40, 2**18])
def test_it_and_its_gradient_are_those_of_torch_in_parts_of_any_size(monkeypatch, smoothing: float, part: int) -> None:
    monkeypatch.setattr(losses, "_CPU_PART", part)
    logits = torch.randn(9, 17).mul(5).requires_grad_()
    labels = torch.tensor([0, 16, -100, 3, 3, -100, 7, 8, 9])
    weights = torch.rand(9)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels, ignore_index=-100, label_smoothing=smoothing, reduction="none")
    (expected * weights).sum().backward()
    found = cross_entropy(logits, labels, smoothing)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(logits.grad, exact.grad.float())


def test_logits_of_half_precision_give_a_loss_in_float32_as_exact_as_they_are() -> None:
    logits = torch.randn(4, 1000).bfloat16().requires_grad_()
    labels = torch.tensor([1, 2, 3, -100])
    found = cross_entropy(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:3], F.cross_entropy(logits.float()[:3], labels[:3], reduction="none"))
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert (logits.grad[3] == 0).all()
