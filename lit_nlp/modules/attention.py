"""Attention of our own in place of transformers' SDPA while a Trainer runs, and back."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_nlp.errors import known_name

# How the names of our own begin.
_OURS = "lit_nlp_"


def check_attention(name: str) -> None:
    """Make sure that transformers knows a way to attend by its name, or could fetch it as a kernel from the hub.

    Raises:
        ConfigError: It doesn't.
    """
    if "/" not in name:
        theirs = [key for key in AttentionInterface().valid_keys() if not key.startswith(_OURS)]
        known_name(name, ["eager", *theirs], "model.attn_implementation")


def attends_by_sdpa(model: PreTrainedModel) -> bool:
    """Whether a model has transformers' choice of attention, which another may take the place of."""
    return bool(model._supports_attention_backend and model.config._attn_implementation == "sdpa")


def keeps_weights(model: PreTrainedModel) -> bool:
    """Whether a model attends by SDPA or by a function of our own, both of which keep their weights to themselves."""
    return attends_by_sdpa(model) or model.config._attn_implementation.startswith(_OURS)


def register_attention(name: str, attend: Callable[..., Any], mask: Callable[..., Any]) -> str:
    """Make a function of our own known to transformers, with what makes its mask; return the name to attend by.

    It is done where the function stands, so that a module that was pickled within a fit finds it in any process.
    """
    AttentionInterface.register(_OURS + name, attend)
    AttentionMaskInterface.register(_OURS + name, mask)
    return _OURS + name


def restore_attention(model: PreTrainedModel) -> None:
    """Give a model SDPA back."""
    if model.config._attn_implementation.startswith(_OURS):
        model.set_attn_implementation("sdpa")


def product_type(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the type in which a kind of device multiplies tensors of this type."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
