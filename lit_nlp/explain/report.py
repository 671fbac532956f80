"""Attributions in, a page that anyone can read and a file that a program can read out."""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lit_nlp.explain.attribution import Attribution
from lit_nlp.explain.explainable import Label
from lit_nlp.explain.words import Word
from lit_nlp.files import write_jsonl, write_text

_TEMPLATES = Path(__file__).parent / "templates"
_LEVELS = 8
_STRONGEST = 6
_CLASSES = 6


@dataclass(frozen=True)
class Card:
    """One attribution, ready to be drawn.

    Attributes:
        number: Its place among the attributions, counted from 1.
        attribution: What to draw.
        verdict: `right`, `wrong`, or None where the gold label isn't known or both are numbers.
        scale: The largest |score| of a word, which has the strongest colour.
    """

    number: int
    attribution: Attribution
    verdict: str | None
    scale: float

    @property
    def all_words(self) -> list[Word]:
        """The words of the text and of its pair."""
        return self.attribution.words + self.attribution.pair_words

    @property
    def total(self) -> float:
        """What all words together do to the score."""
        return math.fsum(word.score for word in self.all_words)

    def strongest(self, sign: int) -> list[Word]:
        """The words that speak most for (1) or against (-1) the target, the strongest first."""
        told = [word for word in self.all_words if word.score * sign > 0 and self.level(word)]
        return sorted(told, key=lambda word: -abs(word.score))[:_STRONGEST]

    def level(self, word: Word) -> int:
        """The strength of a word's colour, from 0 (none) to 8."""
        return round(_LEVELS * abs(word.score) / self.scale) if self.scale else 0

    def classes(self) -> list[tuple[str, float]]:
        """The most probable classes, and with them those predicted, labelled and explained."""
        shown = self.attribution
        told = {*names(shown.prediction), *names(shown.label), shown.target}
        ranked = sorted(shown.probabilities.items(), key=lambda item: -item[1])
        return [item for rank, item in enumerate(ranked) if rank < _CLASSES or item[0] in told]


def write_report(
    attributions: Sequence[Attribution], folder: str | Path, *, title: str, facts: Mapping[str, str]
) -> Path:
    """Write `index.html` and, beside it, `attributions.jsonl`; return the page's path.

    The page needs no network and runs no code but its own. The other file holds each attribution as
    an object a line, in the order given. Earlier files of these names are kept, as `index-1.html`.

    Args:
        attributions: What to show.
        folder: Where to write; made where it is missing.
        title: The page's headline.
        facts: What the reader should know of the run, such as the model and the data, by name.

    Raises:
        UserError: The folder can't be written.
    """
    folder = Path(folder)
    write_jsonl(folder / "attributions.jsonl", (asdict(attribution) for attribution in attributions))
    write_text(folder / "index.html", render(attributions, title=title, facts=facts))
    return folder / "index.html"


def render(attributions: Sequence[Attribution], *, title: str, facts: Mapping[str, str]) -> str:
    """Return the page; whatever the texts and labels hold, it is shown and never run."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": _label,
        "signed": _signed,
        "percent": _percent,
        "pieces": _pieces,
        "names": names,
    }
    cards = sorted((_card(i, each) for i, each in enumerate(attributions, start=1)), key=_urgency)
    style, script = (Markup((_TEMPLATES / name).read_text("utf-8")) for name in ("report.css", "report.js"))
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        cards=cards,
        labels=sorted({name for card in cards for name in names(card.attribution.label)}),
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )


def names(label: Label | None) -> list[str]:
    """The classes that a label names: none for a number."""
    return [label] if isinstance(label, str) else label if isinstance(label, list) else []


def _card(number: int, attribution: Attribution) -> Card:
    scores = [abs(word.score) for word in attribution.words + attribution.pair_words]
    return Card(number, attribution, _verdict(attribution), max(scores, default=0.0))


def _verdict(attribution: Attribution) -> str | None:
    if attribution.label is None or isinstance(attribution.label, int | float):
        return None
    return "right" if set(names(attribution.label)) == set(names(attribution.prediction)) else "wrong"


def _urgency(card: Card) -> tuple[int, float, int]:
    """Errors first, and of them those that the model was surest of; of numbers, the farthest off."""
    shown = card.attribution
    if isinstance(shown.label, int | float) and isinstance(shown.prediction, int | float):
        return 1, -abs(shown.label - shown.prediction), card.number
    order = ["wrong", None, "right"].index(card.verdict)
    return order, -(shown.probability or 0.0) if card.verdict == "wrong" else 0.0, card.number


def _pieces(text: str, words: Iterable[Word]) -> Iterable[tuple[str, Word | None]]:
    """Cut a text into words and what lies between them."""
    done = 0
    for word in words:
        yield text[done : word.start], None
        yield text[word.start : word.end], word
        done = word.end
    yield text[done:], None


def _label(label: Label | None) -> str:
    if isinstance(label, list):
        return ", ".join(label) or "none of the labels"
    return label if isinstance(label, str) else f"{label:.4g}" if label is not None else "unknown"


def _signed(number: float) -> str:
    digits = f"{number:+.2f}" if abs(number) >= 0.01 or not number else f"{number:+.1g}"
    return digits.replace("-", "\N{MINUS SIGN}", 1)


def _percent(share: float) -> str:
    if 0.9995 <= share < 1:
        return "over 99.9%"
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
