"""From texts to token sequences, and from sequences to a padded batch of tensors."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import PaddingStrategy

from lit_nlp.errors import BackboneError, ConfigError, DataError, half_character, require, require_list

Text = str | tuple[str, str]
Tokens = dict[str, list[int]]

# What a label is where the loss looks away.
IGNORED = -100
# What fills each tensor of a batch but its `input_ids`.
_PADDING = {"token_type_ids": 0, "attention_mask": 0, "position_ids": 0, "labels": IGNORED}
# A limit that says "none was set": transformers writes 1e30 into such a tokenizer.
_UNLIMITED = 1_000_000
_DEFAULT_MAX_LENGTH = 512
# Tokens of a window of a question's context, unless told otherwise: what BERT was fine-tuned with on SQuAD.
WINDOW_LENGTH = 384
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoded:
    """Texts as token sequences; a text that was split has several.

    Attributes:
        sequences: One dict a sequence: `input_ids`, and `token_type_ids` where the backbone has them.
        row: For each sequence, the number of its text; never decreasing.
        truncated: For each text, whether tokens of it were left out.
        encodings: For each sequence, what the tokenizer knows of it; empty where places weren't asked for.
    """

    sequences: list[Tokens]
    row: list[int]
    truncated: list[bool]
    encodings: list[Encoding]

    @cached_property
    def offsets(self) -> list[list[tuple[int, int]]]:
        """For each sequence and token, its characters in the text; `(0, 0)` for special tokens."""
        return [encoding.offsets for encoding in self.encodings]

    @cached_property
    def part(self) -> list[list[int]]:
        """For each sequence and token, 0 in the text, 1 in the text pair, -1 in neither."""
        return [[-1 if part is None else part for part in encoding.sequence_ids] for encoding in self.encodings]


def resolve_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return the tokens that a sequence may have: as asked, or what the backbone reads, at most 512.

    Raises:
        ConfigError: More was asked for than the backbone reads.
    """
    limit = tokenizer.model_max_length if tokenizer.model_max_length < _UNLIMITED else None
    if max_length is None:
        return min(limit or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"max_length is {max_length}, but the backbone reads at most {limit} tokens",
            mend=f"set max_length to {limit} or less",
        )
    return max_length


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what changes when the tokenizer would read texts otherwise."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        return str(tokenizer.backend_tokenizer.to_str())
    vocabulary = json.dumps([type(tokenizer).__name__, tokenizer.init_kwargs, tokenizer.get_vocab()], default=str)
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def check_texts(texts: Sequence[Text]) -> None:
    """Refuse what no tokenizer reads.

    Raises:
        ConfigError: It is one text and no list, or holds what is neither a text nor a pair of texts.
        DataError: A text isn't whole Unicode.
    """
    require_list(texts, "texts")
    for i, text in enumerate(texts):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        where = f"text {i} (counted from 0)"
        if not all(isinstance(part, str) for part in parts):
            problem = f"expected a text, or a tuple of two, got {text!r:.80}"
            raise ConfigError(problem, where=where, mend="write text or (text, text_pair)")
        if any(map(_HALF_CHARACTER.search, parts)):
            raise half_character(where)


