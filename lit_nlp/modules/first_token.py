"""The last layer of an encoder, spared the tokens that a classifier doesn't read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_nlp.modules.attention import keeps_weights
from lit_nlp.modules.formula import attention_weights


class _Parts(NamedTuple):
    """Where an architecture has the parts of a layer.

    Attributes:
        stack: What holds the layers.
        behind: What in a layer follows attention, from where on each token goes its own way.
        attention: What attends, where it does no more than BERT's.
        projections: What in it makes queries, keys and values of tokens.
    """

    stack: str
    behind: str
    attention: str | None = None
    projections: tuple[str, str, str] = ("query", "key", "value")


_DEBERTA = _Parts("encoder", "attention.output")
_BERT = _DEBERTA._replace(attention="attention.self")
# Architectures whose classifier reads the first token alone.
_PARTS = {
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "distilbert": _Parts("transformer", "sa_layer_norm", "attention", ("q_lin", "k_lin", "v_lin")),
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[None]:
    """Let the last layer run for the first token alone: the others would be for nothing.

    Once attention is done, the layer runs on it alone; and on a CPU, where attention's weights are seen by nobody,
    attention makes no keys and values of the others, but compares the first with them as they are. Of 6 layers that
    saves a sixth of all matrix products. Logits and gradients are the same. Where somebody looks on, by a forward hook
    in the last layer or around it, all tokens are there; so they are under gradient checkpointing, which runs the layer
    again when this is over.

    Args:
        model: A classifier, of whatever architecture.
    """
    parts = _PARTS.get(model.config.model_type)
    last = parts and _last_layer(model, parts.stack)
    if not parts or last is None:
        yield
        return
    behind, attention = last.get_submodule(parts.behind), _attention(model, last, parts)
    if attention is not None:
        attention.forward = partial(_attend, attention, parts.projections, attention.forward)
    try:
        with behind.register_forward_pre_hook(take_first):
            yield
    finally:
        if attention is not None:
            vars(attention).pop("forward", None)


def take_first(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give a module the first token of what it would be given: the hook of `first_token_only`."""
    return tuple(tokens[:, :1] for tokens in given)


def _last_layer(model: PreTrainedModel, stack: str) -> nn.Module | None:
    """Return the last layer, unless its other tokens are needed."""
    base = model.base_model
    around: Any = base.get_submodule(stack)
    last: nn.Module = around.layer[-1]
    watched = any(part._forward_hooks for part in (base, around, *last.modules()))
    return None if watched or last.gradient_checkpointing else last


def _attention(model: PreTrainedModel, last: nn.Module, parts: _Parts) -> nn.Module | None:
    """Return what attends in a layer, if it may do so by `_attend`."""
    compiled = model._compiled_call_impl is not None
    if parts.attention is None or compiled or not keeps_weights(model) or model.device.type != "cpu":
        return None
    attention: Any = last.get_submodule(parts.attention)
    projections = [getattr(attention, name) for name in parts.projections]
    plain = all(type(each) is nn.Linear and each.bias is not None for each in projections) and not attention.is_causal
    # A hook may make the weights that the projection would use, as pruning does.
    hooks = ("_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    watched = any(getattr(part, hook) for part in attention.modules() for hook in hooks)
    return attention if plain and not watched and "forward" not in vars(attention) else None


def _attend(
    attention: Any,
    projections: tuple[str, str, str],
    otherwise: Callable[..., Any],
    hidden_states: Float[Tensor, "batch sequence hidden"],
    attention_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch queries hidden"], None]:
    """Attend from the first token to all.

    Where there is one query q, a key of it and a token x, q·(Kx + b) = (Kᵀq)·x + q·b: the query is taken to where the
    tokens are in place of each token to where the query is. So is what it finds there taken to where values are.
    """
    shown = attention_mask
    if shown is not None and not (shown.dtype == torch.bool and shown.ndim == 4 and shown.shape[1] == 1):
        return otherwise(hidden_states, attention_mask=attention_mask, **options)
    query, key, value = (getattr(attention, name) for name in projections)
    heads = (-1, attention.attention_head_size)
    asked = query(hidden_states[:, 0]).unflatten(-1, heads)
    asked_there = torch.einsum("bhk,hkd->bhd", asked, key.weight.unflatten(0, heads))
    # The same for all tokens: softmax drops it, but a parameter without a gradient would stop DDP.
    same = torch.einsum("bhk,hk->bh", asked, key.bias.unflatten(0, heads)).unsqueeze(2)
    dropout = attention.dropout.p if attention.training else 0.0
    # So few numbers are multiplied as they are: oneDNN, which autocast calls, keeps memory for each width.
    with torch.autocast(hidden_states.device.type, enabled=False):
        scores = asked_there.to(hidden_states.dtype) @ hidden_states.mT
        scores = (scores.to(torch.promote_types(scores.dtype, torch.float32)) + same) * attention.scaling
        weights = attention_weights(scores, None if shown is None else shown[:, 0, :1], dropout)
        weights = weights.to(hidden_states.dtype)
        found_there = weights @ hidden_states
    found = torch.einsum("bhd,hkd->bhk", found_there, value.weight.unflatten(0, heads))
    found = found + weights.sum(-1, keepdim=True) * value.bias.unflatten(0, heads)
    found = found.flatten(1).unsqueeze(1)
    return attention.out_lin(found) if hasattr(attention, "out_lin") else found, None
