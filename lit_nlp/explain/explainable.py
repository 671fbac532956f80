"""What a module offers to be explained; the methods know nothing else of it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_nlp.tokenization import Encoded, Text, Tokens

Label = str | int | float | list[str]


@runtime_checkable
class Prediction(Protocol):
    """What the module says of one text."""

    @property
    def label(self) -> Label:
        """A class's name, the names of several, or a number."""

    @property
    def probability(self) -> float | None:
        """The probability of `label`, where it has one."""

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class by its name; empty for a number."""


@runtime_checkable
class Explainable(Protocol):
    """A module whose scalar `score` can be traced back to the tokens of its texts."""

    @property
    def baseline_id(self) -> int:
        """The token whose embedding stands for nothing."""

    def __call__(self, **batch: Tensor) -> Any:
        """Return the logits `[sequences, classes]` of a padded batch."""

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Return the texts as sequences of tokens, several for a text that is read in windows."""

    def pad(self, sequences: Sequence[Tokens]) -> dict[str, Int[Tensor, "batch tokens"]]:
        """Return a batch on the module's device, padded on the right."""

    def pool(
        self, logits: Float[Tensor, "sequences classes"], row: Int[Tensor, " sequences"]
    ) -> Float[Tensor, "texts classes"]:
        """Return the mean over each text's windows; `row` is the text of each sequence."""

    def predictions(self, logits: Float[Tensor, "texts classes"], texts: Sequence[Text]) -> Sequence[Prediction]:
        """Return what the pooled logits say of each text."""

    def targets(self) -> list[str]:
        """Return the names that a target may have, in the order of the classes."""

    def score(
        self, outputs: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], /
    ) -> Float[Tensor, " batch"]:
        """Return the scalar of each sequence that is attributed; linear in the logits."""

    def embedding_layers(self) -> list[nn.Module]:
        """Return the layers that look up token embeddings, each read once in a forward pass."""

    def attributing(self) -> AbstractContextManager[object]:
        """Evaluation mode, gradients on, parameters frozen, uncompiled, autocast off; restored on exit."""
