from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_nlp import SentimentDataModule, SentimentModule
from tests.backbones import CORPUS
from tests.contract import write_rows


@pytest.fixture
def data(bert: str, tmp_path: Path) -> Callable[..., SentimentDataModule]:
    """Make data modules over eighteen rows, of which every batch holds texts of several lengths."""
    rows = [{"text": " ".join(CORPUS[: 1 + i % 3]) + f" {i}", "label": i % 2} for i in range(18)]
    source = write_rows(tmp_path / "rows.jsonl", rows)

    def make(**arguments: Any) -> SentimentDataModule:
        return SentimentDataModule(
            bert, **{"train": source, "val": source, "test": source, "batch_size": 4, "max_length": 32, **arguments}
        )

    return make


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches of token ids, as any loader could give them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (2, 4, 7), generator=generator)
    return [
        {"input_ids": each, "attention_mask": torch.ones_like(each), "labels": torch.tensor([0, 1, 1, 0])}
        for each in ids
    ]


@pytest.fixture
def module(bert: str) -> Callable[..., SentimentModule]:
    """Make modules with equal weights, whatever was drawn before."""

    def make(module_class: type[SentimentModule] = SentimentModule, **arguments: Any) -> SentimentModule:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return module_class(bert, **{"learning_rate": 1e-3, **arguments})

    return make
