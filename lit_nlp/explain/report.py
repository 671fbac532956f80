"""Attributions in, a page that anyone can read and a file that a program can read out.

Attributions become a view model, plain data, of which the page holds a copy: `report.html.j2` draws the
first cards of it, for readers without JavaScript, and `report.js` draws all of them, as they are scrolled to.
"""

import base64
import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from lit_nlp.errors import ConfigError, require_list
from lit_nlp.explain.attribution import Attribution
from lit_nlp.explain.faithfulness import BY_DEFINITION, Comparison, Curve
from lit_nlp.explain.methods import METHODS
from lit_nlp.explain.words import Word, find_words
from lit_nlp.files import write_jsonl, write_text
from lit_nlp.metrics.question_answering import exact_match
from lit_nlp.targets import Label

_TEMPLATES = Path(__file__).parent / "templates"
_LEVELS = 8
_STRONGEST = 6
_CLASSES = 6
_OVERVIEW_WORDS = 8
_UNKNOWN = 5
_PAGE = 20
_WIDTH, _HEIGHT = 320, 160  # of a chart's plane, in units of its SVG
_CHARTS = {
    "deletion": "Taking away the words that count most. The faster a line falls, the truer is its method.",
    "insertion": "Putting back the words that count most. The faster a line rises, the truer is its method.",
}


