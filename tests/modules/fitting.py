"""What the tests of modules share: loaders, watchers, equality."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lit_nlp import SentimentDataModule, SentimentModule

Data = Callable[..., SentimentDataModule]
Module = Callable[..., SentimentModule]
Batches = list[dict[str, Tensor]]


class Watcher(Callback):
    """Calls functions of the module at the hooks that they are named for."""

    def __init__(self, **hooks: Callable[[Any], object]) -> None:
        for name, function in hooks.items():
            setattr(self, name, lambda trainer, module, *_, function=function: function(module))


def loader(batches: Batches) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two modules' weights are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
