"""`scratch:` strings: a model with random weights from a configuration, and a tokenizer trained on one's own texts.

After the prefix stands a configuration of transformers: in place, as in ``scratch:{model_type: bert, vocab_size:
8000}``, in a YAML or JSON file, or in a folder's `config.json`. What it doesn't say is transformers' default.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from lit_nlp.architecture import architecture
from lit_nlp.errors import BackboneError, did_you_mean
from lit_nlp.files import cache_folder, folder_written_whole

PREFIX = "scratch:"
_SENTINELS = 100
# Rises where the same texts give another tokenizer than before.
_CACHE_FORMAT = 3


def has_tokenizer(backbone: str) -> bool:
    """Whether a `scratch:` string names a folder that holds a tokenizer already."""
    folder = backbone.removeprefix(PREFIX)
    return any(os.path.isfile(f"{folder}/{name}") for name in ("tokenizer.json", "tokenizer_config.json"))


def read_config(backbone: str) -> PreTrainedConfig:
    """Return the configuration that a `scratch:` string describes.

    Raises:
        BackboneError: It can't be read, names no architecture, or has an argument that this one doesn't know.
    """
    rest, where = backbone.removeprefix(PREFIX).strip(), f"backbone {backbone}"
    try:
        if os.path.isdir(rest):
            return AutoConfig.from_pretrained(rest)
        given = yaml.safe_load(rest if rest.startswith("{") else Path(rest).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"the configuration can't be read ({' '.join(str(error).split())})"
        raise BackboneError(problem, where=where, mend="write scratch:{model_type: …}, a file or a folder") from error
    kind = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        mend = did_you_mean(str(kind), CONFIG_MAPPING) or "name one of transformers' architectures"
        raise BackboneError(f"model_type {kind!r} is no architecture", where=where, mend=mend)
    known = AutoConfig.for_model(kind)
    for name in given:
        if not isinstance(name, str) or not hasattr(known, name):
            mend = did_you_mean(str(name), vars(known)) or f"see the documentation of {type(known).__name__}"
            raise BackboneError(f"{kind} has no argument {name!r}", where=where, mend=mend)
    # The tokenizer that is to be trained has special tokens of its own; the defaults may lie beyond its vocabulary.
    size = given["vocab_size"] if isinstance(given.get("vocab_size"), int) else math.inf
    beyond = [name for name, default in vars(known).items() if name.endswith("token_id") and _highest(default) >= size]
    try:
        # Where a decoder starts is the one that must be a number.
        return AutoConfig.for_model(**{name: 0 if "start" in name else None for name in beyond} | given)
    except (StrictDataclassError, TypeError, ValueError) as error:
        problem = f"the configuration is none of {kind} ({' '.join(str(error).split())})"
        mend = f"see the documentation of {type(known).__name__}"
        raise BackboneError(problem, where=where, mend=mend) from error


def _highest(token: int | list[int] | None) -> int:
    return max(token, default=0) if isinstance(token, list) else token or 0


def with_tokenizer(backbone: str, texts: Callable[[], Iterable[str]], corpus: Any) -> str:
    """Return a `scratch:` string for a folder with the same configuration and a tokenizer trained on the texts.

    It is kept in the cache, and found there again.

    Args:
        texts: Reads what the tokenizer is trained on, from the start.
        corpus: What changes when the texts may have: JSON.
    """
    config = read_config(backbone)
    key = hashlib.sha256(
        json.dumps([_CACHE_FORMAT, config.to_dict(), corpus], sort_keys=True, default=str).encode()
    ).hexdigest()
    folder = cache_folder() / "backbones" / key[:32]
    if not folder.exists():
        tokenizer = train_tokenizer(config, texts)
        with folder_written_whole(folder, replace=False) as partial:
            tokenizer.save_pretrained(partial)
            fitting(config, tokenizer).save_pretrained(partial)
    return f"{PREFIX}{folder}"


def train_tokenizer(config: PreTrainedConfig, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerFast:
    """Train the tokenizer that goes with an architecture, of at most `config.vocab_size` tokens.

    WordPiece for encoders (Devlin et al. 2019), byte-level BPE for decoders (Radford et al. 2019), BPE over words
    with their blanks for encoder-decoders (Sennrich et al. 2016), with T5's sentinels for T5. The same texts always
    give the same tokenizer.

    Args:
        config: The architecture and its `vocab_size`.
        texts: Reads what the tokenizer is trained on, from the start; WordPiece goes through it twice.
    """
    kind, size = architecture(config), int(config.vocab_size)
    if kind == "encoder":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        train_word_pieces(tokenizer, size, list(names.values()), texts)
        ends = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    elif kind == "decoder":
        names = {"eos": "<|endoftext|>", "bos": "<|endoftext|>"}
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts(), trainer)
        ends = None
    else:
        names = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
        sentinels = [f"<extra_id_{i}>" for i in range(_SENTINELS)] if "t5" in config.model_type else []
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*names.values(), *sentinels], show_progress=False
        )
        tokenizer.train_from_iterator(texts(), trainer)
        ends = "$A </s>", "$A </s> $B </s>"
    if ends:
        single, pair = ends
        special = [(token, tokenizer.token_to_id(token)) for token in names.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    arguments: dict[str, Any] = {f"{role}_token": token for role, token in names.items()}
    if kind == "encoder":
        types = ["token_type_ids"] if getattr(config, "type_vocab_size", 1) > 1 else []
        arguments["model_input_names"] = ["input_ids", *types, "attention_mask"]
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if limit:
        arguments["model_max_length"] = int(limit)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **arguments)


def train_word_pieces(
    tokenizer: Tokenizer, size: int, special: Sequence[str], texts: Callable[[], Iterable[str]]
) -> None:
    """Give a tokenizer that normalises and splits as BERT's the word pieces of some texts.

    Args:
        tokenizer: Gets them, in place of its own.
        size: The most tokens, special ones included.
        special: The special tokens, which are numbered from 0.
        texts: Reads the texts from the start, twice.
    """

    def vocabulary(size: int, first: Sequence[str]) -> dict[str, int]:
        learner = Tokenizer.from_str(tokenizer.to_str())
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(first), show_progress=False)
        learner.train_from_iterator(texts(), trainer)
        return learner.get_vocab()

    # Left to itself, the trainer numbers letters within words in an order that differs from one training to the next,
    # and of pairs that are as frequent it joins the one with the lower numbers.
    within = sorted(token for token in vocabulary(0, special) if token.startswith("##"))
    tokenizer.model = models.WordPiece(vocabulary(size, [*special, *within]), unk_token=tokenizer.model.unk_token)
    tokenizer.add_special_tokens(list(special))


def fitting(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """Return the configuration with the tokenizer's size and special tokens."""
    changes: dict[str, Any] = {"vocab_size": len(tokenizer)}
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        changes[f"{role}_token_id"] = getattr(tokenizer, f"{role}_token_id", None)
    if architecture(config) == "encoder_decoder":
        changes["decoder_start_token_id"] = tokenizer.pad_token_id
    for name in ("decoder_vocab_size", "forced_eos_token_id"):
        if getattr(config, name, None) is not None:
            changes[name] = len(tokenizer) if name == "decoder_vocab_size" else tokenizer.eos_token_id
    config.update({name: value for name, value in changes.items() if value is not None})
    return config
