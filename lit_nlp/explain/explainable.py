"""What a module offers to be explained; the methods know nothing else of it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_nlp.targets import AttributionTarget, Label
from lit_nlp.tokenization import Text, Tokens


@runtime_checkable
class Explainable(Protocol):
    """A module whose scalar `score` can be traced back to the tokens of its texts."""

    def __call__(self, **batch: Tensor) -> Any:
        """Return the outputs of a padded batch, as `score` takes them."""

    def attribution_targets(
        self,
        texts: Sequence[Text],
        *,
        target: str | None = None,
        contrast: str | None = None,
        outputs: Sequence[Label] | None = None,
        batch_size: int = 16,
    ) -> list[AttributionTarget]:
        """Return what is to be explained of each text, with what the module says of it.

        Args:
            texts: Texts, or pairs of texts.
            target: What to explain; None: what the module says.
            contrast: What it is to be told apart from: the difference of both is explained.
            outputs: What is taken as said of each text. None: what the module says.
            batch_size: Sequences that are run at once.
        """

    def target_choices(self) -> list[tuple[str | None, str | None]]:
        """Return the targets of any text between which a reader may want to switch, each with its contrast."""

    def pad(self, sequences: Sequence[Tokens]) -> dict[str, Int[Tensor, "batch tokens"]]:
        """Return a batch on the module's device, padded on the right."""

    def score(self, outputs: Any, target: Int[Tensor, "batch ..."], /) -> Float[Tensor, " batch"]:
        """Return the scalar of each sequence that is attributed."""

    def log_probability(self, outputs: Any, target: Int[Tensor, "batch ..."], /) -> Float[Tensor, " batch"]:
        """Return the log probability of each sequence's target, in nats."""

    def embedding_layers(self) -> list[nn.Module]:
        """Return the layers that look up token embeddings, each read once in a forward pass."""

    def absence_id(self, baseline: str) -> int:
        """Return the token whose embedding stands for nothing: that of the name `pad`, `mask` or `unk`."""

    def attributing(self) -> AbstractContextManager[object]:
        """Evaluation mode, gradients on, parameters frozen, uncompiled, autocast off; restored on exit."""
