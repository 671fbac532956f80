"""Texts become sequences that are no longer than asked for, and every token knows where it came from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import BatchEncoding, BertTokenizer, PreTrainedTokenizerBase

from lit_nlp.errors import ConfigError
from lit_nlp.pretrained import load_tokenizer
from lit_nlp.tokenization import IGNORED, Encoded, by_length, encode, pad, resolve_max_length, token_ids, widened
from tests.translators import save_marian, save_mbart

LONG = "the acting is good but the story is bad, dull and far too long to be any fun"
SHORT = "a warm and moving film"


class Kind(NamedTuple):
    """A tokenizer, and the special tokens of its papers: before, between and after the texts."""

    tokenizer: PreTrainedTokenizerBase
    before: list[int]
    between: list[int]
    after: list[int]

    def tokens(self, text: str) -> list[int]:
        self.tokenizer.backend_tokenizer.no_truncation()
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def single(self, tokens: list[int]) -> list[int]:
        return [*self.before, *tokens, *self.after]

    def pair(self, first: list[int], second: list[int]) -> list[int]:
        return [*self.before, *first, *self.between, *second, *self.after]

    @property
    def special(self) -> int:
        return len(self.single([]))


@pytest.fixture(params=["bert", "roberta", "llama"])
def kind(request: pytest.FixtureRequest) -> Kind:
    special = {"bert": ([2], [3], [3]), "roberta": ([0], [1, 1], [1]), "llama": ([], [], [])}[request.param]
    return Kind(load_tokenizer(request.getfixturevalue(request.param)), *special)


@pytest.fixture
def tokenizer(bert: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(bert)


def ids(encoded: Encoded) -> list[list[int]]:
    return [sequence["input_ids"] for sequence in encoded.sequences]


# Truncation


def test_a_longer_text_keeps_its_beginning_and_is_reported(kind: Kind) -> None:
    whole = kind.tokens(LONG)
    fitting = len(whole) + kind.special
    for max_length in (kind.special + 1, 10, fitting - 1, fitting, fitting + 1):
        encoded = encode(kind.tokenizer, [SHORT, LONG], max_length=max_length)
        assert ids(encoded)[1] == kind.single(whole[: max_length - kind.special])
        assert encoded.truncated[1] == (max_length < fitting)
        assert encoded.row == [0, 1]


def test_of_a_pair_the_longer_text_is_shortened_until_both_are_alike(kind: Kind) -> None:
    short, long = kind.tokens(SHORT), kind.tokens(LONG)
    special = len(kind.pair([], []))
    for room in range(2, len(short) + len(long) + 2):
        kept = min(len(short), room // 2)
        encoded = encode(kind.tokenizer, [(SHORT, LONG), (LONG, SHORT)], max_length=room + special)
        assert ids(encoded) == [
            kind.pair(short[:kept], long[: room - kept]),
            kind.pair(long[: room - kept], short[:kept]),
        ]
        assert encoded.truncated == [room < len(short) + len(long)] * 2


def test_a_call_leaves_nothing_behind_for_the_next(kind: Kind) -> None:
    whole = [kind.single(kind.tokens(LONG))]
    encode(kind.tokenizer, [LONG], max_length=9, doc_stride=2)
    assert ids(encode(kind.tokenizer, [LONG], max_length=64)) == whole


def test_only_a_backbone_that_has_them_gets_token_types(kind: Kind) -> None:
    (sequence,) = encode(kind.tokenizer, [(SHORT, LONG)], max_length=64).sequences
    if "token_type_ids" not in kind.tokenizer.model_input_names:
        assert list(sequence) == ["input_ids"]
    else:
        first, second = len(kind.tokens(SHORT)), len(kind.tokens(LONG))
        assert sequence["token_type_ids"] == [0] * (first + 2) + [1] * (second + 1)


def test_no_texts_give_no_sequences(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(tokenizer, [], max_length=8) == Encoded([], [], [], [])


# Windows


def windows(tokens: list[int], room: int, stride: int) -> list[list[int]]:
    """Each begins `stride` tokens before the one before it ended, until one reaches the end."""
    start, found = 0, [tokens[:room]]
    while start + room < len(tokens):
        start += room - stride
        found.append(tokens[start : start + room])
    return found


@pytest.mark.parametrize(
    ("room", "stride"), [(room, stride) for room in (1, 2, 5, 11, 40) for stride in (0, 1, 4, 10) if stride < room]
)
def test_windows_cover_all_tokens_and_overlap_as_stated(kind: Kind, room: int, stride: int) -> None:
    encoded = encode(kind.tokenizer, [LONG, SHORT], max_length=room + kind.special, doc_stride=stride)
    long, short = windows(kind.tokens(LONG), room, stride), windows(kind.tokens(SHORT), room, stride)
    assert ids(encoded) == [kind.single(window) for window in long + short]
    assert encoded.row == [0] * len(long) + [1] * len(short)
    assert encoded.truncated == [False, False]


@pytest.mark.parametrize("stride", [0, 2])
def test_of_a_pair_the_first_text_is_split_and_the_second_stands_in_every_window(kind: Kind, stride: int) -> None:
    second, room = kind.tokens(SHORT), 5
    max_length = len(kind.pair([], second)) + room
    encoded = encode(kind.tokenizer, [(LONG, SHORT)], max_length=max_length, doc_stride=stride)
    assert ids(encoded) == [kind.pair(window, second) for window in windows(kind.tokens(LONG), room, stride)]


def test_a_second_text_that_leaves_no_room_is_refused_only_where_the_first_needs_windows(kind: Kind) -> None:
    tokens = len(kind.tokens(LONG))
    room = len(kind.tokens(SHORT))
    max_length = len(kind.pair([], [])) + tokens + room
    (whole,) = ids(encode(kind.tokenizer, [(SHORT, LONG)], max_length=max_length, doc_stride=room + 3))
    assert whole == kind.pair(kind.tokens(SHORT), kind.tokens(LONG))
    for doc_stride in (room, room + 3):
        with pytest.raises(ConfigError) as caught:
            encode(kind.tokenizer, [(SHORT, LONG), (LONG, LONG)], max_length=max_length, doc_stride=doc_stride)
        assert str(caught.value) == (
            f"max_length={max_length} leaves no room for text beside the {tokens} tokens of {LONG[:40]!r}"
            f" with doc_stride={doc_stride}; raise max_length or lower doc_stride"
        )


# What can't be


def test_single_texts_and_pairs_do_not_mix(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"^single texts and pairs are mixed; give all texts alone, or all as pairs$"):
        encode(tokenizer, ["a", ("a", "b")], max_length=8)


@pytest.mark.parametrize(
    ("max_length", "doc_stride", "message"),
    [
        (1, None, "max_length=1 leaves no room for text beside 2 special tokens; raise max_length"),
        (2, None, "max_length=2 leaves no room for text beside 2 special tokens; raise max_length"),
        (2, 0, "max_length=2 leaves no room for text beside 2 special tokens; raise max_length"),
        (
            8,
            6,
            "max_length=8 leaves no room for text beside 2 special tokens with doc_stride=6;"
            " raise max_length or lower doc_stride",
        ),
        (8, -1, "doc_stride must be at least 0, got -1"),
    ],
)
def test_lengths_that_leave_no_room_for_text_are_refused(
    tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(tokenizer, [LONG], max_length=max_length, doc_stride=doc_stride)
    assert str(caught.value) == message


def test_a_pair_needs_a_token_for_each_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(ids(encode(tokenizer, [(LONG, LONG)], max_length=5))[0]) == 5
    with pytest.raises(ConfigError, match="max_length=4 leaves no room for text beside 3 special tokens"):
        encode(tokenizer, [(LONG, LONG)], max_length=4)


@pytest.mark.parametrize(("reads", "default"), [(64, 64), (512, 512), (4_096, 512), (int(1e30), 512)])
def test_by_default_a_sequence_is_as_long_as_the_backbone_reads_and_at_most_512(
    tokenizer: PreTrainedTokenizerBase, reads: int, default: int
) -> None:
    tokenizer.model_max_length = reads
    assert resolve_max_length(tokenizer, None) == default
    assert resolve_max_length(tokenizer, 7) == 7


def test_no_more_can_be_asked_for_than_the_backbone_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    assert resolve_max_length(tokenizer, 64) == 64
    with pytest.raises(ConfigError) as caught:
        resolve_max_length(tokenizer, 65)
    assert str(caught.value) == (
        "max_length is 65, but the backbone reads at most 64 tokens; set max_length to 64 or less"
    )
    tokenizer.model_max_length = int(1e30)
    assert resolve_max_length(tokenizer, 100_000) == 100_000


# Without the places of tokens, as the tokenizers library does it more quickly

ODD = ["", " \u3000 ", "[CLS] </s> <s> [SEP]", "e\u0301te\u0301 👩‍👩‍👧‍👦 \t\r\n한국어 ﬁne…", LONG]


def check_places_change_nothing(tokenizer: PreTrainedTokenizerBase, **given: Any) -> None:
    for texts in ([*ODD, SHORT], [(text, SHORT) for text in ODD]):
        quick, whole = (encode(tokenizer, texts, places=places, **given) for places in (False, True))
        assert (quick.sequences, quick.row, quick.truncated) == (whole.sequences, whole.row, whole.truncated)
        assert (len(whole.encodings), quick.encodings) == (len(whole.sequences), [])


@pytest.mark.parametrize("doc_stride", [None, 0, 3])
def test_sequences_are_the_same_without_the_places_of_their_tokens(kind: Kind, doc_stride: int | None) -> None:
    for max_length in (24, 40, 64):
        check_places_change_nothing(kind.tokenizer, max_length=max_length, doc_stride=doc_stride)


@pytest.mark.parametrize("doc_stride", [None, 0])
def test_of_a_pair_the_same_text_is_cut_without_places(
    doc_stride: int | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair = (SHORT, "a second text that takes more than half of the room")
    max_length = len(ids(encode(tokenizer, [pair], max_length=64))[0]) - 2
    whole, quick = (
        encode(tokenizer, [pair], max_length=max_length, doc_stride=doc_stride, places=places)
        for places in (True, False)
    )
    assert quick.sequences == whole.sequences
    assert len(quick.sequences) == (1 if doc_stride is None else 2)


@pytest.mark.parametrize("splits", [False, True])
def test_the_side_of_truncation_and_split_special_tokens_hold_without_places(kind: Kind, splits: bool) -> None:
    kind.tokenizer.truncation_side, kind.tokenizer.split_special_tokens = "left", splits
    check_places_change_nothing(kind.tokenizer, max_length=24)


def check_token_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    for special in (True, False):
        for max_length in (None, 9):
            cut = {"truncation": max_length is not None, "max_length": max_length, "add_special_tokens": special}
            given: dict[str, Any] = {"special": special, "max_length": max_length}
            assert token_ids(tokenizer, ODD, **given) == tokenizer(ODD, **cut)["input_ids"]
            targets = tokenizer(text_target=ODD, **cut)["input_ids"]
            assert token_ids(tokenizer, ODD, as_target=True, **given) == targets


def test_tokens_are_those_of_a_call(kind: Kind) -> None:
    check_token_ids(kind.tokenizer)


@pytest.mark.parametrize("save", [save_marian, save_mbart])
def test_tokens_are_those_of_a_call_in_either_of_two_languages(save: Callable[[Path], str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(tmp_path))
    sources, targets = (token_ids(tokenizer, [SHORT], as_target=as_target) for as_target in (False, True))
    assert sources != targets
    check_token_ids(tokenizer)


class _OwnCall(BertTokenizer):
    def __call__(self, text: Any = None, *given: Any, **options: Any) -> BatchEncoding:
        return super().__call__([f"{each}!" for each in text], *given, **options)


class _OwnEncoding(BertTokenizer):
    def _encode_plus(self, text: Any, *given: Any, **options: Any) -> BatchEncoding:
        return super()._encode_plus([f"{each}!" for each in text], *given, **options)


@pytest.mark.parametrize("kind", [_OwnCall, _OwnEncoding])
def test_a_tokenizers_own_call_is_called(kind: type[BertTokenizer], bert: str) -> None:
    shouted, shouting = token_ids(load_tokenizer(bert), [f"{SHORT}!"]), kind.from_pretrained(bert)
    assert token_ids(shouting, [SHORT]) == shouted
    assert ids(encode(shouting, [SHORT], max_length=64, places=False)) == shouted


# Where a token came from


def test_every_token_names_its_characters_in_the_text(kind: Kind) -> None:
    pair = (LONG, "not a good film")
    encoded = encode(kind.tokenizer, [pair], max_length=len(kind.pair([], kind.tokens(pair[1]))) + 9, doc_stride=3)
    assert len(encoded.sequences) > 1
    for tokens, offsets, parts in zip(ids(encoded), encoded.offsets, encoded.part, strict=True):
        for token, (start, end), part in zip(tokens, offsets, parts, strict=True):
            if part == -1:
                assert (start, end) == (0, 0)
            else:
                written = kind.tokenizer.convert_ids_to_tokens(token).removeprefix("##").replace("Ġ", " ")
                assert pair[part][start:end].strip() == written.strip()


def test_every_token_names_the_text_it_is_of(kind: Kind) -> None:
    encoded = encode(kind.tokenizer, [(SHORT, LONG)], max_length=64)
    marks = kind.pair([-2] * len(kind.tokens(SHORT)), [-3] * len(kind.tokens(LONG)))
    assert encoded.part == [[{-2: 0, -3: 1}.get(mark, -1) for mark in marks]]


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_the_bytes_of_one_character_all_name_that_character(name: str, request: pytest.FixtureRequest) -> None:
    text = "é 🎬"
    encoded = encode(load_tokenizer(request.getfixturevalue(name)), [text], max_length=64)
    of_text = [offsets for offsets, part in zip(encoded.offsets[0], encoded.part[0], strict=True) if part == 0]
    pieces = [text[start:end].strip() for start, end in of_text]
    assert [piece for piece in pieces if piece] == ["é"] * len("é".encode()) + ["🎬"] * len("🎬".encode())


# Padding


def test_padding_is_on_the_right_and_the_mask_tells_it_from_text(kind: Kind) -> None:
    encoded = encode(kind.tokenizer, [SHORT, LONG], max_length=64)
    short, long = ids(encoded)
    batch = pad(encoded.sequences, 99)
    assert batch["input_ids"].tolist() == [short + [99] * (len(long) - len(short)), long]
    assert batch["attention_mask"].tolist() == [[1] * len(short) + [0] * (len(long) - len(short)), [1] * len(long)]
    assert set(batch) == {*encoded.sequences[0], "attention_mask"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_padding_of_a_pair_is_of_token_type_zero(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(tokenizer, [(SHORT, SHORT), (SHORT, LONG)], max_length=64)
    batch = pad(encoded.sequences, 0)
    assert batch["token_type_ids"][0, batch["attention_mask"][0] == 0].tolist() == [0] * int(
        (batch["attention_mask"][0] == 0).sum()
    )
    assert batch["token_type_ids"][1].sum() == len(ids(encode(tokenizer, [LONG], max_length=64))[0]) - 1


def test_sequences_of_one_length_need_no_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    assert pad(encode(tokenizer, [SHORT, SHORT], max_length=64).sequences, 0)["attention_mask"].all()


@pytest.mark.parametrize(
    ("width", "wider"),
    [
        (1, 8),
        (8, 8),
        (9, 16),
        (63, 64),
        (65, 80),
        (127, 128),
        (128, 128),
        (129, 144),
        (257, 288),
        (500, 512),
        (511, 512),
    ],
)
def test_a_batch_is_widened_to_one_of_few_widths(width: int, wider: int) -> None:
    batch = {"input_ids": torch.ones(2, width, dtype=torch.int64), "attention_mask": torch.ones(2, width).long()}
    found = widened(batch, pad_token_id=7, max_length=512)
    assert found["input_ids"].tolist() == [[1] * width + [7] * (wider - width)] * 2
    assert found["attention_mask"].tolist() == [[1] * width + [0] * (wider - width)] * 2


def test_a_batch_is_widened_no_further_than_the_backbone_reads_and_in_what_has_a_number_for_each_token_alone() -> None:
    wide = torch.ones(2, 20, dtype=torch.int64)
    batch = {"input_ids": wide, "labels": torch.ones(2, 3), "row": torch.arange(2), "text": ["a", "b"]}
    found = widened(batch, pad_token_id=0, max_length=22)
    assert found["input_ids"].shape == (2, 22)
    assert all(found[name] is batch[name] for name in ("labels", "row", "text"))
    assert widened({"labels": wide}, 0, 64)["labels"][:, 20:].tolist() == [[IGNORED] * 4] * 2


def test_sequences_go_together_by_length_the_longest_first_and_empty_ones_nowhere() -> None:
    assert list(by_length([2, 0, 5, 3, 2], 2)) == [[2, 3], [0, 4]]
    assert list(by_length([], 2)) == []
    for none in (0, -1):
        with pytest.raises(ConfigError, match=f"^batch_size: expected 1 or more, got {none}$"):
            list(by_length([2, 3], none))
