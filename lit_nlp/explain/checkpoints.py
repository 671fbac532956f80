"""The checkpoints of the run that trained a module: how fast it learnt at each, and the weights that it had."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_nlp.checkpoints import SECTION, read_checkpoint
from lit_nlp.errors import CheckpointError, require_list
from lit_nlp.modules.base import TransformerModule


@dataclass(frozen=True)
class Checkpoint:
    """A step of a run.

    Attributes:
        path: The file, which alone holds the weights: a run's checkpoints together may be more than memory holds.
        step: After how many updates it was written.
        learning_rate: At that step, of the layers that learn fastest.
    """

    path: str | Path
    step: int
    learning_rate: float

    def load_into(self, module: TransformerModule) -> None:
        """Give a module the weights of this step."""
        module.load_state_dict(read_checkpoint(self.path)["state_dict"])


def read_run(paths: Sequence[str | Path], module: TransformerModule) -> list[Checkpoint]:
    """Return a run's checkpoints, one for each step.

    Where all of them stand at the end of a schedule that falls to 0, they have the module's rate.

    Raises:
        ConfigError: It is one path and no list.
        CheckpointError: There is none, or one can't be read or isn't of the run that trained the module.
    """
    require_list(paths, "checkpoints")
    if not paths:
        raise CheckpointError("no checkpoint was given", mend="give those that `fit` wrote into checkpoints/")
    found = [_read(path, module) for path in paths]
    by_step = {checkpoint.step: checkpoint for checkpoint in found}
    if any(checkpoint.learning_rate > 0 for checkpoint in found):
        return list(by_step.values())
    # Any rate that they share ranks alike.
    return [replace(checkpoint, learning_rate=module.learning_rate) for checkpoint in by_step.values()]


@contextmanager
def weights_kept(module: nn.Module) -> Iterator[None]:
    """Put all weights back afterwards, bit by bit and in their place."""
    kept = {name: weight.to("cpu", copy=True) for name, weight in module.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in module.state_dict().items():
                weight.copy_(kept[name])


def _read(path: str | Path, module: TransformerModule) -> Checkpoint:
    checkpoint = read_checkpoint(path)
    if (problem := _foreign(checkpoint, module)) is not None:
        raise CheckpointError(problem, where=str(path), mend="give checkpoints of the run that trained the module")
    # The groups of lower layers are slower where `layer_decay` says so.
    rates = [group["lr"] for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    return Checkpoint(path, checkpoint["global_step"], float(max(rates, default=module.learning_rate)))


def _foreign(checkpoint: Mapping[str, Any], module: TransformerModule) -> str | None:
    """Return what shows that a checkpoint isn't of the run that trained the module."""
    written_by, asked = checkpoint[SECTION]["module"], type(module).__name__
    if written_by != asked:
        return f"it was written by {written_by}, not by {asked}"
    own, weights = module.state_dict(), checkpoint["state_dict"]
    if other := [name for name in [*own, *weights] if _shape(own, name) != _shape(weights, name)]:
        return f"its weights are of another module: {other[0]} differs in shape, or is missing from one of both"
    for name in "labels", "problem_type":
        trained, has = checkpoint["hyper_parameters"].get(name), module.hparams.get(name)
        if trained != has:
            return f"it was trained with {name}={trained}, the module with {has}"
    return None


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None
