import random

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lit_nlp.explain.words import Word, find_words, shares
from lit_nlp.scratch import train_word_pieces

TEXTS = [
    "Don't panic, it's only 3.5% of 1,000!",
    "  leading and trailing blanks \n\n",
    "日本語のテスト and English",
    "family 👩‍👩‍👧 and café ❤️ 🇩🇪",
    "e\u0301te\u0301 is nai\u0308ve",
    "नमस्ते दुनिया, 한국어 단어.",
    "wait... what?!",
]


def words(text: str, offsets: list[tuple[int, int]], scores: list[float]) -> list[Word]:
    """Give the scores of tokens to the words by their shares."""
    spans = find_words(text)
    totals = [0.0] * len(spans)
    for share, score in zip(shares(text, spans, offsets), scores, strict=True):
        for word, part in share.items():
            totals[word] += score * part
    return [Word(text[a:b], a, b, total) for (a, b), total in zip(spans, totals, strict=True)]


def texts_of(text: str) -> list[str]:
    return [text[start:end] for start, end in find_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic, it’s 3.5%!!", ["Don't", "panic", ",", "it’s", "3.5", "%", "!", "!"]),
        (
            "great.Terrible 'quoted' well-made",
            ["great", ".", "Terrible", "'", "quoted", "'", "well", "-", "made"],
        ),
        ("東京タワー。", ["東", "京", "タワー", "。"]),
        ("👩‍👩‍👧❤️🇩🇪🇫🇷 👍🏽", ["👩‍👩‍👧", "❤️", "🇩🇪", "🇫🇷", "👍🏽"]),
        ("e\u0301te\u0301 नमस्ते می‌خواهم co\u00adop", ["e\u0301te\u0301", "नमस्ते", "می‌خواهم", "co\u00adop"]),
        ("\ufeffzero\u200bwidth\x00", ["zero", "width"]),
        ("snake_case @user", ["snake_case", "@", "user"]),
        (" \t\n", [" \t\n"]),
        ("", []),
    ],
)
def test_words_are_what_a_reader_takes_for_words(text, expected):
    assert texts_of(text) == expected


def test_a_word_has_the_sum_of_its_tokens():
    found = words("unbelievable film", [(0, 2), (2, 9), (9, 12), (13, 17)], [0.5, 1.0, -0.25, 2.0])
    assert found == [Word("unbelievable", 0, 12, 1.25), Word("film", 13, 17, 2.0)]


def test_special_tokens_go_to_no_word():
    assert words("film", [(0, 0), (0, 4), (0, 0)], [9.0, 1.0, 9.0]) == [Word("film", 0, 4, 1.0)]


def test_a_leading_blank_belongs_to_the_word_behind_it():
    found = words("a film", [(0, 1), (1, 6)], [1.0, 2.0])
    assert [word.score for word in found] == [1.0, 2.0]


def test_a_token_over_several_words_is_shared_by_their_characters():
    found = words("ab, c", [(0, 5)], [4.0])
    assert [(word.text, word.score) for word in found] == [("ab", 2.0), (",", 1.0), ("c", 1.0)]


def test_a_token_of_blanks_goes_to_the_next_word_and_at_the_end_to_the_last():
    assert [word.score for word in words(" a  b  ", [(0, 1), (2, 4), (5, 7)], [1.0, 2.0, 4.0])] == [1.0, 6.0]


def test_nothing_is_lost_where_there_is_no_word():
    assert words("  ", [(0, 1), (1, 2)], [1.0, 2.0]) == [Word("  ", 0, 2, 3.0)]


def test_tokens_of_overlapping_windows_add_up():
    found = words("a b", [(0, 1), (2, 3), (2, 3)], [1.0, 2.0, 0.5])
    assert [word.score for word in found] == [1.0, 2.5]


def test_as_many_scores_as_tokens():
    with pytest.raises(ValueError, match="zip"):
        words("a", [(0, 1)], [])


def by_characters(text: str, offsets: list[tuple[int, int]], scores: list[float]) -> list[float]:
    """The definition: each token's score spread over its characters, and collected again by word."""
    spans = find_words(text)
    per_character = [0.0] * len(text)
    for (start, end), score in zip(offsets, scores, strict=True):
        inside = [c for c in range(start, end) if any(a <= c < b for a, b in spans)]
        if start < end and not inside:
            inside = [min((a for a, _ in spans if a >= end), default=spans[-1][0])]
        for c in inside:
            per_character[c] += score / len(inside)
    return [sum(per_character[a:b]) for a, b in spans]


@pytest.mark.parametrize("text", TEXTS)
def test_words_agree_with_accounting_by_characters(text):
    rng = random.Random(0)
    for _ in range(50):
        starts = [rng.randrange(len(text)) for _ in range(12)]
        offsets = [(start, rng.randint(start, min(len(text), start + 9))) for start in starts]
        scores = [rng.gauss(0, 1) for _ in offsets]
        assert [word.score for word in words(text, offsets, scores)] == pytest.approx(
            by_characters(text, offsets, scores)
        )


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train_word_pieces(tokenizer, 60, ["[UNK]"], lambda: TEXTS)
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS * 5, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, byte_level, sentence_piece])
def test_no_score_is_lost_with_any_tokenizer(make):
    tokenizer, rng = make(), random.Random(0)
    for text in [*TEXTS, "unseen ☃ symbols\u2028here", "   ", "\n"]:
        offsets = tokenizer.encode(text).offsets
        scores = [rng.gauss(0, 1) for _ in offsets]
        kept = sum(score for (start, end), score in zip(offsets, scores, strict=True) if start < end)
        found = words(text, offsets, scores)
        assert sum(word.score for word in found) == pytest.approx(kept)
        assert all(text[word.start : word.end] == word.text for word in found)
