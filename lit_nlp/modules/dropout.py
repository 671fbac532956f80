"""Dropout for a CPU, where torch takes longer to draw the masks than for all else that is done number by number."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

# A random number of 64 bits decides for four numbers, each by 16 of its bits: probabilities come in 65,536ths.
_SHARES, _LEVELS = 4, 2**16


def cheapen_dropout(model: nn.Module) -> None:
    """Let each `nn.Dropout` of a model draw a quarter of the random numbers; dropouts that are functions stay."""
    for part in model.modules():
        if type(part) is nn.Dropout:
            part.__class__ = _CheapDropout


def restore_dropout(model: nn.Module) -> None:
    """Give a model torch's dropout back."""
    for part in model.modules():
        if type(part) is _CheapDropout:
            part.__class__ = nn.Dropout  # type: ignore[assignment]


def cheap_dropout(numbers: Float[Tensor, "..."], probability: float) -> Float[Tensor, "..."]:
    """Drop numbers at random and scale what is left, as `torch.nn.functional.dropout` does in training.

    Args:
        numbers: Of any shape.
        probability: Of each to become 0, rounded to 65,536ths.
    """
    dropped = round(probability * _LEVELS)
    if not 0 < dropped < _LEVELS:
        return nn.functional.dropout(numbers, probability)
    draws = torch.empty(-(-numbers.numel() // _SHARES), dtype=torch.int64, device=numbers.device)
    lowest = torch.iinfo(torch.int64).min
    levels = draws.random_(lowest, None).view(torch.int16)[: numbers.numel()].view(numbers.shape)
    # Compared into floats: torch multiplies by booleans far more slowly.
    kept = torch.empty(numbers.shape, dtype=numbers.dtype, device=numbers.device)
    torch.ge(levels, dropped - _LEVELS // 2, out=kept)
    return numbers * kept.mul_(_LEVELS / (_LEVELS - dropped))


class _CheapDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return cheap_dropout(input, self.p) if self.training else input
