"""Attention that skips padding, where a GPU has FlashAttention for sequences of varying length.

Elsewhere attention reads a mask of a number for each pair of tokens, and attends to what it then throws away.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from lit_nlp.architecture import is_encoder
from lit_nlp.modules.attention import attends_by_sdpa, product_type, register_attention

# FlashAttention 2 needs Ampere, and heads of so many numbers at most, a multiple of eight.
_CAPABILITY, _LARGEST_HEAD, _HEAD_MULTIPLE = (8, 0), 192, 8
_HALVES = (torch.float16, torch.bfloat16)


def can_skip_padding(model: PreTrainedModel) -> bool:
    """Whether `skip_padding` is for a model: an encoder with transformers' choice of attention, and heads that fit."""
    config = model.config
    if not is_encoder(config) or not attends_by_sdpa(model) or not hasattr(config, "hidden_size"):
        return False
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return head <= _LARGEST_HEAD and head % _HEAD_MULTIPLE == 0


def has_flash_attention(device: torch.device) -> bool:
    """Whether a device is a GPU with FlashAttention, and nobody switched that off."""
    return (
        device.type == "cuda"
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(device) >= _CAPABILITY
    )


def skip_padding(model: PreTrainedModel) -> None:
    """Let a model attend without its padding wherever it computes in half precision on a GPU; else as before.

    The mask of a batch must show one run of tokens a row; padding may stand on either side of it.
    """
    model.set_attn_implementation(_NAME)


def bounds(attention_mask: Bool[Tensor, "batch sequence"]) -> Int[Tensor, " bounds"]:
    """Return where sequences begin and end among all tokens in a row: what stands before a text, it, and what follows.

    Padding attends to itself, so that nothing needs to be gathered and put back; no text sees it.
    """
    rows, width = attention_mask.shape
    # All in tensors: a compiled model would be compiled anew for each number that isn't.
    rows_begin = torch.arange(rows + 1, device=attention_mask.device) * width
    texts_begin = rows_begin[:-1] + attention_mask.int().argmax(1)
    edges = torch.stack([rows_begin[:-1], texts_begin, texts_begin + attention_mask.sum(1)], dim=1)
    return torch.cat([edges.flatten(), rows_begin[-1:]]).int()


def _mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Bool[Tensor, "batch sequence"] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor | None:
    """Return `bounds` where all of a text attends to all of it, by the kernel; else what `sdpa` takes."""
    # transformers 5.23 tells by the function itself that nothing but padding is masked.
    whole = mask_function is bidirectional_mask_function and q_length == kv_length
    if attention_mask is not None and whole and _multiplies_halves(dtype, torch.device(device)):
        return bounds(attention_mask)
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        dtype=dtype,
        device=device,
        **options,
    )


def _multiplies_halves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensors of this type are multiplied in half precision there."""
    return device.type == "cuda" and product_type(dtype, "cuda") in _HALVES


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
    # Autocast knows SDPA and not the kernel; and rotary positions may leave queries and keys in float32.
    half = product_type(value.dtype, "cuda")
    query, key, value = (each.transpose(1, 2).flatten(0, 1).to(half) for each in (query, key, value))
    return _flash(query, key, value, attention_mask, width, dropout, scaling).unflatten(0, (rows, width)), None


def _flash(
    query: Float[Tensor, "tokens heads head"],
    key: Float[Tensor, "tokens key_heads head"],
    value: Float[Tensor, "tokens key_heads head"],
    edges: Int[Tensor, " bounds"],
    longest: int,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "tokens heads head"]:
    """Attend within each sequence: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism"."""
    # `torch.nn.attention.varlen` (torch 2.13) calls the same kernel, but has no dropout.
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, edges, edges, longest, longest, dropout, False, False, scale=scaling
    )[0]
    return attended


_NAME = register_attention("varlen", _attend, _mask)
