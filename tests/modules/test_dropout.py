from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel

from lit_nlp import SentimentDataModule, SentimentModule
from lit_nlp.modules import dropout
from lit_nlp.modules.attention import restore_attention
from lit_nlp.modules.dropout import cheap_dropout, cheapen_dropout, restore_dropout
from tests.contract import plain_trainer, write_rows

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
# By what name one architecture or another knows them.
DROPOUTS = dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob", "dropout", "hidden_dropout_prob"), 0.5)
ENCODERS = ["albert", "bert", "camembert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta"]


def encoder(kind: str, **options: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **(SIZES | options), intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(config)


def inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 7, 9, 1, 1], [5, 1, 1, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def heads(width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of two rows and two heads."""
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 2, width, 8, dtype=torch.float64)
    return query, key, value


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_numbers_are_dropped_as_often_as_asked_and_scaled_by_what_is_left(probability: float) -> None:
    torch.manual_seed(0)
    count = 200_000
    left = cheap_dropout(torch.ones(count, dtype=torch.float64), probability)
    share = round(probability * 65536) / 65536
    assert set(left.tolist()) == {0.0, 1 / (1 - share)}
    # Five standard deviations of a binomial share.
    assert abs((left == 0).double().mean() - probability) < 5 * (probability * (1 - probability) / count) ** 0.5


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (cheap_dropout(torch.ones(400_000), 0.3) == 0).double()
    for apart in range(1, 9):
        both = (dropped[apart:] * dropped[:-apart]).mean()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / len(dropped)) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_shape_and_type_keeps_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    left = cheap_dropout(torch.ones(shape, dtype=dtype), 0.5)
    assert left.shape == shape
    assert left.dtype == dtype
    assert set(left.flatten().tolist()) <= {0.0, 2.0}


def test_what_lies_across_memory_is_dropped_as_well() -> None:
    numbers = torch.arange(1.0, 13.0).view(3, 4).t()
    left = cheap_dropout(numbers, 0.5)
    assert torch.equal(left[left != 0], 2 * numbers[left != 0])


def test_the_gradient_passes_what_was_kept() -> None:
    numbers = torch.randn(1000, requires_grad=True)
    left = cheap_dropout(numbers, 0.25)
    left.sum().backward()
    assert torch.equal(numbers.grad, (left != 0) * (65536 / 49152))


@pytest.mark.parametrize(("probability", "left"), [(0.0, 1.0), (1.0, 0.0), (1e-6, 1.0)])
def test_all_or_nothing_is_dropped_as_torch_does(probability: float, left: float) -> None:
    assert cheap_dropout(torch.ones(100), probability).sum().item() == pytest.approx(100 * left, rel=0.02)


def test_the_same_seed_drops_the_same() -> None:
    torch.manual_seed(3)
    first = cheap_dropout(torch.ones(100), 0.5)
    second = cheap_dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(cheap_dropout(torch.ones(100), 0.5), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_eval_mode() -> None:
    model = encoder("bert")
    cheapen_dropout(model, attention=True)
    first, second = (model.eval()(**inputs()).logits for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(model.train()(**inputs()).logits, first)


@pytest.mark.parametrize("kind", ENCODERS)
def test_attention_is_that_of_transformers_but_for_what_it_drops(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(kind, **DROPOUTS).eval()
    real = inputs()["attention_mask"].bool()
    logits = model(**inputs()).logits[real]
    cheapen_dropout(model, attention=True)
    torch.testing.assert_close(model(**inputs()).logits[real], logits)
    seen: list[float] = []
    monkeypatch.setattr(dropout, "cheap_dropout", lambda numbers, p: seen.append(p) or numbers)
    torch.testing.assert_close(model.train()(**inputs()).logits[real], logits)
    assert seen.count(0.5) >= SIZES["num_hidden_layers"]
    restore_attention(model)
    restore_dropout(model)
    assert model.config._attn_implementation == "sdpa"
    assert {type(part) for part in model.modules() if isinstance(part, nn.Dropout)} == {nn.Dropout}


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_attention_are_dropped_by_the_formula(masked: bool) -> None:
    query, key, value = heads()
    shown = torch.tensor([[True, True, True, True], [True, True, False, False]])[:, None, None]
    part = nn.Module()
    part.is_causal, part.training = False, True
    torch.manual_seed(5)
    found, _ = dropout._attend(part, query, key, value, shown if masked else None, dropout=0.5, scaling=0.3)
    torch.manual_seed(5)
    kept = cheap_dropout(torch.ones(2, 2, 4, 4), 0.5).double()
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * 0.3
    if masked:
        scores = scores.masked_fill(~shown, -torch.inf)
    expected = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1) * kept, value)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["causal", "causal by option", "added mask", "shared keys"])
def test_what_it_does_not_know_is_left_to_sdpa(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = heads()
    part, mask, options = nn.Module(), None, dict[str, Any]()
    part.is_causal, part.num_key_value_groups = case == "causal", 2
    if case == "causal by option":
        options["is_causal"] = True
    elif case == "added mask":
        mask = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    elif case == "shared keys":
        key, value = key[:, :1], value[:, :1]
    calls: list[Any] = []
    monkeypatch.setattr(
        dropout, "sdpa_attention_forward", lambda *given, **kept: calls.append(kept) or (given[1].transpose(1, 2), None)
    )
    dropout._attend(part, query, key, value, mask, dropout=0.5, scaling=0.3, **options)
    assert calls == [{"dropout": 0.5, "scaling": 0.3, **options}]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_only_an_encoders_attention_is_replaced(kind: str) -> None:
    model = encoder(kind)
    cheapen_dropout(model, attention=True)
    assert (model.config._attn_implementation == "sdpa") == (kind == "gpt2")
    assert nn.Dropout not in {type(part) for part in model.modules()}


@pytest.mark.parametrize(
    ("arguments", "attends", "cheap"),
    [
        ({}, "lit_nlp_cheap_dropout", True),
        ({"attn_implementation": "sdpa"}, "sdpa", True),
        ({"attn_implementation": "eager"}, "eager", True),
        ({"compile": True}, "sdpa", False),
    ],
)
def test_a_fit_on_a_cpu_draws_fewer_and_gives_all_back(
    arguments: dict[str, Any], attends: str, cheap: bool, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "compile", lambda *_, **__: None)
    seen: set[tuple[str, bool]] = set()

    class Module(SentimentModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            plain = any(type(part) is nn.Dropout for part in self.modules())
            seen.add((self.model.config._attn_implementation, not plain))

    texts = [{"text": f"a {word} film", "label": word} for word in ("negative", "positive") * 4]
    source = write_rows(tmp_path / "rows.jsonl", texts)
    data = SentimentDataModule(bert, train=source, val=source, test=source, batch_size=2)
    module = Module(bert, **arguments)
    chosen = module.model.config._attn_implementation
    trainer = plain_trainer()
    trainer.fit(module, data)
    assert seen == {(attends, cheap)}
    assert module.model.config._attn_implementation == chosen
    assert {type(part) for part in module.modules() if isinstance(part, nn.Dropout)} == {nn.Dropout}
    trainer.test(module, data, verbose=False)
    assert module.model.config._attn_implementation == chosen