@dataclass(frozen=True)
class Part:
    """A text in pieces: its words, what is between them, and cuts where an answer or a token begins or ends.

    Attributes:
        name: What the text is called.
        pieces: Put together, they are the text.
        words: For each piece, the number of the word that it belongs to; -1 for none.
    """

    name: str
    pieces: tuple[str, ...]
    words: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The words."""
        found: dict[int, str] = defaultdict(str)
        for piece, word in zip(self.pieces, self.words, strict=True):
            found[word] += piece
        return [found[word] for word in sorted(found) if word >= 0]


@dataclass(frozen=True)
class View:
    """One attribution of a card, as it is drawn.

    Attributes:
        target: What is explained, and `method` how.
        kind: `class`, `span` or `token`.
        probability: Of the prediction; of a token that is written, that token's; None for a number.
        place: Which of the card's tokens is explained, in the order of the text; None for other kinds.
        parts: Which of the card's parts are shown.
        scores: For each of them, the score of each word.
        scale: The largest |score|, which has the strongest colour.
        strongest: The words that speak most for the target and those that speak most against it, the strongest
            first, each as `(part, word)`.
        mark: The pieces of the second part that the answer or the token takes, from the first to before the last.
        read: How many words of the second part were there when the token was written; None for other kinds.
        probabilities: The most probable classes, candidates or tokens; `others` counts those left out.
        notes: What the scores add up to, and whether they do; `warning` where they don't.
        signed: Whether scores above 0 speak for the target, and those below against it; else all say how much.
    """

    target: str
    method: str
    kind: str
    probability: float | None
    place: int | None
    parts: list[int]
    scores: list[list[float]]
    scale: float
    strongest: tuple[list[tuple[int, int]], list[tuple[int, int]]]
    mark: tuple[int, int] | None
    read: int | None
    probabilities: list[tuple[str, float]]
    others: int
    notes: list[str]
    warning: str
    signed: bool


@dataclass(frozen=True)
class Card:
    """All that is shown of one text.

    Attributes:
        number: Its place among the texts as they were given, counted from 1.
        row: What `attributions.jsonl` and a picture call it: its row in the split, counted from 0.
        verdict: `right`, `wrong`, or empty where that can't be told.
        head: What is said of it, as `(caption, value, aside)`.
        labels: The names of its gold classes, and `predicted` those that the model gave.
        confidence: The probability of what the model says, or None.
        urgency: Of a wrong answer how sure the model was, of a number how far it is off, else 0.
        length: In characters.
        reference: What should have been written.
        parts: Its texts.
        views: Its attributions; the first is shown first.
        influences: Training examples that spoke for (above 0) or against what the model says, the strongest first.
    """

    number: int
    row: int
    verdict: str
    head: list[tuple[str, str, str]]
    labels: list[str]
    predicted: list[str]
    confidence: float | None
    urgency: float
    length: int
    reference: str | None
    parts: list[Part]
    views: list[View]
    influences: list[dict[str, Any]]

    @property
    def heat(self) -> list[View]:
        """A view for each token, of the method that is shown first; empty where there are no two tokens."""
        first: dict[int | None, View] = {}
        for view in self.views:
            if view.parts == self.views[0].parts and view.method == self.views[0].method:
                first.setdefault(view.place, view)
        rows = [view for place, view in sorted(first.items(), key=lambda item: item[0] or 0) if place is not None]
        return rows if len(rows) > 1 else []


@dataclass(frozen=True)
class Push:
    """What a word does to a target over all texts: its mean score, and how often it was read."""

    word: str
    mean: float
    count: int


@dataclass(frozen=True)
class Pushes:
    """The words that raise and lower a target most, of those read at least `least` times; `signed` as in `View`."""

    target: str
    texts: int
    least: int
    signed: bool
    raising: list[Push]
    lowering: list[Push]

    @property
    def scale(self) -> float:
        """The largest |mean|."""
        return max((abs(push.mean) for push in self.raising + self.lowering), default=0.0)


def write_report(
    attributions: Sequence[Attribution],
    folder: str | Path,
    *,
    title: str,
    facts: Mapping[str, str],
    comparison: Comparison | None = None,
    influences: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    png: int | None = None,
) -> Path:
    """Write `index.html` and, beside it, `attributions.jsonl` and `report.json`; return the page's path.

    The page needs no network and runs no code but its own. The second file holds each attribution as an object a line,
    in the order given; the third what the page tells of them all: title, facts, and how the methods compare. Earlier
    files of these names are kept, as `index-1.html`.

    Args:
        attributions: What to show; those of a row share a card.
        folder: Where to write; made where it is missing.
        title: The page's headline.
        facts: What the reader should know of the run, such as the model and the data, by name.
        comparison: How the methods compare. A card shows first what the trusted one says.
        influences: By row, training examples that moved what the model says: `text`, `label`, `score`, `where`.
        png: The row that is also drawn as a picture, `row-N.png`.

    Raises:
        ConfigError: What was given is no list of attributions, or there is no row of the number `png`.
        UserError: The folder can't be written.
    """
    require_list(attributions, "attributions")
    for each in attributions:
        if not isinstance(each, Attribution):
            mend = "give what attribute() returns; of compare_methods() the first of both"
            raise ConfigError(f"expected an attribution, got {each!r:.80}", where="attributions", mend=mend)
    folder = Path(folder)
    pictured = [each for each in attributions if each.row == png]
    if png is not None and not pictured:
        rows = sorted({each.row for each in attributions})
        told = f"rows {rows[0]} to {rows[-1]}" if rows else "no rows"
        raise ConfigError(f"there is no row {png}, only {told}" if rows else f"there is no row {png}", where="png")
    write_jsonl(folder / "attributions.jsonl", (_object(each, influences) for each in attributions))
    compared = asdict(comparison) if comparison else None
    told_of_all = {"title": title, "facts": dict(facts), "comparison": compared}
    write_text(folder / "report.json", json.dumps(told_of_all, ensure_ascii=False, indent=1) + "\n")
    page = render(attributions, title=title, facts=facts, comparison=comparison, influences=influences)
    write_text(folder / "index.html", page)
    if pictured:
        from lit_nlp.explain.picture import write_picture  # matplotlib is slow to import

        write_picture(pictured, folder / f"row-{png}.png", trusted=comparison.trusted if comparison else None)
    return folder / "index.html"


def render(
    attributions: Sequence[Attribution],
    *,
    title: str,
    facts: Mapping[str, str],
    comparison: Comparison | None = None,
    influences: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """Return the page; whatever the texts and labels hold, it is shown and never run."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "short": short, "percent": percent, "level": level, "plain": plain}
    trusted = comparison.trusted if comparison else None
    cards = to_cards(attributions, trusted=trusted, influences=influences or {})
    style, script = (Markup((_TEMPLATES / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    used = list(dict.fromkeys(each.method for each in attributions if each.method in METHODS))
    compact = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), default=vars)
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        cards=cards,
        page=_PAGE,
        kinds={view.kind for card in cards for view in card.views[:1]},
        methods={name: METHODS[name].about for name in used},
        adding=[name for name in used if METHODS[name].adds_up in ("points", "construction")],
        converged=[each.converged for each in attributions if each.converged is not None],
        overview=overview(cards),
        counted=sorted({card.views[0].method for card in cards}),
        comparison=comparison,
        by_definition=BY_DEFINITION,
        charts=[chart(name, comparison) for name in _CHARTS] if comparison else [],
        labels=sorted({name for card in cards for name in card.labels}),
        predicted=sorted({name for card in cards for name in card.predicted}),
        island=htmlsafe_json_dumps(cards, dumps=compact),
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )


def to_cards(
    attributions: Iterable[Attribution],
    *,
    trusted: str | None = None,
    influences: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Card]:
    """Return a card for each row, errors first.

    Of its attributions, those by the trusted method come first, and of these those of what the model says.
    """

    def rank(each: Attribution) -> tuple[bool, bool]:
        return each.method != trusted, each.kind == "class" and each.target not in names(each.prediction)

    rows: dict[tuple[int, str], list[Attribution]] = defaultdict(list)
    for each in attributions:
        rows[each.row, each.text].append(each)
    cards = [
        _card(number, sorted(row, key=rank), (influences or {}).get(row[0].row, ()))
        for number, row in enumerate(rows.values(), start=1)
    ]
    return sorted(cards, key=_order)


def overview(cards: Iterable[Card]) -> list[Pushes]:
    """Return what words, in lower case, do to each class over all texts, and words of questions to the answers.

    A text counts once for a target, by the method that is shown first.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, int] = defaultdict(int)
    signs: dict[str, bool] = {}
    for card in cards:
        first = {shown.target: shown for shown in reversed(card.views)}
        for target, shown in first.items():
            if shown.kind == "token" or (shown.kind == "span" and shown is not card.views[0]):
                continue
            told = target if shown.kind == "class" else "the answer, by words of the question"
            texts[told] += 1
            signs[told] = shown.signed
            counted = shown.parts if shown.kind == "class" else shown.parts[:1]
            for part, credits in zip(counted, shown.scores, strict=False):
                for word, score in zip(card.parts[part].names, credits, strict=True):
                    scores[told][word.casefold()].append(score)
    order = sorted(texts, key=lambda target: (-texts[target], target))
    return [_pushes(target, texts[target], scores[target], signed=signs[target]) for target in order]


def chart(name: str, comparison: Comparison) -> dict[str, Any]:
    """Return `deletion` or `insertion` as lines in a plane of 320 by 160 units, the best-ranked method first."""
    curves = {method: found[name] for method in comparison.methods if name in (found := comparison.curves[method])}
    heights = [height for curve in curves.values() for height in curve.probabilities]
    low, high = min([0.0, *heights]), max([1.0, *heights])

    def points(curve: Curve) -> str:
        places = zip(curve.shares, curve.probabilities, strict=True)
        return " ".join(f"{_WIDTH * x:.1f},{_HEIGHT * (high - y) / (high - low):.1f}" for x, y in places)

    lines = [{"method": method, "points": points(curve), "area": curve.area} for method, curve in curves.items()]
    return {"name": name, "about": _CHARTS[name], "lines": lines, "low": low, "high": high}


def level(score: float, scale: float) -> int:
    """Return the strength of a word's colour, from 0 (none) to 8, as `report.js` does."""
    return math.floor(_LEVELS * abs(score) / scale + 0.5) if scale else 0


def names(label: Label | None) -> list[str]:
    """Return the classes that a label names: none for a number."""
    return [label] if isinstance(label, str) else label if isinstance(label, list) else []


def told(label: Label | None, *, nothing: str) -> str:
    """Return a label in words."""
    if isinstance(label, list):
        return ", ".join(label) or nothing
    return (label or nothing) if isinstance(label, str) else f"{label:.4g}" if label is not None else "unknown"


def signed(number: float) -> str:
    """Return a score with its sign."""
    digits = f"{number:+.2f}" if abs(number) >= 0.01 or not number else f"{number:+.1g}"
    return digits.replace("-", "\N{MINUS SIGN}", 1)


def short(number: float) -> str:
    """Return a score for a narrow cell."""
    return "0" if abs(number) < 0.005 else signed(number)


def percent(share: float) -> str:
    """Return a probability, never as a certainty that it isn't."""
    if 0.9995 <= share < 1:
        return "over 99.9%"
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def plain(name: str) -> str:
    """Return a method's or a metric's name for people."""
    return name.replace("_", " ")


# One card


def _card(number: int, row: Sequence[Attribution], influences: Iterable[Mapping[str, Any]]) -> Card:
    shown = row[0]
    confidence = _confidence(row)
    cuts = [edge for each in row if each.span for edge in each.span]
    drawn: dict[Part, list[int]] = {}  # with the characters at which their pieces begin
    views = []
    for each, place in zip(row, _places(row), strict=True):
        parts = [_part(each.parts[0], each.text, each.words, ())]
        if each.text_pair is not None:
            parts.append(_part(each.parts[1], each.text_pair, each.pair_words, cuts))
        drawn |= parts
        views.append(_view(each, [list(drawn).index(part) for part, _ in parts], parts[-1][1], place))
    is_class, is_token = shown.kind == "class", shown.kind == "token"
    return Card(
        number=number,
        row=shown.row,
        verdict=_verdict(shown),
        head=_head(shown, confidence),
        labels=names(shown.label) if is_class else [],
        predicted=names(shown.prediction) if is_class else [],
        confidence=confidence,
        urgency=_urgency(shown, confidence),
        length=len(shown.text) + len(shown.text_pair or ""),
        reference=told(shown.label, nothing="nothing")
        if is_token and shown.label not in (None, shown.prediction)
        else None,
        parts=list(drawn),
        views=views,
        influences=sorted(map(dict, influences), key=lambda example: -abs(example["score"])),
    )