def check_as_many(texts: Sequence[Text], **of_texts: Sequence[Any] | None) -> None:
    """Make sure that there are as many as texts of each thing that goes with them, if there is any.

    Raises:
        ConfigError: There are more or fewer, or one thing stands in place of a list.
    """
    for name, given in of_texts.items():
        if given is None:
            continue
        require_list(given, name)
        if len(given) != len(texts):
            raise ConfigError(f"there are {len(texts)} texts but {len(given)} {name}", where=name)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    max_length: int,
    doc_stride: int | None = None,
    places: bool = True,
) -> Encoded:
    """Tokenise texts, or pairs of texts, to at most `max_length` tokens.

    Args:
        tokenizer: A fast tokenizer.
        texts: All single texts, or all pairs.
        max_length: Tokens of a sequence, special tokens included.
        doc_stride: The tokens by which the windows of a longer text overlap; None truncates it. Of a
            pair, the first text is split and the second repeated in each window.
        places: Whether it is to be known where in the text each token stands, which takes a third longer.

    Raises:
        BackboneError: The tokenizer doesn't tell where in the text its tokens stand.
        ConfigError: It is one text and no list, single texts and pairs are mixed, or `max_length` leaves no
            room for the first text of a pair beside the second, or for new tokens beside the overlap.
        DataError: A text isn't whole Unicode.
    """
    check_texts(texts)
    if len({isinstance(text, str) for text in texts}) > 1:
        raise ConfigError("single texts and pairs are mixed", mend="give all texts alone, or all as pairs")
    _check_fast(tokenizer)
    firsts = [text if isinstance(text, str) else text[0] for text in texts]
    seconds = None if all(isinstance(text, str) for text in texts) else [text[1] for text in texts]
    if not firsts:
        return Encoded([], [], [], [])
    _check_room(tokenizer, firsts, seconds, max_length, doc_stride)
    windowed = doc_stride is not None
    columns, encodings = _windows(
        tokenizer,
        firsts,
        seconds,
        places=places,
        truncation="only_first" if windowed or seconds is None else "longest_first",
        max_length=max_length,
        stride=doc_stride or 0,
    )
    rows: list[int] = columns["overflow_to_sample_mapping"]
    is_first = [i == 0 or rows[i - 1] != row for i, row in enumerate(rows)]
    split = {row for row, first in zip(rows, is_first, strict=True) if not first}
    keep = [i for i in range(len(rows)) if windowed or is_first[i]]
    names = [name for name in ("input_ids", "token_type_ids") if name in columns]
    return Encoded(
        sequences=[{name: columns[name][i] for name in names} for i in keep],
        row=[rows[i] for i in keep],
        truncated=[not windowed and row in split for row in range(len(texts))],
        encodings=[encodings[i] for i in keep] if encodings else [],
    )


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    special: bool = True,
    as_target: bool = False,
    max_length: int | None = None,
) -> list[list[int]]:
    """Return the tokens of each text.

    Args:
        tokenizer: Fast or slow.
        texts: At least one.
        special: Whether special tokens are added.
        as_target: Whether the texts are in the language that is translated to.
        max_length: Tokens of a text, special tokens included; None leaves it whole.
    """
    if _is_plain(tokenizer):
        return [each.ids for each in _read(tokenizer, list(texts), max_length=max_length, special=special)]
    given = {"text_target" if as_target else "text": list(texts), "add_special_tokens": special}
    cut = {"truncation": max_length is not None, "max_length": max_length}
    ids: list[list[int]] = tokenizer(**given, **cut, verbose=False)["input_ids"]
    return ids


