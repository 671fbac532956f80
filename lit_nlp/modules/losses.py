"""The cross-entropy over a large vocabulary, in a few passes over the logits and without a copy of them."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from lit_nlp.tokenization import IGNORED

# Logits that are worked on at once: on a CPU what its cache holds, elsewhere what a kernel is worth starting for.
_CPU_PART, _PART = 2**18, 2**27


def cross_entropy(
    logits: Num[Tensor, "tokens vocabulary"], labels: Int[Tensor, " tokens"], smoothing: float = 0.0
) -> Float[Tensor, " tokens"]:
    """Return each token's cross-entropy in nats, in float32 whatever the logits are; 0 where it is not to be learnt.

    Equal to `torch.nn.functional.cross_entropy` with `ignore_index` and `label_smoothing`, which keeps the log
    probabilities of the whole vocabulary and adds two gradients of their size. With smoothing e, logits x and
    label y the loss is logsumexp(x) - (1 - e) x[y] - e mean(x), and its gradient softmax(x) - (1 - e) 1[y] - e / size.
    It is differentiable once.
    """
    return cast(Tensor, _CrossEntropy.apply(logits, labels, smoothing))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        learnt = labels != IGNORED
        known = labels.where(learnt, 0).unsqueeze(1)
        normalizer = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
        losses = torch.empty_like(normalizer)
        for part in _parts(logits):
            x = logits[part].float()
            normalizer[part] = x.logsumexp(1)
            losses[part] = normalizer[part] - (1 - smoothing) * x.gather(1, known[part]).squeeze(1)
            if smoothing:
                losses[part] -= smoothing * x.mean(1)
        ctx.save_for_backward(logits, known, normalizer, learnt)
        ctx.smoothing = smoothing
        return losses.where(learnt, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, known, normalizer, learnt = ctx.saved_tensors
        weights = gradient.where(learnt, 0.0).unsqueeze(1)
        of_logits = torch.empty_like(logits)
        for part in _parts(logits):
            of_part = (logits[part] - normalizer[part].unsqueeze(1)).exp_()
            if ctx.smoothing:
                of_part -= ctx.smoothing / logits.shape[1]
            of_part.scatter_add_(1, known[part], torch.full_like(weights[part], ctx.smoothing - 1))
            torch.mul(of_part, weights[part], out=of_logits[part])
        return of_logits, None, None


def _parts(logits: Tensor) -> list[slice]:
    size = _CPU_PART if logits.device.type == "cpu" else _PART
    rows = max(1, size // logits.shape[1])
    return [slice(begin, begin + rows) for begin in range(0, len(logits), rows)]
