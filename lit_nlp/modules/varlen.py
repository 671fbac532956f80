"""Attention that skips padding, where a GPU has FlashAttention for sequences of varying length.

Elsewhere attention reads a mask of a number for each pair of tokens, and attends to what it then throws away.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

VARLEN = "varlen"
# FlashAttention needs Ampere, and heads of whole eights of numbers.
_CAPABILITY, _MULTIPLE, _LARGEST_HEAD = (8, 0), 8, 256
_HALVES = (torch.float16, torch.bfloat16)


def can_skip_padding(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether `VARLEN` may be the model's attention there: an encoder's, on a GPU whose torch has the kernel."""
    config = model.config
    encodes = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not encodes or not model._supports_attention_backend or config._attn_implementation != "sdpa":
        return False
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        head % _MULTIPLE == 0
        and head <= _LARGEST_HEAD
        and device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _CAPABILITY
    )


def bounds(attention_mask: Bool[Tensor, "batch sequence"]) -> Int[Tensor, " bounds"]:
    """Return where sequences begin and end among all tokens in a row: each text, and the padding on its right.

    Padding attends to itself, so that nothing needs to be gathered and put back; no text sees it.
    """
    rows, width = attention_mask.shape
    # All in tensors: a compiled model would be compiled anew for each number that isn't.
    begins = torch.arange(rows + 1, device=attention_mask.device) * width
    of_texts = torch.stack([begins[:-1], begins[:-1] + attention_mask.sum(1)], dim=1)
    return torch.cat([of_texts.flatten(), begins[-1:]]).int()


def _mask(
    *,
    mask_function: Callable[..., Any],
    attention_mask: Bool[Tensor, "batch sequence"] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Tensor | None:
    """Return `bounds` where all of a text attends to all of it in half precision; else what `sdpa` takes."""
    if attention_mask is not None and mask_function is bidirectional_mask_function and _computes_in_half(dtype):
        return bounds(attention_mask)
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **options)


def _computes_in_half(dtype: torch.dtype) -> bool:
    """Whether matrix products of tensors of this type give half precision on a GPU."""
    return (torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else dtype) in _HALVES


def _attend(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads sequence head"],
    key: Float[Tensor, "batch key_heads sequence head"],
    value: Float[Tensor, "batch key_heads sequence head"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch sequence heads head"], None]:
    if attention_mask is None or attention_mask.ndim != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    rows, _, width, _ = query.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    return _flash(query, key, value, attention_mask, width, dropout, scaling).unflatten(0, (rows, width)), None


def _flash(
    query: Float[Tensor, "tokens heads head"],
    key: Float[Tensor, "tokens key_heads head"],
    value: Float[Tensor, "tokens key_heads head"],
    of: Int[Tensor, " bounds"],
    longest: int,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "tokens heads head"]:
    """Attend within each sequence: FlashAttention 2 (Dao 2023)."""
    # `torch.nn.attention.varlen` calls the same kernel, but has no dropout.
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, of, of, longest, longest, dropout, False, False, scale=scaling
    )[0]
    return attended


AttentionInterface.register(VARLEN, _attend)
AttentionMaskInterface.register(VARLEN, _mask)
