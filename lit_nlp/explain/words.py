"""Token scores -> word scores over the original text."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

# Words as Unicode's UAX #29 finds them without a dictionary, but for the full stop between letters,
# which ends a sentence more often than it abbreviates. A script written without blanks gives a word
# for each character; what is neither letter nor blank (punctuation, emoji) one for each grapheme.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTERS = rf"[[\p{{L}}\p{{N}}\p{{M}}_\u00ad\u200c\u200d]--[{_UNSPACED}]]+"
_INNER = r"(?<=\p{L}\p{M}*)['’](?=\p{L})|(?<=\p{N})[.,](?=\p{N})"
_WORD = regex.compile(
    rf"(?![\s\p{{Cc}}\p{{Cf}}]) (?: (?=[{_UNSPACED}])\X | {_LETTERS} (?: (?:{_INNER}) {_LETTERS} )* | \X )",
    regex.VERBOSE | regex.VERSION1,
)


@dataclass(frozen=True)
class Word:
    """The word at `text[start:end]` of the original text, and the sum of its tokens' scores."""

    text: str
    start: int
    end: int
    score: float


def find_words(text: str) -> list[tuple[int, int]]:
    """Return the characters `(start, end)` of each word, in order; a text of blanks only is one word."""
    spans = [match.span() for match in _WORD.finditer(text)]
    return spans or ([(0, len(text))] if text else [])


def words(text: str, offsets: Sequence[tuple[int, int]], scores: Sequence[float]) -> list[Word]:
    """Give the scores of tokens to the words in which they lie; no score is lost.

    A token over several words is shared among them in proportion to its characters there; one of
    blanks only goes to the word that follows. Tokens may overlap and repeat, as windows make them:
    their scores add up.

    Args:
        text: The original text.
        offsets: For each token, its characters in the text, with or without the blanks around it.
            No word receives a token with an empty span, as special tokens have.
        scores: For each token, its score.

    Returns:
        All words of the text, also those that no token covers.
    """
    spans = find_words(text)
    starts = [start for start, _ in spans]
    word_at = [-1] * len(text)
    for word, (start, end) in enumerate(spans):
        word_at[start:end] = [word] * (end - start)
    totals = [0.0] * len(spans)
    for (start, end), score in zip(offsets, scores, strict=True):
        if start == end:
            continue
        following = min(bisect_left(starts, end), len(spans) - 1)
        touched = [word for word in word_at[start:end] if word >= 0] or [following]
        for word, characters in Counter(touched).items():
            totals[word] += score * (characters / len(touched))
    return [Word(text[a:b], a, b, total) for (a, b), total in zip(spans, totals, strict=True)]
