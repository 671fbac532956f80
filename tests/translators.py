"""Tiny translation models with random weights and their families' own tokenizers, for tests."""

import io
import json
from pathlib import Path

import sentencepiece
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
)

from tests.backbones import CORPUS

GERMAN = [
    "ein warmer, lustiger und bewegender Film, der bleibt",
    "öde, leblos und viel zu lang, um Spaß zu machen",
    "gut gespielt, aber die Geschichte ist schlecht",
    "kein guter Film, auch kein schlechter",
    "ich habe jede Minute geliebt und würde ihn wieder sehen",
    "ich hasste die Handlung, die Musik und das schreckliche Ende",
]
_SMALL = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}


def save_marian(folder: Path) -> str:
    """A Marian model, whose tokenizer is slow and has a sentencepiece model for each language."""
    pieces = {}
    for side, texts in (("source", CORPUS), ("target", GERMAN)):
        (folder / f"{side}.spm").write_bytes(_sentencepiece(texts))
        pieces |= dict.fromkeys(_pieces(folder / f"{side}.spm"))
    vocabulary = {
        piece: i
        for i, piece in enumerate(["</s>", "<unk>", *(p for p in pieces if p != "<unk>" and p != "</s>"), "<pad>"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), model_max_length=64
    ).save_pretrained(folder)
    config = MarianConfig(
        vocab_size=len(vocabulary),
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=0,
        decoder_start_token_id=vocabulary["<pad>"],
        forced_eos_token_id=0,
        **_SMALL,
    )
    MarianMTModel(config).save_pretrained(folder)
    return str(folder)


def save_mbart(folder: Path, tokenizer_class: type = MBart50Tokenizer) -> str:
    """An mBART model, by default the many-to-many one, whose targets begin with their language."""
    (folder / "x.spm").write_bytes(_sentencepiece(CORPUS + GERMAN))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [(piece, -1.0 - i / 100) for i, piece in enumerate(_pieces(folder / "x.spm")) if piece not in special]
    if tokenizer_class is MBartTokenizer:
        vocabulary += [(code, 0.0) for code in ("en_XX", "de_DE")]
    tokenizer = tokenizer_class(vocab=vocabulary, src_lang="en_XX", tgt_lang="de_DE", model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = MBartConfig(vocab_size=len(tokenizer), decoder_start_token_id=2, forced_eos_token_id=2, **_SMALL)
    MBartForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def save_m2m100(folder: Path) -> str:
    """An M2M100 model, whose tokenizer is slow and keeps its languages apart from its vocabulary."""
    (folder / "x.spm").write_bytes(_sentencepiece(CORPUS + GERMAN))
    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces += [piece for piece in _pieces(folder / "x.spm") if piece not in pieces]
    (folder / "x.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    tokenizer = M2M100Tokenizer(str(folder / "x.json"), str(folder / "x.spm"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=tokenizer.encoder_size + len(tokenizer.lang_code_to_id) + 8, decoder_start_token_id=2, **_SMALL
    )
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def _sentencepiece(texts: list[str]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3), model_writer=model, vocab_size=90, hard_vocab_limit=False, minloglevel=9
    )
    return model.getvalue()


def _pieces(path: Path) -> list[str]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]
