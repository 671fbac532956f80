from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForTokenClassification, PreTrainedModel

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.modules import formula
from lit_nlp.modules.attention import restore_attention
from lit_nlp.modules.dropout import cheap_dropout
from lit_nlp.modules.formula import attend_by_formula
from tests.contract import plain_trainer, write_rows

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
# By what name one architecture or another knows them.
DROPOUTS = dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob", "dropout"), 0.5)
ENCODERS = ["albert", "bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"]
DECODERS = ["gpt2", "llama", "qwen2"]


def model_of(kind: str, **options: Any) -> PreTrainedModel:
    sizes = {**SIZES, "num_key_value_heads": 1} if kind in ("llama", "qwen2") else SIZES
    config = AutoConfig.for_model(kind, **(sizes | options), intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(config)


def inputs(padded: bool) -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 7, 9, 1, 1], [5, 1, 1, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long() if padded else torch.ones_like(ids)}


def read(model: PreTrainedModel, padded: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of all text, and the gradients of a function of them."""
    model.zero_grad()
    given = inputs(padded)
    logits = model(**given).logits[given["attention_mask"].bool()].float()
    logits.square().sum().backward()
    slopes = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    return logits.detach(), slopes


def tensors(width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of two rows and two heads."""
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 2, width, 8, dtype=torch.float64)
    return query, key, value


def part(*, is_causal: bool = False) -> nn.Module:
    """Return what attends."""
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = is_causal, 1
    return module


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The probabilities of the dropout that the formula was called with."""
    calls: list[float] = []
    inner = formula._by_formula

    def counted(*given: Any) -> Tensor:
        calls.append(given[4])
        return inner(*given)

    monkeypatch.setattr(formula, "_by_formula", counted)
    return calls


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_model_reads_and_learns_the_same_by_the_formula(
    kind: str, padded: bool, by_formula: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind).eval()
    logits, slopes = read(model, padded)
    attend_by_formula(model)
    monkeypatch.setattr(formula, "_is_quicker", lambda *_: True)
    again, their_slopes = read(model, padded)
    assert by_formula == [0.0] * SIZES["num_hidden_layers"]
    torch.testing.assert_close(again, logits)
    assert their_slopes.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(their_slopes[name], slope, rtol=1e-4, atol=1e-5, msg=name)
    restore_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", [*ENCODERS, "gpt2", "llama", "qwen2"])
def test_with_dropout_a_model_learns_by_the_formula_alone(kind: str, by_formula: list[float]) -> None:
    model = model_of(kind, **DROPOUTS, attn_pdrop=0.5)
    attend_by_formula(model)
    model.eval()(**inputs(padded=True))
    assert not by_formula
    model.train()(**inputs(padded=True))
    assert by_formula == [0.5] * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("shows", ["all", "some", "what was before"])
def test_weights_are_dropped_by_the_formula(shows: str) -> None:
    query, key, value = tensors()
    some = torch.tensor([[True, True, True, True], [True, True, False, False]])[:, None, None]
    torch.manual_seed(5)
    found, _ = formula._attend(
        part(is_causal=shows == "what was before"), query, key, value, some if shows == "some" else None, 0.5, 0.3
    )
    torch.manual_seed(5)
    kept = cheap_dropout(torch.ones(2, 2, 4, 4), 0.5).double()
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * 0.3
    if shows == "some":
        scores = scores.masked_fill(~some, -torch.inf)
    elif shows == "what was before":
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    expected = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1) * kept, value)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_caller_says_more_of_what_is_shown_than_the_layer(is_causal: bool) -> None:
    query, key, value = tensors()
    found, _ = formula._attend(part(is_causal=not is_causal), query, key, value, None, 1e-3, is_causal=is_causal)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2)
    # Of a thousand weights one is dropped.
    assert (found - expected).abs().median() < 0.01


def test_what_it_does_not_know_is_left_to_sdpa(by_formula: list[float]) -> None:
    query, key, value = tensors()
    added = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    formula._attend(part(), query, key, value, added, dropout=0.5)
    assert not by_formula
    formula._attend(part(), query, key, value, added.bool(), dropout=0.5)
    assert by_formula == [0.5]


@pytest.mark.parametrize(
    ("dtype", "width", "learns", "quicker"),
    [
        (torch.bfloat16, 64, False, True),
        (torch.bfloat16, 65, False, False),
        (torch.bfloat16, 256, True, True),
        (torch.bfloat16, 257, True, False),
        (torch.bfloat16, 1, False, False),
        (torch.float32, 16, True, False),
    ],
)
def test_without_dropout_the_kernel_is_left_where_it_is_slow(
    dtype: torch.dtype, width: int, learns: bool, quicker: bool, by_formula: list[float]
) -> None:
    query, key, value = (each.to(dtype).requires_grad_(learns) for each in tensors(width))
    found, _ = formula._attend(part(), query, key, value, None)
    assert bool(by_formula) == quicker
    expected = nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double()).transpose(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("width", [4, 64])
def test_autocast_counts_as_half_precision(width: int, by_formula: list[float]) -> None:
    query, key, value = (each.float() for each in tensors(width))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = formula._attend(part(), query, key, value, None)
    assert by_formula == [0.0]
    expected = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_an_encoder_decoder_stays_as_it_is() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = AutoConfig.for_model("bart", vocab_size=50, pad_token_id=1, **sizes)
    model = AutoModelForSeq2SeqLM.from_config(config)
    attend_by_formula(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("arguments", "attends", "cheap"),
    [
        ({}, "lit_nlp_formula", True),
        ({"attn_implementation": "sdpa"}, "sdpa", True),
        ({"attn_implementation": "eager"}, "eager", True),
        ({"compile": True}, "sdpa", False),
    ],
)
def test_a_trainer_on_a_cpu_takes_the_formula_and_gives_all_back(
    arguments: dict[str, Any], attends: str, cheap: bool, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "compile", lambda *_, **__: None)
    seen: set[tuple[str, bool]] = set()

    class Module(SentimentModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            plain = any(type(part) is nn.Dropout for part in self.modules())
            seen.add((self.model.config._attn_implementation, not plain))

    rows = [{"text": f"a {word} film", "label": word} for word in ("negative", "positive") * 4]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    data = SentimentDataModule(bert, train=source, val=source, test=source, batch_size=2)
    module = Module(bert, **arguments)
    chosen = module.model.config._attn_implementation
    trainer = plain_trainer()
    trainer.fit(module, data)
    assert seen == {(attends, cheap)}
    trainer.test(module, data, verbose=False)
    assert module.model.config._attn_implementation == chosen
    assert {type(part) for part in module.modules() if isinstance(part, nn.Dropout)} == {nn.Dropout}
