"""Where a model's attention goes: a look inside, and no explanation by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_nlp.errors import ConfigError, did_you_mean
from lit_nlp.explain.batch import Batch


class Attention(NamedTuple):
    """What one attention of a model gave.

    Attributes:
        name: The module's dotted name.
        outputs: `[batch, queries, hidden]`.
        weights: `[batch, heads, queries, keys]`.
        queries: The embedding layer whose tokens ask, 0 or for a decoder behind an encoder 1; and `keys` the one
            whose tokens are looked at.
    """

    name: str
    outputs: Tensor
    weights: Tensor
    queries: int
    keys: int

    def of_head(self, head: int | None) -> Float[Tensor, "batch queries keys"]:
        """Return the weights of one head, or the mean over all."""
        weights = self.weights.detach().float()
        return weights.mean(1) if head is None else weights[:, head]


def rollout(batch: Batch) -> Float[Tensor, "batch words_and_rest"]:
    """Return how attention passes from layer to layer from each word to where the score is read.

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers": the product over layers of the heads' mean,
    half of it replaced by the identity for the residual connection. A decoder's half that asks the encoder goes on
    from there. Where the score is read is told by its gradient behind the last attention.

    Raises:
        ConfigError: The model shows no attention.
    """
    score, seen = _seen(batch)
    flow = [torch.zeros_like(each[..., 0], dtype=torch.float) for each in batch.embeddings]
    flow[seen[-1].queries] = _read_from(score, seen[-1])
    for each in reversed(seen):
        half = 0.5 * flow[each.queries]
        flow[each.queries] = half
        flow[each.keys] = flow[each.keys] + (half.unsqueeze(1) @ each.of_head(None)).squeeze(1)
    return _per_word(batch, flow)


def raw(batch: Batch, layer: str | None, head: int | None) -> Float[Tensor, "batch words_and_rest"]:
    """Return how much one layer's attention looks at each word from where the score hangs on its output.

    Args:
        batch: The texts.
        layer: A module's dotted name, whose attention is shown, or if there are two, the sum of both. None: the last.
        head: Which head, counted from 0. None: the mean over all.

    Raises:
        ConfigError: The model shows no attention, or has no such layer or head.
    """
    score, seen = _seen(batch)
    chosen = seen[-1:] if layer is None else [each for each in seen if f"{each.name}.".startswith(f"{layer}.")]
    if not chosen:
        names = [each.name for each in seen]
        mend = did_you_mean(layer or "", names) or f"name one, such as {names[-1]}"
        raise ConfigError(f"there is no attention in a layer {layer!r}", where="layer", mend=mend)
    flow = [torch.zeros_like(each[..., 0], dtype=torch.float) for each in batch.embeddings]
    for each in chosen:
        heads = each.weights.shape[1]
        if head is not None and not 0 <= head < heads:
            raise ConfigError(f"expected a head from 0 to {heads - 1}, got {head}", where="head")
        read = _read_from(score, each)
        flow[each.keys] = flow[each.keys] + (read.unsqueeze(1) @ each.of_head(head)).squeeze(1)
    return _per_word(batch, flow)


def _seen(batch: Batch) -> tuple[Float[Tensor, " batch"], list[Attention]]:
    """Return the scores of a batch, and what all attentions gave, in their order."""
    named = dict(batch.module.named_modules())  # type: ignore[attr-defined]
    model = next((part for part in named.values() if isinstance(part, PreTrainedModel)), None)
    if model is None:
        raise ConfigError(f"{type(batch.module).__name__} holds no model of transformers", where="method")
    embeddings = tuple(each.detach().requires_grad_() for each in batch.embeddings)
    with _attentions(model, named) as seen:
        score = batch.score_at(*embeddings, *batch.fixed)
    if not seen:
        raise ConfigError(f"{model.config.model_type} shows no attention", where="method")
    return score, seen


def _read_from(score: Float[Tensor, " batch"], attention: Attention) -> Float[Tensor, "batch queries"]:
    """Return the share of each place in what the score makes of an attention's outputs, by its gradient."""
    (gradient,) = torch.autograd.grad(score.sum(), attention.outputs, retain_graph=True)
    norms = gradient.float().norm(dim=2)
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


def _per_word(batch: Batch, flow: Sequence[Float[Tensor, "batch _"]]) -> Float[Tensor, "batch words_and_rest"]:
    # Of a text in windows, each has its share.
    share = batch.weights.clamp_min(0).sum(1, keepdim=True)
    return batch.per_word([each * share for each in flow])


@contextmanager
def _attentions(model: PreTrainedModel, named: dict[str, nn.Module]) -> Iterator[list[Attention]]:
    """Collect what each attention gives; only the eager implementation has weights to show, and is undone on exit."""
    seen: list[Attention] = []
    encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()

    def remember(name: str, part: nn.Module, output: Any) -> None:
        shown = [each for each in output if _shows_weights(each)] if isinstance(output, tuple) else []
        if not shown:
            return
        if seen and seen[-1].weights is shown[-1]:
            # The same attention, behind the projection around it.
            seen.append(seen.pop()._replace(outputs=output[0]))
            return
        asks = int(bool(encoder) and part not in encoder)
        # Each layer of a decoder looks at itself first, and then at the encoder.
        crosses = asks and sum(each.queries for each in seen) % 2
        seen.append(Attention(name, output[0], shown[-1], asks, 0 if crosses else asks))

    chosen = model.config._attn_implementation
    hooks = [
        part.register_forward_hook(lambda part, _, output, name=name: remember(name, part, output))
        for name, part in named.items()
    ]
    try:
        model.set_attn_implementation("eager")
        yield seen
    finally:
        model.set_attn_implementation(chosen)
        for hook in hooks:
            hook.remove()


def _shows_weights(output: Any) -> bool:
    """Whether a tensor is attention's: T5 gives its position bias beside it."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    sums = output.detach().float().sum(-1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-2)
