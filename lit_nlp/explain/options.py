"""How words are credited: what `attribute`, the comparison of methods, the callback and the command line all take."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lit_nlp.errors import ConfigError, known_name


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much work a method does, by what it draws, and what it compares a text with.

    Args:
        method: How words are credited: integrated_gradients, shapley_value_sampling, lime, and others.
        baseline: What stands for a word that isn't there: the special token pad, mask or unk.
        layer: Where layer_integrated_gradients and attention look, as in model.bert.encoder.layer.3.
        head: Which head attention shows, counted from 0. None: the mean over all.
        tolerance: How far scores may be from adding up, as a share of the change that they explain.
        max_steps: The points of a path at which integrated gradients stop to look for more precision.
        samples: Draws of the methods that sample, 2 at least; of those that draw in pairs, one more where the number
            is odd. None: as many as give stable results.
        seed: What they draw by; a text's result doesn't depend on the texts beside it.
        batch_size: Sequences that go through the module at once; it bounds the memory.
        progress: Show a bar that counts what is finished.

    Raises:
        ConfigError: A number out of range.
    """

    method: str = "integrated_gradients"
    baseline: str = "pad"
    layer: str | None = None
    head: int | None = None
    tolerance: float = 0.01
    max_steps: int = 512
    samples: int | None = None
    seed: int = 0
    batch_size: int = 32
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("tolerance", "max_steps", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected a number above 0, got {getattr(self, name)}", where=name)
        if self.samples is not None and self.samples < 2:
            raise ConfigError(f"samples must be at least 2, got {self.samples}", where="samples")
        if self.head is not None and self.head < 0:
            raise ConfigError(f"heads are counted from 0, got {self.head}", where="head")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Return options by their names.

        Raises:
            ConfigError: There is no such option, or a number is out of range.
        """
        for name in given:
            known_name(name, [field.name for field in fields(cls)], "option")
        return cls(**given)

    def facts(self) -> dict[str, str]:
        """Return what a report's readers should know of them: what other scores hang on."""
        given = {
            "Blank words are": f"[{self.baseline}]",
            "Layer": self.layer,
            "Head": self.head,
            "Samples": self.samples,
            "Tolerance": self.tolerance,
            "Seed": self.seed,
        }
        return {name: str(value) for name, value in given.items() if value is not None}
