from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.data.base import TextDataModule
from lit_nlp.modules.base import TransformerModule
from tests.backbones import CORPUS
from tests.contract import Contract, plain_trainer, write_rows


class TestSentiment(Contract):
    texts = CORPUS

    def data(self, backbone: str, folder: Path) -> TextDataModule:
        rows = [{"text": text, "label": row % 3} for row, text in enumerate(CORPUS)]
        source = write_rows(folder / "rows.jsonl", rows)
        return SentimentDataModule(
            backbone, train=source, val=source, test=source, predict=source, classes=3, batch_size=4, max_length=48
        )

    def module(self, backbone: str, data: Any, **arguments: Any) -> TransformerModule:
        return SentimentModule(backbone, labels=data.labels, max_length=data.max_length, **arguments)


class Known(SentimentModule):
    """Says what it is told to say of each row."""

    said: Tensor

    def forward_batch(self, batch: Any) -> Tensor:
        return self.said[batch["row"]]


def test_the_mean_absolute_error_counts_the_classes_between_said_and_given(bert: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = ["very negative", "negative", "neutral", "positive", "very positive"]
    module = Known(bert, labels=labels)
    module.said = torch.randn(43, 5, generator=generator)
    given = torch.randint(0, 5, (43,), generator=generator)
    batches: Any = [{"row": rows, "labels": given[rows]} for rows in torch.arange(43).split(4)]
    (metrics,) = plain_trainer().test(module, DataLoader(batches, batch_size=None), verbose=False)
    expected = sklearn.metrics.mean_absolute_error(given.numpy(), module.said.argmax(1).numpy())
    assert metrics["test/mean_absolute_error"] == pytest.approx(expected)
    assert metrics["test/accuracy"] == pytest.approx((given == module.said.argmax(1)).float().mean().item())


def test_without_labels_there_are_negative_and_positive(bert: str) -> None:
    module = SentimentModule(bert)
    assert module.labels == module.hparams["labels"] == ["negative", "positive"]
    assert module.monitor == ("val/accuracy", "max")


def test_the_problem_type_is_no_argument(bert: str) -> None:
    assert "problem_type" not in SentimentModule(bert).hparams
    with pytest.raises(TypeError, match="problem_type"):
        SentimentModule(bert, problem_type="regression")
