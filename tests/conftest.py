import os
from pathlib import Path

import pytest

# Read when huggingface_hub is imported: without a network each look-up would take a minute.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from tests import backbones


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much where tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of tokenised tables for this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LIT_NLP_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    """A test draws the same weights whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(backbones.save_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(backbones.save_roberta(tmp_path_factory.mktemp("roberta")))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(backbones.save_llama(tmp_path_factory.mktemp("llama")))
