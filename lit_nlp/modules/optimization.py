"""Which parameters learn how fast: groups without decay, layer-wise rates, freezing, the schedule's length."""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from lit_nlp.errors import ConfigError, did_you_mean

# What FSDP, and checkpointing of activations under it, put into the names of the parameters that they wrap.
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Stop training of the parameters that a pattern names, as in ``embeddings`` or ``*.layer.[0-3].*``.

    A pattern matches a parameter's whole dotted name, or a run of whole parts of it.

    Raises:
        ConfigError: A pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            parts = {part for name in names for part in name.split(".")}
            raise ConfigError(
                f"{pattern!r} names no parameter, such as {names[0]}",
                where="model.freeze",
                mend=did_you_mean(pattern, parts),
            )
    for name, parameter in model.named_parameters():
        if any(_matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every parameter is frozen; there is nothing to train", where="model.freeze")


class Place(NamedTuple):
    """Where a parameter stands: layers below the head, and whether its weights decay."""

    below_head: int
    decays: bool


def parameter_places(model: nn.Module) -> dict[str, Place]:
    """Return the place of each parameter; taken before a strategy wraps the model and flattens its weights.

    Biases and the weights of norms, all that has less than two dimensions, don't decay.
    """
    depth = _Depth(model)
    return {name: Place(depth.below_head(name), each.ndim >= 2) for name, each in model.named_parameters()}


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    places: dict[str, Place],
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: no decay on biases and norms, and slower rates deeper down.

    The head and what stands above the layers learn at `learning_rate`, the top layer and each below at
    `layer_decay` times the rate of what stands on it, the embeddings the slowest (Howard and Ruder 2018,
    "Universal Language Model Fine-tuning for Text Classification").

    Args:
        named: The parameters by their names.
        places: The place of each, as of `parameter_places`.
        learning_rate: That of the head.
        weight_decay: Of what decays.
        layer_decay: The share of the rate of what stands above.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        place = places[_WRAPPERS.sub("", name)]
        rate = learning_rate * layer_decay**place.below_head
        decay = weight_decay if place.decays else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Return the steps of warm-up: below 1 a share of all steps, else their number."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(name, whole) for whole in (pattern, f"{pattern}.*", f"*.{pattern}", f"*.{pattern}.*"))


class _Depth:
    """How far below the head each parameter stands, counted in layers."""

    def __init__(self, model: nn.Module) -> None:
        stacks = [(name, len(module)) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        self.stacks = [stack for stack in stacks if not any(_inside(stack[0], other) for other, _ in stacks)]
        self.embeddings = list(_embedding_names(model))

    def below_head(self, name: str) -> int:
        for stack, layers in self.stacks:
            if _inside(name, stack):
                return layers - int(name.removeprefix(f"{stack}.").partition(".")[0])
        if any(_inside(name, embedding) for embedding in self.embeddings):
            return max((layers for _, layers in self.stacks), default=0) + 1
        return 0


def _inside(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _embedding_names(model: nn.Module) -> Iterator[str]:
    """Name the modules that hold embeddings: each `nn.Embedding`, and the norm beside it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            parent = name.rpartition(".")[0]
            yield parent if parent.endswith("embeddings") else name
