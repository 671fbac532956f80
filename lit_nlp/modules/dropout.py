"""Dropout for a CPU, where torch takes longer to draw the masks than for all else that is done number by number."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_nlp.modules.attention import attend_by, attends_by_sdpa

# A random number of 64 bits decides for four numbers, each by 16 of its bits: probabilities come in 65,536ths.
_SHARES, _LEVELS = 4, 2**16


def cheapen_dropout(model: PreTrainedModel, *, attention: bool) -> None:
    """Let a model draw a quarter of the random numbers, in `nn.Dropout` and, of an encoder by SDPA, in attention.

    Args:
        model: A model; those of its dropouts that are functions stay as they are.
        attention: Whether attention may be replaced, too. Without dropout it is transformers' SDPA.
    """
    for part in model.modules():
        if type(part) is nn.Dropout:
            part.__class__ = _CheapDropout
    if attention and attends_by_sdpa(model):
        attend_by(model, "cheap_dropout", _attend, sdpa_mask)


def restore_dropout(model: PreTrainedModel) -> None:
    """Give a model torch's dropout back, but for its attention."""
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


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads sequence head"],
    key: Float[Tensor, "batch key_heads sequence head"],
    value: Float[Tensor, "batch key_heads sequence head"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch sequence heads head"], None]:
    if not dropout or not _is_plain(module, query, key, attention_mask, **options):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    # Softmax in float32: rows of few numbers take several times as long in bfloat16.
    scores = (query @ key.transpose(2, 3)).float().mul_(scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores = scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    weights = cheap_dropout(scores.softmax(-1), dropout).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _is_plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    **options: Any,
) -> bool:
    """Whether all attend to all, or to what a mask of booleans shows, and each head has its own keys."""
    if attention_mask is None:
        shown = not (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    else:
        shown = attention_mask.dtype == torch.bool
    return shown and query.shape[1] == key.shape[1]
