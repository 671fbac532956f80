"""Beam search beside transformers' own, and the best continuations beside sorting all."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_nlp.modules.beam_search import beam_search, continuations

VOCABULARY, PAD, END = 150, 0, 1
ENDS = [END, 8, 9]
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "init_std": 0.4,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
}


def _bert_to_bert() -> EncoderDecoderModel:
    half = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.4,
    )
    return EncoderDecoderModel(config=EncoderDecoderConfig.from_encoder_decoder_configs(half, half))


MODELS: dict[str, Callable[[], Any]] = {
    "marian": lambda: MarianMTModel(MarianConfig(**_BART)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**_BART)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=1.0)
    ),
    "two encoders": _bert_to_bert,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_DECODER)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_DECODER, sliding_window=6)),
}


def model_of(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return MODELS[kind]().eval()


def sources(kind: str) -> dict[str, Tensor]:
    """Return six sources of three lengths, those of a decoder padded on the left."""
    ids = torch.randint(5, VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 9, 5, 5, 2, 2]).unsqueeze(1)
    mask = torch.arange(9) < lengths
    if kind in ("llama", "mistral"):
        mask = mask.flip(1)
    return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


def written(model: Any, kind: str, search: Any, **rules: Any) -> list[list[int]]:
    """Return what a model writes, up to each text's end."""
    given = {"num_beams": 4, "max_new_tokens": 14, "decoder_start_token_id": 2, "sequence_bias": {(END,): 3.0}}
    given |= {"pad_token_id": PAD, "eos_token_id": [END], "bos_token_id": 2, "do_sample": False} | rules
    inputs = sources(kind)
    ids = model.generate(**inputs, **given, custom_generate=search)
    begin = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    ends = given["eos_token_id"]
    return [
        row[: next((i + 1 for i, token in enumerate(row) if token in ends), None)] for row in ids[:, begin:].tolist()
    ]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": 0.5, "early_stopping": True},
        {"length_penalty": 1.5, "early_stopping": "never"},
        {"length_penalty": -1.0, "early_stopping": "never"},
        {"no_repeat_ngram_size": 2, "forced_bos_token_id": 7, "forced_eos_token_id": END, "min_new_tokens": 3},
        {"eos_token_id": ENDS, "num_beams": 2},
        {"sequence_bias": {(END,): -20.0}},
        {"repetition_penalty": 1.3, "early_stopping": True},
    ],
    ids=str,
)
def test_it_writes_what_transformers_own_writes(kind: str, rules: dict[str, Any]) -> None:
    lengths = set()
    for seed in range(1 if rules else 4):
        model = model_of(kind, seed)
        own = written(model, kind, beam_search, **rules)
        assert own == written(model, kind, None, **rules)
        lengths |= set(map(len, own))
    assert len(lengths) > 1 or rules  # or else no text would have been left out before others


@pytest.mark.parametrize("kind", MODELS)
def test_texts_whose_best_hypothesis_is_settled_are_no_longer_run(kind: str) -> None:
    left_out = False
    for seed in range(4):
        model, rows = model_of(kind, seed), list[int]()
        decoder = model.get_decoder() if model.config.is_encoder_decoder else model.model
        decoder.register_forward_hook(lambda *call, rows=rows: rows.append(len(call[2][0])))
        texts = written(model, kind, beam_search, early_stopping=True, num_beams=2)
        assert rows[0] == 2 * len(texts)
        assert rows == sorted(rows, reverse=True)
        left_out |= rows[-1] < rows[0]
    assert left_out


@pytest.mark.parametrize("vocabulary", [7, 128, 150, 300, 1024])
@pytest.mark.parametrize("ties", [False, True])
def test_continuations_are_the_best_of_all(vocabulary: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    for _ in range(20):
        logs = torch.randn(3, 4, vocabulary, generator=generator).log_softmax(2)
        scores = torch.randn(3, 4, generator=generator)
        if ties:
            logs, scores = logs.round(), scores.round()
        scores[0, 1:] = -torch.inf
        found, beam, token = continuations(logs, scores, 7)
        every = logs + scores.unsqueeze(2)
        torch.testing.assert_close(found, every.flatten(1).sort(descending=True).values[:, :7], rtol=0, atol=0)
        torch.testing.assert_close(every[torch.arange(3).unsqueeze(1), beam, token], found, rtol=0, atol=0)
        assert all(len(set(row)) == 7 for row in (beam * vocabulary + token).tolist())


def test_devices_that_share_weights_take_equally_many_steps() -> None:
    model = model_of("marian")
    model._is_fsdp_managed_module = True
    with patch.object(MarianMTModel, "_beam_search", return_value=torch.ones(6, 3, dtype=torch.long)) as own:
        written(model, "marian", beam_search)
    assert own.call_args.kwargs["synced_gpus"] is True


def test_a_model_without_a_cache_is_searched_by_transformers_own() -> None:
    model = model_of("llama")
    assert written(model, "llama", beam_search, use_cache=False) == written(model, "llama", None)
