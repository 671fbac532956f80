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
    """The word at `text[start:end]` of the original text, and the sum of its tokens' scores.

    Of an `unknown` word the model read the unknown token, whole or in part: all such words are the same to it.
    """

    text: str
    start: int
    end: int
    score: float
    unknown: bool = False


def find_words(text: str) -> list[tuple[int, int]]:
    """Return the characters `(start, end)` of each word, in order; a text of blanks only is one word."""
    spans = [match.span() for match in _WORD.finditer(text)]
    return spans or ([(0, len(text))] if text else [])


def shares(
    text: str, words: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int] | None]
) -> list[dict[int, float]]:
    """Return for each token the words in which it lies, each with its share of the token; the shares add up to 1.

    A token over several words is shared among them in proportion to its characters there; one of blanks only
    goes to the word that follows.

    Args:
        text: The original text.
        words: The characters of its words, as `find_words` tells them.
        offsets: For each token, its characters in the text, with or without the blanks around it. None, or an
            empty span, is in no word.
    """
    starts = [start for start, _ in words]
    word_at = [-1] * len(text)
    for word, (start, end) in enumerate(words):
        word_at[start:end] = [word] * (end - start)
    found: list[dict[int, float]] = []
    for span in offsets:
        if span is None or span[0] == span[1]:
            found.append({})
            continue
        following = min(bisect_left(starts, span[1]), len(words) - 1)
        touched = [word for word in word_at[span[0] : span[1]] if word >= 0] or [following]
        found.append({word: characters / len(touched) for word, characters in Counter(touched).items()})
    return found
