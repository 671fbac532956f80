"""Spans of a context: the tokens that make them in the windows in which it is read."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lit_nlp.tokenization import Tokens

Span = tuple[int, int]


class ReadWindow(NamedTuple):
    """A window of a context as a module reads it, behind the question.

    Attributes:
        tokens: Its sequence.
        part: Of each token, whether it is the question's (0), the context's (1) or special (-1).
        offsets: The characters that it takes there.
        context: Of each token of the context its characters, of others an empty span.
        no_answer_position: The token that stands for no answer.
        logits: Of each token, that an answer starts there, and that it ends there.
    """

    tokens: Tokens
    part: list[int]
    offsets: list[Span]
    context: list[Span]
    no_answer_position: int
    logits: Float[Tensor, "tokens 2"]


class Spot(NamedTuple):
    """A span in one of the windows that hold it, or that there is no answer there.

    Attributes:
        window: The window's number among those of its context.
        span: The characters of the context; None for no answer.
        first: The token at which it begins, and `last` the one at which it ends.
    """

    window: int
    span: Span | None
    first: int
    last: int

    def tokens(self, side: str | None = None) -> list[int]:
        """Return both tokens; of the `start` or the `end` alone with -1 in place of the other."""
        return [-1 if side == "end" else self.first, -1 if side == "start" else self.last]


def best_spans(
    logits: Float[Tensor, "windows tokens 2"],
    context_mask: Bool[Tensor, "windows tokens"],
    *,
    max_answer_length: int,
    n_best: int,
) -> Int[Tensor, "windows some 2"]:
    """Return the first and last token of each window's spans with the highest sums of logits, the highest first.

    Args:
        logits: Each token's start and end logit.
        context_mask: The tokens at which a span may start or end. Where a window has fewer spans than are asked
            for, those behind them are none.
        max_answer_length: The most tokens of a span.
        n_best: How many spans are asked for.
    """
    start, end = logits.masked_fill(~context_mask.unsqueeze(2), -torch.inf).unbind(2)
    length = min(max_answer_length, logits.shape[1])
    # Of each token as the start, the ends that are near enough.
    ends = F.pad(end, (0, length - 1), value=-torch.inf).unfold(1, length, 1)
    scores = (start.unsqueeze(2) + ends).flatten(1)
    best = scores.topk(min(n_best, scores.shape[1])).indices
    first, further = best // length, best % length
    return torch.stack([first, (first + further).clamp_max(logits.shape[1] - 1)], dim=2)


def bare_span(context: str, start: int, end: int) -> Span:
    """Return a span without blanks around it, and with the combining marks that a tokenizer may leave out behind it."""
    while end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))


def find_spans(text: str, context: str) -> list[Span]:
    """Return where a text stands in a context: as whole words, if anywhere as it is written, else in any case."""
    bare = re.escape(text.strip())
    ways = ((pattern, flag) for pattern in (rf"(?<!\w){bare}(?!\w)", bare) for flag in (0, re.IGNORECASE))
    places = ([match.span() for match in re.finditer(pattern, context, flag)] for pattern, flag in ways)
    return next(filter(None, places), []) if bare else []


def find_spots(windows: Sequence[ReadWindow], spans: Sequence[Span]) -> list[Spot]:
    """Return spans in all windows that hold them; of one that none holds whole, in those that hold most of it."""
    found = []
    for start, end in spans:
        touched = [[i for i, (a, b) in enumerate(window.context) if max(a, start) < min(b, end)] for window in windows]
        most = max(map(len, touched))
        found += [
            Spot(number, (start, end), tokens[0], tokens[-1])
            for number, tokens in enumerate(touched)
            if tokens and len(tokens) == most
        ]
    return found


def no_answer_spots(windows: Sequence[ReadWindow]) -> list[Spot]:
    """Return for each window that it holds no answer."""
    return [Spot(i, None, *[window.no_answer_position] * 2) for i, window in enumerate(windows)]


def in_one_window(
    windows: Sequence[ReadWindow], named: Sequence[Sequence[Spot]], answers: Sequence[Spot]
) -> tuple[Spot | None, Spot | None]:
    """Return the likeliest spot of a target, and of its contrast if there is one, in a window that holds both.

    Every window tells whether it holds no answer: that is looked at where the contrast, or else the answer, is.

    Args:
        windows: The windows of one context.
        named: Where the target stands, and where its contrast does, if there is one.
        answers: Where the answer stands.
    """
    shared = set.intersection(*({spot.window for spot in some} for some in named))
    if not shared:
        return None, None
    of_spans = ([spot for spot in some if spot.span and spot.window in shared] for some in [*named, answers])
    window = _likeliest(windows, next(filter(None, of_spans), named[0])).window
    own, *others = (_likeliest(windows, [spot for spot in some if spot.window == window]) for some in named)
    return own, next(iter(others), None)


def runner_up(
    windows: Sequence[ReadWindow], than: Spot, context: str, *, max_answer_length: int, unanswerable: bool
) -> Spot | None:
    """Return the best span of a window that has no token of another's, and not its text; or that there is no answer.

    Args:
        windows: The windows of one context.
        than: The other.
        context: The context.
        max_answer_length: The most tokens of a span.
        unanswerable: Whether no answer counts, where it is likelier than the span.
    """
    window = windows[than.window]
    free = [begin < end for begin, end in window.context]
    if than.span:
        free[than.first : than.last + 1] = [False] * (than.last + 1 - than.first)
    mask, spans = torch.tensor([free]), max_answer_length * len(free)
    found = []
    for first, last in best_spans(window.logits[None], mask, max_answer_length=max_answer_length, n_best=spans)[
        0
    ].tolist():
        start, end = bare_span(context, window.context[first][0], window.context[last][1])
        apart = than.span is None or last < than.first or first > than.last
        other = than.span is None or context[start:end] != context[slice(*than.span)]
        if free[first] and free[last] and apart and start < end and other:
            found.append(Spot(than.window, (start, end), first, last))
            break
    if than.span and unanswerable:
        found += [spot for spot in no_answer_spots(windows) if spot.window == than.window]
    return _likeliest(windows, found) if found else None


def _likeliest(windows: Sequence[ReadWindow], spots: Sequence[Spot]) -> Spot:
    """Return the one of some spots with the highest sum of logits."""
    return max(spots, key=lambda spot: float(windows[spot.window].logits[[spot.first, spot.last], [0, 1]].sum()))
