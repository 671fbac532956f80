"""The last layer of an encoder, spared the tokens that a classifier doesn't read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_BERT = "encoder", "attention.output"
# Architectures whose classifier reads the first token alone: what holds their layers; and what in a layer follows
# attention, from where on each token goes its own way.
_PARTS = {
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "distilbert": ("transformer", "sa_layer_norm"),
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[None]:
    """Let the last layer run on the first token alone once attention is done: the others would be for nothing.

    Of 6 layers that saves an eighth of all matrix products. Logits and gradients are the same. Where somebody looks on,
    by a forward hook in the last layer or around it, all tokens are there; so they are under gradient checkpointing,
    which runs the layer again when this is over.

    Args:
        model: A classifier, of whatever architecture.
    """
    behind = _behind_attention(model)
    if behind is None:
        yield
        return
    with behind.register_forward_pre_hook(lambda _, given: tuple(tokens[:, :1] for tokens in given)):
        yield


def _behind_attention(model: PreTrainedModel) -> nn.Module | None:
    """Return what may run on the first token alone, with all that follows."""
    if model.config.model_type not in _PARTS:
        return None
    around, behind = _PARTS[model.config.model_type]
    base = model.base_model
    stack: Any = base.get_submodule(around)
    last = stack.layer[-1]
    watched = any(part._forward_hooks for part in (base, stack, *last.modules()))
    return None if watched or last.gradient_checkpointing else last.get_submodule(behind)
