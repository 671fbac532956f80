"""Attention by its formula on a CPU, where torch's kernel has no dropout, and is slow in bfloat16.

For its backward pass in bfloat16 the kernel takes several times as long; with dropout torch itself takes the formula,
but draws more random numbers and looks for rows that are masked from end to end. Of those, which nothing should read,
the formula takes a mean, where the kernel has zeros.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_nlp.modules.attention import attends_by_sdpa, product_type, register_attention
from lit_nlp.modules.dropout import cheap_dropout

# Up to how many tokens the formula is the quicker in bfloat16, or its weights are small enough to be kept.
_WIDEST_READ, _WIDEST_LEARNT = 64, 256
# From so many numbers in a row a softmax is the quicker in bfloat16; over fewer it takes several times as long.
_WIDE = 48
# What else transformers may ask of attention that changes what comes out.
_ASKED = ("cache", "position_bias", "softcap")


def attend_by_formula(model: PreTrainedModel) -> None:
    """Let a model that attends by SDPA take the formula where that is quicker.

    An encoder-decoder stays as it is: most have no dropout in attention, and others a bias that the formula lacks.
    """
    if attends_by_sdpa(model) and not model.config.is_encoder_decoder:
        model.set_attn_implementation(_NAME)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries head"],
    key: Float[Tensor, "batch key_heads keys head"],
    value: Float[Tensor, "batch key_heads keys head"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch queries heads head"], None]:
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    boolean = attention_mask is None or attention_mask.dtype == torch.bool
    knows = boolean and not isinstance(scaling, Tensor) and all(options.get(name) is None for name in _ASKED)
    if not knows or not (dropout or _is_quicker(query, value)):
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **options,
        )
    if causal and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    return _by_formula(query, key, value, attention_mask, dropout, scaling or query.shape[-1] ** -0.5), None


def _is_quicker(query: Tensor, value: Tensor) -> bool:
    """Whether the formula without dropout is quicker than the kernel."""
    learns = torch.is_grad_enabled() and value.requires_grad
    widest = _WIDEST_LEARNT if learns else _WIDEST_READ
    halves = product_type(value.dtype, "cpu") == torch.bfloat16
    return halves and value.shape[2] <= widest and query.shape[2] > 1


def _by_formula(
    query: Float[Tensor, "batch heads queries head"],
    key: Float[Tensor, "batch key_heads keys head"],
    value: Float[Tensor, "batch key_heads keys head"],
    shown: Bool[Tensor, "..."] | None,
    dropout: float,
    scaling: float,
) -> Float[Tensor, "batch queries heads head"]:
    """Attend to what is shown: Vaswani et al. 2017, "Attention Is All You Need"; dropout as in BERT."""
    key, value = (repeat_kv(each, query.shape[1] // each.shape[1]) for each in (key, value))
    # Scaled within the product: another look at all scores would take half as long as the product.
    nothing = query.new_empty(1, 1, 1)
    scores = torch.baddbmm(nothing, query.flatten(0, 1), key.flatten(0, 1).mT, beta=0, alpha=scaling)
    scores = scores.unflatten(0, query.shape[:2])
    # float16 has no number that hides every score.
    if scores.dtype == torch.float16 or scores.shape[-1] < _WIDE:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = attention_weights(scores, shown, dropout)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


def attention_weights(
    scores: Float[Tensor, "... keys"], shown: Bool[Tensor, "..."] | None, dropout: float
) -> Float[Tensor, "... keys"]:
    """Return the shares in which values are taken, in the type of the scores, which are overwritten."""
    # Autocast would take softmax in float32 at any width.
    with torch.autocast(scores.device.type, enabled=False):
        if shown is not None:
            # Added: torch fills by a mask far more slowly. Half of the lowest number, so that none becomes infinite.
            lowest = scores.new_tensor(torch.finfo(scores.dtype).min / 2)
            scores.add_(torch.where(shown, torch.zeros_like(lowest), lowest))
        weights = scores.softmax(-1)
        return cheap_dropout(weights, dropout) if dropout else weights


_NAME = register_attention("formula", _attend, sdpa_mask)