def _places(row: Sequence[Attribution]) -> list[int | None]:
    """Number the tokens in the order of the text; several that are parts of one character share its span."""
    seen: Counter[tuple[Any, ...]] = Counter()
    keys: list[tuple[int, int, int] | None] = []
    for each in row:
        same = (each.span, each.target, each.method)
        keys.append((*each.span, seen[same]) if each.kind == "token" and each.span else None)
        seen[same] += 1
    order = sorted({key for key in keys if key})
    return [order.index(key) if key else None for key in keys]


def _part(name: str, text: str, words: Sequence[Word], cuts: Iterable[int]) -> tuple[Part, list[int]]:
    """Return the text in pieces, and the character at which each piece begins (with the text's end)."""
    edges = sorted({0, len(text), *cuts, *(edge for word in words for edge in (word.start, word.end))})
    edges = [edge for edge in edges if edge <= len(text)]
    begins = [word.start for word in words]
    owners = [bisect_right(begins, start) - 1 for start in edges[:-1]]
    inside = (i if i >= 0 and start < words[i].end else -1 for i, start in zip(owners, edges[:-1], strict=True))
    return Part(name[:1].upper() + name[1:], tuple(text[a:b] for a, b in pairwise(edges)), tuple(inside)), edges


def _view(each: Attribution, parts: list[int], starts: Sequence[int], place: int | None) -> View:
    words = [each.words] + ([each.pair_words] if each.text_pair is not None else [])
    scores = [[_rounded(word.score) for word in part] for part in words]
    scale = max((abs(score) for part in scores for score in part), default=0.0)
    span = each.span if each.text_pair is not None else None
    ranked = sorted(each.probabilities.items(), key=lambda item: -item[1])
    needed = {*names(each.prediction), *names(each.label), each.target}
    probable = [item for rank, item in enumerate(ranked) if rank < _CLASSES or item[0] in needed]
    notes, warning = _notes(each)
    texts = [each.text] + ([each.text_pair] if each.text_pair is not None else [])
    if unread := sum(len(find_words(text)) for text in texts) - sum(map(len, words)):
        notes.append(f"{unread} word{'s' * (unread > 1)} without a score: not read for this.")
    if unknown := list(dict.fromkeys(word.text for word in each.words + each.pair_words if word.unknown)):
        more = f" and {len(unknown) - _UNKNOWN} more" if len(unknown) > _UNKNOWN else ""
        some = ", ".join(unknown[:_UNKNOWN])
        notes.append(f"Read in whole or in part as the unknown token, whatever they say: {some}{more}.")
    return View(
        target=each.target,
        method=each.method,
        kind=each.kind,
        probability=each.probability,
        place=place,
        parts=parts,
        scores=scores,
        scale=scale,
        strongest=(_strongest(scores, scale, 1), _strongest(scores, scale, -1)),
        mark=(bisect_left(starts, span[0]), bisect_left(starts, span[1])) if span else None,
        read=_read(each.pair_words, span[0]) if span and each.kind == "token" else None,
        probabilities=probable,  # whole: rounded twice, they would contradict the prediction's
        others=len(ranked) - len(probable),
        notes=notes,
        warning=warning,
        signed=each.method not in METHODS or METHODS[each.method].signed,
    )


def _read(words: Sequence[Word], written: int) -> int:
    """Return how many words were there, in whole or in part, when as many characters were written."""
    return max((i for i, word in enumerate(words, start=1) if word.start < written or word.score), default=0)


def _strongest(scores: Sequence[Sequence[float]], scale: float, sign: int) -> list[tuple[int, int]]:
    told = [
        (part, word)
        for part, credits in enumerate(scores)
        for word, score in enumerate(credits)
        if score * sign > 0 and level(score, scale)
    ]
    return sorted(told, key=lambda at: -abs(scores[at[0]][at[1]]))[:_STRONGEST]


