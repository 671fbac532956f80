"""Tiny backbones with language-modelling heads, made from scratch in a second, for tests."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from lit_nlp import scratch
from tests.backbones import CORPUS

CONFIGS = {
    "roberta": "{model_type: roberta, vocab_size: 200, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2,"
    " intermediate_size: 32, max_position_embeddings: 66, type_vocab_size: 1}",
    "gpt2": "{model_type: gpt2, vocab_size: 300, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 64}",
    "llama": "{model_type: llama, vocab_size: 300, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2,"
    " intermediate_size: 32, max_position_embeddings: 64}",
    "t5": "{model_type: t5, vocab_size: 400, d_model: 16, d_ff: 32, d_kv: 8, num_layers: 2, num_heads: 2}",
}
_AUTO_CLASSES = {"roberta": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}


def save(kind: str, folder: Path) -> str:
    """A backbone of two layers with random weights and a tokenizer trained on the corpus."""
    config = scratch.read_config(f"scratch:{CONFIGS[kind]}")
    tokenizer = scratch.train_tokenizer(config, lambda: CORPUS)
    if kind == "roberta":
        tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = _AUTO_CLASSES.get(kind, AutoModelForCausalLM).from_config(scratch.fitting(config, tokenizer))
    model.save_pretrained(folder)
    return str(folder)
