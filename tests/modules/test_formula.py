import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

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
DECODERS = ["gpt2", "llama", "mistral", "qwen2"]
Padded = Literal["left", "right"] | None


def model_of(kind: str, **options: Any) -> PreTrainedModel:
    shared = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3, "use_sliding_window": True}
    sizes = SIZES if kind in ENCODERS or kind == "gpt2" else SIZES | shared
    config = AutoConfig.for_model(kind, **(sizes | options), intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(config)


def inputs(padded: Padded) -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 7, 9, 1, 1], [5, 1, 1, 1, 1]])
    ids = ids.flip(1) if padded == "left" else ids
    return {"input_ids": ids, "attention_mask": (ids != 1).long() if padded else torch.ones_like(ids)}


def read(model: PreTrainedModel, padded: Padded) -> tuple[Tensor, dict[str, Tensor]]:
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


@pytest.mark.parametrize("padded", ["left", "right", None])
@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_a_model_reads_and_learns_the_same_by_the_formula(
    kind: str, padded: Padded, by_formula: list[float], monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_with_dropout_a_model_learns_by_the_formula_alone(kind: str, by_formula: list[float]) -> None:
    model = model_of(kind, **DROPOUTS, attn_pdrop=0.5)
    attend_by_formula(model)
    model.eval()(**inputs("right"))
    assert not by_formula
    model.train()(**inputs("right"))
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
    kept = cheap_dropout(torch.ones(2, 2, 4, 4, dtype=torch.float64), 0.5)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * 0.3
    if shows == "some":
        scores = scores.masked_fill(~some, -torch.inf)
    elif shows == "what was before":
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    expected = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1) * kept, value)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_caller_says_more_of_what_is_shown_than_the_layer(is_causal: bool) -> None:
    query, key, value = tensors()
    found, _ = formula._attend(part(is_causal=not is_causal), query, key, value, None, 1e-3, is_causal=is_causal)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal).transpose(1, 2)
    # Of a thousand weights one is dropped.
    assert (found - expected).abs().median() < 0.01


@pytest.mark.parametrize("case", ["added mask", "cache", "position_bias", "softcap"])
def test_what_it_does_not_know_is_left_to_sdpa(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors()
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.float64) if case == "added mask" else None
    options = {} if mask is not None else {case: torch.ones(1)}
    given: list[Any] = []

    def sdpa(*tensors: Any, **named: Any) -> tuple[Tensor, None]:
        given.append((tensors[4], named))
        return tensors[1].transpose(1, 2), None

    monkeypatch.setattr(formula, "sdpa_attention_forward", sdpa)
    formula._attend(part(), query, key, value, mask, 0.5, 0.3, is_causal=False, **options)
    assert given == [(mask, {"dropout": 0.5, "scaling": 0.3, "is_causal": False, **options})]


@pytest.mark.parametrize("queries", [1, 3])
def test_without_a_mask_fewer_queries_than_keys_attend_as_by_sdpa(queries: int) -> None:
    query, key, value = tensors()
    causal = part(is_causal=True)
    expected, _ = formula.sdpa_attention_forward(causal, query[:, :, :queries], key, value, None)
    # So little is dropped that the seed spares all.
    found, _ = formula._attend(causal, query[:, :, :queries], key, value, None, dropout=2**-16)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "width", "learns", "quicker"),
    [
        (torch.bfloat16, 64, False, True),
        (torch.bfloat16, 65, False, False),
        (torch.bfloat16, 256, True, True),
        (torch.bfloat16, 257, True, False),
        (torch.bfloat16, 1, False, False),
        (torch.float32, 16, True, False),
        (torch.float16, 16, True, False),
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_masked_weighs_nothing_and_a_row_without_anything_to_see_is_finite(dtype: torch.dtype) -> None:
    # Scores so low that float16 has no room for them beyond its lowest number.
    query, key, value = ((10 * each.abs()).to(dtype) for each in tensors(width=64))
    query = -query
    shown = torch.rand(2, 1, 64, 64) < 0.5
    # What is masked would score far higher.
    key[:, :, 5] *= -20
    shown[0, 0, 3], shown[:, :, :, 5] = False, False
    before = formula._by_formula(query, key, value, shown, 0.0, 0.3)
    value[:, :, 5] = 1000
    after = formula._by_formula(query, key, value, shown, 0.0, 0.3)
    assert before.isfinite().all()
    sees = shown[:, 0].any(2)
    assert torch.equal(before[sees], after[sees])


def test_what_nobody_learns_from_is_read() -> None:
    query, _, value = (each.bfloat16().requires_grad_() for each in tensors(65))
    assert formula._is_quicker(query, value)
    with torch.no_grad():
        assert not formula._is_quicker(query, value)


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


def test_a_module_that_was_pickled_within_a_fit_runs_in_another_process(bert: str, tmp_path: Path) -> None:
    module = SentimentModule(bert).eval()
    expected = module.predict_texts(["a film"])[0].probability
    attend_by_formula(module.model)
    torch.save(module, tmp_path / "module.pt")
    program = (
        "import sys, torch\n"
        "module = torch.load(sys.argv[1], weights_only=False)\n"
        "print(module.model.config._attn_implementation, module.predict_texts(['a film'])[0].probability)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "module.pt")]
    name, probability = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert name == "lit_nlp_formula"
    assert float(probability) == pytest.approx(expected)
