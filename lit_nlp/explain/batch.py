"""A padded batch as the methods see it: a scalar score of token ids, and a baseline that says nothing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from lit_nlp.explain.explainable import Explainable


@dataclass(frozen=True)
class Batch:
    """Some sequences, and what is asked of them.

    Attributes:
        module: The module to explain.
        inputs: The padded batch as the module takes it.
        baseline: The `input_ids` with every token that may receive credit replaced by "nothing".
        target: For each sequence, the class that is explained.
        rows: How many sequences may go through the module at once.
    """

    module: Explainable
    inputs: dict[str, Int[Tensor, "batch tokens"]]
    baseline: Int[Tensor, "batch tokens"]
    target: Int[Tensor, " batch"]
    rows: int

    @property
    def input_ids(self) -> Int[Tensor, "batch tokens"]:
        """The token ids of the texts."""
        return self.inputs["input_ids"]

    @property
    def fixed(self) -> tuple[Tensor, ...]:
        """What `score` takes after the token ids and no method varies: the target and the masks."""
        return self.target, *(tensor for name, tensor in self.inputs.items() if name != "input_ids")

    def score(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        target: Int[Tensor, " rows"],
        *masks: Int[Tensor, "rows tokens"],
    ) -> Float[Tensor, " rows"]:
        """The scalar that is attributed; called with `input_ids, *fixed`, or with each repeated."""
        names = (name for name in self.inputs if name != "input_ids")
        logits = self.module(input_ids=input_ids, **dict(zip(names, masks, strict=True)))
        return self.module.score(logits, target)

    @torch.no_grad()
    def change(self) -> Float[Tensor, " batch"]:
        """The score less the score with the baseline's embeddings, in float64: what credit adds up to.

        Only embeddings are exchanged. What a model reads from the ids themselves (positions, the last
        token, an end mark) stays that of the text, as it does all along the path between the two.
        """
        nothing = {layer: output for layer, (_, output) in self._lookups(self.baseline).items()}
        full = self.score(self.input_ids, *self.fixed)
        with _hooked(nothing, lambda layer, _read, _output: nothing[layer]):
            empty = self.score(self.input_ids, *self.fixed)
        return full.double() - empty.double()

    def per_token(self, layer: nn.Module, credit: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
        """Move credit from where a layer read a token to where that token stands in `input_ids`.

        A decoder that reads the ids of its encoder reads each one place further right.

        Raises:
            ValueError: The layer read other tokens.
        """
        read, ids = self._read[layer], self.input_ids
        if torch.equal(read, ids):
            return credit
        if torch.equal(read[:, 1:], ids[:, :-1]):
            return pad(credit[:, 1:], (0, 1))
        raise ValueError(f"{type(layer).__name__} read other tokens than those of the input")

    @cached_property
    def _read(self) -> dict[nn.Module, Tensor]:
        return {layer: ids for layer, (ids, _) in self._lookups(self.input_ids).items()}

    @torch.no_grad()
    def _lookups(self, input_ids: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """For each embedding layer, the ids that it reads and the embeddings that it gives."""
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def remember(layer: nn.Module, ids: Tensor, output: Tensor) -> None:
            seen[layer] = ids, output

        with _hooked(self.module.embedding_layers(), remember):
            self.score(input_ids, *self.fixed)
        return seen


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `hook(layer, input, output)` after each layer; what it returns replaces the output."""
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(lambda layer, args, output: hook(layer, args[0], output))
            stack.callback(handle.remove)
        yield