def encode_windows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    places: Sequence[str],
    *,
    max_length: int,
    doc_stride: int,
) -> Encoded:
    """Tokenise questions and contexts, each context in as many windows of `max_length` tokens as it takes.

    Every window begins with the whole question. Windows overlap by `doc_stride` tokens, or by half of what a
    question leaves to its context, if that is less.

    Args:
        tokenizer: A fast tokenizer.
        pairs: Questions, each with its context.
        places: Where each pair stands, for messages.
        max_length: Tokens of a window, special tokens included.
        doc_stride: The tokens of a context by which its windows overlap.

    Raises:
        BackboneError: The tokenizer doesn't tell where in the text its tokens stand.
        DataError: A question leaves no room for its context, or a text is blank or isn't whole Unicode.
    """
    _check_fast(tokenizer)
    for pair, place in zip(pairs, places, strict=True):
        if _HALF_CHARACTER.search("".join(pair)):
            raise half_character(place)
        if not all(map(str.strip, pair)):
            raise DataError("the question or its context is blank", where=place, mend="fill it in, or leave it out")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    by_stride: dict[int, list[int]] = {}
    for i, tokens in enumerate(_counts(tokenizer, [question for question, _ in pairs]) if pairs else []):
        room = max_length - special - tokens
        if room < 1:
            problem = (
                f"the question's {tokens} tokens and {special} special tokens"
                f" leave no room for the context in max_length={max_length}"
            )
            raise DataError(problem, where=places[i], mend="raise max_length, or shorten the question")
        by_stride.setdefault(min(doc_stride, room // 2), []).append(i)
    found: list[tuple[int, Tokens, Encoding]] = []
    for stride, numbers in by_stride.items():
        encoding = tokenizer(
            [pairs[i][0] for i in numbers],
            [pairs[i][1] for i in numbers],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        names = [name for name in ("input_ids", "token_type_ids") if name in encoding]
        for window, number in enumerate(encoding["overflow_to_sample_mapping"]):
            tokens_of = {name: encoding[name][window] for name in names}
            found.append((numbers[number], tokens_of, encoding.encodings[window]))
    found.sort(key=lambda window: window[0])
    return Encoded(
        sequences=[tokens for _, tokens, _ in found],
        row=[row for row, _, _ in found],
        truncated=[False] * len(pairs),
        encodings=[encoding for _, _, encoding in found],
    )


def context_offsets(encoded: Encoded) -> list[list[tuple[int, int]]]:
    """Return for each sequence and token its characters in the second text of the pair; (-1, -1) elsewhere."""
    return [
        [span if part == 1 else (-1, -1) for span, part in zip(spans, parts, strict=True)]
        for spans, parts in zip(encoded.offsets, encoded.part, strict=True)
    ]


def no_answer_positions(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> list[int]:
    """Return for each sequence the token that stands for "no answer here".

    It is the tokenizer's own classification token; where it adds none, as decoders' don't, the first token.
    """
    return [
        next((i for i, (token, at) in enumerate(zip(ids, part, strict=True)) if token == cls and at < 0), 0)
        for cls in [tokenizer.cls_token_id]
        for ids, part in zip((tokens["input_ids"] for tokens in encoded.sequences), encoded.part, strict=True)
    ]


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise BackboneError(
            "its tokenizer has no fast version, which tells where in the text each token stands",
            where=f"backbone {tokenizer.name_or_path}",
            mend="use a backbone with a tokenizer.json",
        )


def _check_room(
    tokenizer: PreTrainedTokenizerBase,
    firsts: list[str],
    seconds: list[str] | None,
    max_length: int,
    doc_stride: int | None,
) -> None:
    """Refuse what the tokenizers library would answer with a panic, or with sequences longer than `max_length`."""
    if doc_stride is not None and doc_stride < 0:
        raise ConfigError(f"doc_stride must be at least 0, got {doc_stride}")
    special = tokenizer.num_special_tokens_to_add(pair=seconds is not None)
    room, needed = max_length - special, 1 + (doc_stride or 0)
    overlap = f" with doc_stride={doc_stride}" if doc_stride else ""
    mend = "raise max_length or lower doc_stride" if doc_stride else "raise max_length"
    if room < (2 if seconds is not None and doc_stride is None else needed):
        raise ConfigError(
            f"max_length={max_length} leaves no room for text beside {special} special tokens{overlap}", mend=mend
        )
    if seconds is None or doc_stride is None:
        return
    for first, second, tokens in zip(firsts, seconds, _counts(tokenizer, seconds), strict=True):
        if room - tokens < needed and room - tokens < _counts(tokenizer, [first])[0]:
            raise ConfigError(
                f"max_length={max_length} leaves no room for text beside the {tokens} tokens"
                f" of {second[:40]!r}{overlap}",
                mend=mend,
            )


def _counts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in token_ids(tokenizer, texts, special=False)]


def _windows(
    tokenizer: PreTrainedTokenizerBase, firsts: list[str], seconds: list[str] | None, *, places: bool, **cut: Any
) -> tuple[Mapping[str, list[Any]], list[Encoding]]:
    """Tokenise texts, or pairs of texts, to as many windows as they take.

    Args:
        tokenizer: A fast tokenizer.
        firsts: Texts, and `seconds` what stands beside them.
        places: As `encode` takes it.
        cut: `truncation`, `max_length` and `stride`, as transformers takes them.

    Returns:
        The windows' columns by transformers' names, `overflow_to_sample_mapping` among them, and where places are asked
        for what the tokenizer knows of each window.
    """
    if places or not _is_plain(tokenizer):
        encoding = tokenizer(firsts, seconds, **cut, return_overflowing_tokens=True, return_attention_mask=False)
        return encoding, encoding.encodings if places else []
    read = _read(tokenizer, firsts if seconds is None else list(zip(firsts, seconds, strict=True)), **cut)
    windows = [(row, window) for row, first in enumerate(read) for window in (first, *first.overflowing)]
    columns: dict[str, list[Any]] = {
        "input_ids": [window.ids for _, window in windows],
        "overflow_to_sample_mapping": [row for row, _ in windows],
    }
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = [window.type_ids for _, window in windows]
    return columns, []


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> TypeGuard[TokenizersBackend]:
    """Whether to call a tokenizer is no more than to ask the tokenizers library, as of transformers 5.23.

    Some have a call of their own, and those of several languages switch between these.
    """
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is TokenizersBackend._encode_plus
        and not hasattr(tokenizer, "_switch_to_target_mode")
    )


def _read(
    tokenizer: TokenizersBackend,
    texts: list[str] | list[tuple[str, str]],
    *,
    truncation: str = "longest_first",
    max_length: int | None,
    stride: int = 0,
    special: bool = True,
) -> list[Encoding]:
    """Tokenise as a call of a plain tokenizer does, but without the places of tokens."""
    strategy = TruncationStrategy.DO_NOT_TRUNCATE if max_length is None else TruncationStrategy(truncation)
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, strategy, max_length or 0, stride, None, None)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    found: list[Encoding] = backend.encode_batch_fast(texts, add_special_tokens=special)
    return found


def pad_windows(rows: Sequence[Mapping[str, Any]], names: Sequence[str], pad_id: int) -> dict[str, Tensor]:
    """Pad all windows of rows of a table to one batch, with the number of its row for each.

    Args:
        rows: Each with its number under `row`, and under each of `names` a list of ids for each window.
        names: `input_ids`, and `token_type_ids` where the backbone has them.
        pad_id: The id that fills `input_ids`.
    """
    sequences = [
        dict(zip(names, window, strict=True))
        for row in rows
        for window in zip(*(row[name] for name in names), strict=True)
    ]
    return pad(sequences, pad_id) | {"row": torch.tensor([row["row"] for row in rows for _ in row[names[0]]])}


def by_length(lengths: Iterable[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of sequences of like length, the longest first; what has no length is left out.

    Raises:
        ConfigError: The size of a batch is no whole number above 0.
    """
    require(type(batch_size) is int and batch_size >= 1, f"expected 1 or more, got {batch_size!r}", "batch_size")
    numbered = sorted(((length, i) for i, length in enumerate(lengths) if length), key=lambda each: -each[0])
    order = [i for _, i in numbered]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad(sequences: Sequence[Tokens], pad_token_id: int) -> dict[str, Int[Tensor, "batch sequence"]]:
    """Pad sequences on the right to the longest, and add the attention mask that tells text from padding."""
    values = {"input_ids": pad_token_id, **_PADDING}
    batch = {name: padded([tokens[name] for tokens in sequences], values[name]) for name in sequences[0]}
    return batch | {"attention_mask": padded([[1] * len(tokens["input_ids"]) for tokens in sequences], 0)}


def widened(batch: Mapping[str, Any], pad_token_id: int, max_length: int) -> dict[str, Any]:
    """Pad the sequences of a batch further, to one of at most eight widths between a power of two and the next.

    Each is a multiple of 8, from 64 tokens on of 16, or `max_length`.

    Args:
        batch: What `pad` made, with `labels` for each token or none such.
        pad_token_id: The id that fills `input_ids`.
        max_length: Tokens that a sequence may have.
    """
    values = {"input_ids": pad_token_id, **_PADDING}
    wider = dict(batch)
    for name in values.keys() & batch.keys():
        if batch[name].ndim == 2 and not batch[name].is_floating_point():
            width = batch[name].shape[1]
            missing = -width % max(8 if width <= 64 else 16, (1 << (width - 1).bit_length()) // 16)
            wider[name] = F.pad(batch[name], (0, min(missing, max(0, max_length - width))), value=values[name])
    return wider


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "batch sequence"]:
    """Return rows of numbers as a tensor, filled on the right with a value up to the longest."""
    lengths = np.array(list(map(len, rows)))
    filled = np.full((len(rows), lengths.max()), value)
    # A tensor that is made of lists of lists takes several times as long.
    filled[np.arange(lengths.max()) < lengths[:, None]] = list(chain.from_iterable(rows))
    return torch.from_numpy(filled)
