from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.modules import varlen
from lit_nlp.modules.varlen import bounds, can_skip_padding, has_flash_attention, skip_padding
from tests.contract import plain_trainer, write_rows

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
WITHOUT_PADDING = [
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "eurobert",
    "jina_embeddings_v3",
    "modernbert",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
]
VARLEN = "lit_nlp_varlen"
CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="there is no GPU with FlashAttention",
)


def encoder(kind: str, **options: Any) -> PreTrainedModel:
    sizes = {**SIZES, "num_key_value_heads": 1} if kind == "eurobert" else SIZES
    config = AutoConfig.for_model(kind, **(sizes | options), intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    auto_class = AutoModelForSequenceClassification if kind == "bart" else AutoModelForTokenClassification
    return auto_class.from_config(config).eval()


def inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 7, 9, 1, 1], [5, 1, 1, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def read(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of all text, and the gradients of a function of them."""
    given = {name: each.to(model.device) for name, each in inputs().items()}
    model.zero_grad()
    logits = model(**given).logits[given["attention_mask"].bool()].float()
    logits.square().sum().backward()
    return logits.detach(), {
        name: part.grad.float() for name, part in model.named_parameters() if part.grad is not None
    }


@contextmanager
def autocast_of_a_gpu(dtype: torch.dtype) -> Iterator[None]:
    """What `torch.autocast` sets where there is a GPU, and doesn't where there is none."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class Kernel:
    """Attends as the GPU's kernel does, one sequence after the other, with the formula."""

    def __init__(self) -> None:
        self.dropouts: list[float] = []
        self.types: set[torch.dtype] = set()

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, of: Tensor, longest: int, dropout: float, scaling: float
    ) -> Tensor:
        self.dropouts.append(dropout)
        self.types |= {query.dtype, key.dtype, value.dtype}
        edges, attended = of.tolist(), []
        assert edges[0] == 0
        assert edges[-1] == len(query)
        for begin, end in pairwise(edges):
            assert 0 <= end - begin <= longest
            q, k, v = (each[begin:end].transpose(0, 1) for each in (query, key, value))
            k, v = (each.repeat_interleave(len(q) // len(each), dim=0) for each in (k, v))
            attended.append(((q @ k.transpose(1, 2) * scaling).softmax(2) @ v).transpose(0, 1))
        return torch.cat(attended)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The kernel where there is no GPU, in whatever type it is given."""
    found = Kernel()
    monkeypatch.setattr(varlen, "_flash", found)
    monkeypatch.setattr(varlen, "_multiplies_halves", lambda *_: True)
    return found


def test_a_text_and_the_padding_on_either_side_are_sequences_of_their_own() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    assert bounds(mask).tolist() == [0, 0, 5, 5, 5, 8, 10, 11, 13, 15, 19, 20, 20]
    assert bounds(mask).dtype == torch.int32


def test_padding_may_stand_on_the_left(kernel: Kernel) -> None:
    model = encoder("bert")
    given = {name: each.flip(1) for name, each in inputs().items()}
    real = given["attention_mask"].bool()
    logits = model(**given).logits[real]
    skip_padding(model)
    torch.testing.assert_close(model(**given).logits[real], logits)
    assert kernel.dropouts


@pytest.mark.parametrize("kind", WITHOUT_PADDING)
def test_texts_read_the_same_without_their_padding(kind: str, kernel: Kernel) -> None:
    model = encoder(kind)
    logits, slopes = read(model)
    skip_padding(model)
    assert not kernel.dropouts
    again, their_slopes = read(model)
    assert set(kernel.dropouts) == {0.0}
    torch.testing.assert_close(again, logits)
    assert their_slopes.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(their_slopes[name], slope, msg=name)


def test_layers_that_see_their_neighbours_alone_keep_their_mask(kernel: Kernel) -> None:
    model = encoder("modernbert", num_hidden_layers=4, local_attention=2)
    logits, _ = read(model)
    skip_padding(model)
    torch.testing.assert_close(read(model)[0], logits)
    kinds = model.config.layer_types
    assert 0 < len(kernel.dropouts) == kinds.count("full_attention") < len(kinds)


def test_on_a_cpu_and_without_a_mask_attention_is_as_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_flash", None)
    model = encoder("bert")
    with torch.autocast("cpu", torch.bfloat16), autocast_of_a_gpu(torch.bfloat16):
        expected, unmasked = read(model)[0], model(inputs()["input_ids"]).logits
        skip_padding(model)
        torch.testing.assert_close(read(model)[0], expected)
        torch.testing.assert_close(model(inputs()["input_ids"]).logits, unmasked)


@pytest.mark.parametrize("kind", WITHOUT_PADDING)
def test_the_kernel_is_given_one_half_precision(kind: str, kernel: Kernel) -> None:
    model = encoder(kind)
    skip_padding(model)
    with torch.autocast("cpu", torch.bfloat16), autocast_of_a_gpu(torch.bfloat16):
        model(**inputs())
    assert kernel.types == {torch.bfloat16}


def test_the_kernel_is_for_half_precision_on_a_gpu() -> None:
    assert varlen._multiplies_halves(torch.float16, CUDA)
    assert not varlen._multiplies_halves(torch.float32, CUDA)
    assert not varlen._multiplies_halves(torch.float16, torch.device("cpu"))
    with autocast_of_a_gpu(torch.bfloat16):
        assert varlen._multiplies_halves(torch.float32, CUDA)
    with autocast_of_a_gpu(torch.float32):
        assert not varlen._multiplies_halves(torch.float32, CUDA)


def test_one_compilation_is_for_all_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whose checks can't be compiled
    monkeypatch.setattr(varlen, "_flash", lambda query, *_: query)
    monkeypatch.setattr(varlen, "_multiplies_halves", lambda *_: True)
    model, compiled = encoder("bert"), CompileCounter()
    skip_padding(model)
    model.compile(backend=compiled, dynamic=True)
    for width in (5, 8, 16, 24):
        ids = torch.full((3, width), 5)
        model(input_ids=ids, attention_mask=(torch.arange(width) < 4).expand_as(ids).long())
    assert compiled.frame_count == 1


@pytest.mark.parametrize(
    ("kind", "options", "can"),
    [
        *((kind, {}, True) for kind in WITHOUT_PADDING),
        ("mpnet", {}, False),
        ("deberta-v2", {}, False),
        ("bart", {}, False),
        ("llama", {}, False),
        ("bert", {"attn_implementation": "eager"}, False),
        ("bert", {"num_attention_heads": 4}, False),
        ("bert", {"hidden_size": 1024}, False),
    ],
)
def test_it_is_for_encoders_with_heads_that_the_kernel_takes(kind: str, options: dict[str, Any], can: bool) -> None:
    assert can_skip_padding(encoder(kind, **options)) == can


def test_it_is_for_gpus_with_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert has_flash_attention(CUDA)
    assert not has_flash_attention(torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH):
        assert not has_flash_attention(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not has_flash_attention(CUDA)


@pytest.mark.parametrize(("chosen", "attends"), [(None, VARLEN), ("sdpa", "sdpa"), ("eager", "eager")])
def test_a_trainer_lets_a_module_attend_so_where_nobody_chose(
    chosen: str | None, attends: str, bert: str, tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_nlp.modules.base.has_flash_attention", lambda _: True)
    seen: list[str] = []

    class Module(SentimentModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.model.config._attn_implementation)

    rows = [
        {"text": text, "label": label}
        for text in ("a film", "a film that is long")
        for label in ("negative", "positive")
    ]
    data = SentimentDataModule(bert, train=write_rows(tmp_path / "train.jsonl", rows), val_fraction=0.25, batch_size=2)
    module = Module(bert, attn_implementation=chosen)
    before = module.model.config._attn_implementation
    plain_trainer(max_epochs=1).fit(module, data)
    assert set(seen) == {attends}
    assert module.model.config._attn_implementation == before
    assert 0.1 in kernel.dropouts if attends == VARLEN else not kernel.dropouts


# On a GPU


@needs_gpu
@pytest.mark.parametrize("kind", WITHOUT_PADDING)
def test_the_kernel_attends_as_the_formula_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(kind).to(CUDA)
    expected, slopes = read(model)
    attend, calls = varlen._flash, list[int]()
    monkeypatch.setattr(varlen, "_flash", lambda *given: calls.append(len(given[0])) or attend(*given))
    skip_padding(model)
    with torch.autocast("cuda", torch.float16):
        logits, their_slopes = read(model)
    assert calls
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    for name, slope in slopes.items():
        torch.testing.assert_close(
            their_slopes[name], slope, rtol=0.1, atol=0.05 * float(slope.abs().max()) + 1e-4, msg=name
        )


@needs_gpu
def test_dropout_of_attention_is_what_is_asked_for() -> None:
    """Of values that are all 1, attention that isn't dropped gives its share times 1 / (1 - dropout): 1 in the mean."""
    tokens, heads = 512, 4
    query, key, value = (torch.randn(tokens, heads, 8, device=CUDA, dtype=torch.float16) for _ in range(3))
    of = torch.tensor([0, 500, 512], device=CUDA, dtype=torch.int32)
    ones = varlen._flash(query, key, torch.ones_like(value), of, tokens, 0.0, None)
    torch.testing.assert_close(ones, torch.ones_like(ones))
    dropped = varlen._flash(query, key, torch.ones_like(value), of, tokens, 0.5, None).float()
    assert dropped.std() > 0.01
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