def _notes(each: Attribution) -> tuple[list[str], str]:
    total = math.fsum(word.score for word in each.words + each.pair_words)
    special = f" Special tokens, which are no word, have {signed(each.special_score)} beside it."
    rest = special if signed(each.special_score) not in ("+0.00", "\N{MINUS SIGN}0.00") else ""
    if each.convergence_delta is None:
        return [f"The scores sum to {signed(total)}; by this method they needn’t add up to anything.{rest}"], ""
    if each.converged is None:
        return [f"The scores sum to {signed(total)}: by this method they add up, however good they are.{rest}"], ""
    delta = signed(each.convergence_delta)
    if each.converged:
        change = total + each.special_score - each.convergence_delta
        told = f"They add up to what the text changes, {signed(change)}, but for {delta} (the convergence delta)."
        return [f"The words’ scores sum to {signed(total)}.{rest}", told], ""
    warning = f"The scores don’t add up: read them with care. They are off by {delta} (the convergence delta)."
    return [f"The scores sum to {signed(total)}.{rest}"], warning


def _verdict(each: Attribution) -> str:
    """Whether the model is right; an answer is by the rules of SQuAD, and a text that is written can't be."""
    if each.label is None or isinstance(each.label, int | float) or each.kind == "token":
        return ""
    if each.kind == "span":
        same = bool(exact_match(str(each.prediction), [name for name in names(each.label) if name]))
    else:
        same = set(names(each.label)) == set(names(each.prediction))
    return "right" if same else "wrong"


def _urgency(each: Attribution, confidence: float | None) -> float:
    if isinstance(each.label, int | float) and isinstance(each.prediction, int | float):
        return abs(each.label - each.prediction)
    return confidence or 0.0 if _verdict(each) == "wrong" else 0.0


def _confidence(row: Sequence[Attribution]) -> float | None:
    """The probability of what the model says; of a written text, the geometric mean over its tokens."""
    shown = row[0]
    if shown.kind == "token":
        by_token = {place: each.probability for each, place in zip(row, _places(row), strict=True)}
        logs = [math.log(probability) for probability in by_token.values() if probability]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None
    told = shown.prediction if isinstance(shown.prediction, str) else None
    return shown.probabilities.get(told, shown.probability) if told is not None else shown.probability


def _head(each: Attribution, confidence: float | None) -> list[tuple[str, str, str]]:
    sure = percent(confidence) if confidence is not None else ""
    if each.kind == "token":
        written = told(each.prediction, nothing="nothing")
        short = written if len(written) <= 60 else written[:59] + "…"
        caption = each.parts[1][:1].upper() + each.parts[1][1:]
        return [(caption, short, f"{sure} per token" if sure else "")]
    said, gold, nothing = (
        ("Answered", "Right answer", "no answer")
        if each.kind == "span"
        else ("Predicted", "Labelled", "none of the labels")
    )
    head = [(said, told(each.prediction, nothing=nothing), sure)]
    if each.label is not None:
        several = " or ".join(dict.fromkeys(names(each.label))) if each.kind == "span" else each.label
        return [*head, (gold, told(several, nothing=nothing), "")]
    return [*head, ("Not labelled", "", "")]


def _order(card: Card) -> tuple[int, float, int]:
    """Errors first, and of them those that the model was surest of; of numbers, the farthest off."""
    return ["wrong", "", "right"].index(card.verdict), -card.urgency, card.number


# All cards


def _pushes(target: str, texts: int, scores: Mapping[str, Sequence[float]], *, signed: bool) -> Pushes:
    least = 1 + (texts >= 10) + (texts >= 100)
    pushes = [Push(w, math.fsum(s) / len(s), len(s)) for w, s in scores.items() if len(s) >= least]
    pushes.sort(key=lambda push: (-push.mean, push.word))
    raising = [push for push in pushes[:_OVERVIEW_WORDS] if push.mean > 0]
    lowering = [push for push in pushes[::-1][:_OVERVIEW_WORDS] if push.mean < 0]
    return Pushes(target, texts, least, signed, raising, lowering)


def _object(attribution: Attribution, influences: Mapping[int, Sequence[Mapping[str, Any]]] | None) -> dict[str, Any]:
    """As `dataclasses.asdict`, which copies so deeply that it takes most of the time of a large report."""
    words = {name: [vars(word) for word in getattr(attribution, name)] for name in ("words", "pair_words")}
    found = vars(attribution) | words
    return found | ({"influences": list(influences.get(attribution.row, ()))} if influences is not None else {})


def _rounded(number: float) -> float:
    """Four digits: what is told, at half the size."""
    return float(f"{number:.4g}")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
