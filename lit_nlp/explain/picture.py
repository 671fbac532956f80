"""The attributions of one text as a picture, for slides and papers: light, whatever the reader's screen is."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from lit_nlp.errors import UserError
from lit_nlp.explain.attribution import Attribution
from lit_nlp.explain.methods import METHODS
from lit_nlp.explain.report import Card, View, level, percent, plain, short, signed, to_cards
from lit_nlp.files import written_whole

_INK, _QUIET, _FOR, _AGAINST, _BAR = "#1c1d20", "#5d6068", "#0062b2", "#de7800", "#8a8e97"
_WASH = 0.58
_DPI = 150
_WIDTH = 10.0  # inches, as all lengths here
_MARGIN, _LINE, _ROW, _CELL = 0.4, 0.42, 0.26, 0.56
_WIDE_CELL = 0.45  # holds two decimals
_TEXT, _SMALL = 13.0, 9.0  # points
# matplotlib brings the first; of the others, which hold scripts that it lacks, it complains where they are missing.
_WISHED = ["Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Hiragino Sans", "Arial Unicode MS", "Segoe UI Symbol"]
_FONTS = ["DejaVu Sans", *(name for name in _WISHED if name in set(get_font_names()))]
_LINES = 60
_COLUMNS, _ROWS = 24, 40  # of the heat map; what is more is in the page


def write_picture(attributions: Sequence[Attribution], path: Path, *, trusted: str | None = None) -> None:
    """Draw a text with the attribution that its card shows first, and for a written text the scores of all its tokens.

    An earlier picture is kept, as `row-0-1.png`.

    Args:
        attributions: Those of one row, at least one.
        path: Where to write the PNG, 1,500 pixels wide.
        trusted: The method that is shown, where there are several.

    Raises:
        UserError: The file can't be written.
    """
    (card, *_) = to_cards(attributions, trusted=trusted)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure = draw(card)
        try:
            with written_whole(path, keep_earlier=True) as partial:
                figure.savefig(partial, format="png", facecolor="white")
        except OSError as error:
            raise UserError(
                f"it can't be written ({error.strerror})", where=str(path), mend="choose a folder that you may write"
            ) from error
    others = [each.message for each in told if "missing from font" not in str(each.message)]
    for message in others:
        warnings.warn(message, stacklevel=2)
    if len(others) < len(told):
        rank_zero_warn(
            f"{path} has boxes in place of characters that no font here holds; install one that does, as Noto Sans CJK"
        )


def draw(card: Card) -> Figure:
    """Return the card's first view as a figure whose height follows from what is in it."""
    figure = Figure(figsize=(_WIDTH, 1.0), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(-1, 0)  # so that widths are right while the height isn't known
    view = card.views[0]
    pen = _Pen(axes)
    head = " · ".join(" ".join(filter(None, item)) for item in card.head)
    verdict = {"right": "Right · ", "wrong": "Wrong · ", "": ""}[card.verdict]
    pen.caption(verdict + head, size=11.0, colour=_INK)
    pen.caption(f"Explained: {view.target}, by {plain(view.method)}")
    if view.method in METHODS:
        pen.caption(METHODS[view.method].about)
    for at, part in enumerate(view.parts):
        if len(view.parts) > 1:
            pen.caption(card.parts[part].name)
        pen.text(card, view, at)
    pen.down(0.15)
    if heat := card.heat:
        pen.heat(card, heat)
    else:
        pen.bars(card, view)
    for note in filter(None, [*view.notes, view.warning]):
        pen.caption(note)
    height = _MARGIN - pen.y
    figure.set_size_inches(_WIDTH, height)
    axes.set_ylim(-height, 0)
    return figure


class _Pen:
    """Draws from the top down; `y` is how far it has come, in inches from the top edge, downward below 0."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._widths: dict[tuple[str, float], float] = {}
        self.y = -_MARGIN

    def down(self, by: float) -> None:
        self.y -= by

    def caption(self, text: str, *, size: float = _SMALL, colour: str = _QUIET) -> None:
        """Write a line, cut to the picture's width."""
        room = _WIDTH - 2 * _MARGIN
        while len(text) > 1 and self._width(text, size) > room:
            text = text[: min(len(text) - 2, int(len(text) * room / self._width(text, size)))].rstrip() + "…"
        self._write(_MARGIN, self.y, text, size, colour)
        self.down(0.3 if size > _SMALL else _ROW)

    def text(self, card: Card, view: View, at: int) -> None:
        """Write a text, each word on its colour, in lines as wide as the picture."""
        part, scores = card.parts[view.parts[at]], view.scores[at]
        x, top = _MARGIN, self.y
        self.down(0.05)
        for i, (piece, word) in enumerate(zip(part.pieces, part.words, strict=True)):
            marked = at == 1 and view.mark is not None and view.mark[0] <= i < view.mark[1]
            for run in _runs(piece):
                width = self._width(run, _TEXT)
                if run == "\n" or (run.strip() and x > _MARGIN and x + width > _WIDTH - _MARGIN):
                    x = _MARGIN
                    self.down(_LINE)
                    if self.y < top - _LINES * _LINE:
                        self.caption("… the rest is in the page")
                        return
                if run == "\n" or (not run.strip() and x == _MARGIN):
                    continue
                if word >= 0:
                    self._box(x, width, scores[word], level(scores[word], view.scale))
                if marked:
                    self._axes.plot([x, x + width], [self.y - 0.3] * 2, color=_INK, linewidth=2.2)
                self._write(x, self.y, run, _TEXT, _INK)
                x += width
        self.down(_LINE)

    def bars(self, card: Card, view: View) -> None:
        """Draw the strongest words for and against, and the probabilities, side by side."""
        spoken = bool(view.probabilities)
        titles = ["Speaks for", "Speaks against"] if spoken else ["Raises", "Lowers"]
        told = signed if view.signed else "{:.3g}".format
        columns = [
            (title, [(card.parts[view.parts[p]].names[w], view.scores[p][w] / view.scale, told(view.scores[p][w]))
                     for p, w in view.strongest[which]])
            for which, title in enumerate(titles if view.signed else ["Counts most for"])
        ]  # fmt: skip
        if spoken:
            columns.append(("Probability", [(name, share, percent(share)) for name, share in view.probabilities]))
        top, lowest = self.y, self.y
        width = (_WIDTH - 2 * _MARGIN) / 3
        for column, (title, items) in enumerate(columns):
            x, self.y = _MARGIN + column * width, top
            self._write(x, self.y, title, _SMALL, _QUIET)
            colour = {titles[1]: _AGAINST, "Probability": _BAR}.get(title, _FOR)
            for name, share, number in items:
                self.down(_ROW)
                self._write(x, self.y, name if len(name) <= 14 else name[:13] + "…", _SMALL, _INK)
                self._axes.barh(self.y - 0.09, 0.9 * abs(share), height=0.1, left=x + 1.15, color=colour)
                self._write(x + 2.1, self.y, number, _SMALL, _INK)
            lowest = min(lowest, self.y)
        self.y = lowest
        self.down(1.6 * _ROW)

    def heat(self, card: Card, rows: Sequence[View]) -> None:
        """Draw the scores of the tokens, a row each, by the words that were read for them."""
        columns = [(at, w, word) for at, p in enumerate(rows[0].parts) for w, word in enumerate(card.parts[p].names)]
        left = _MARGIN + 1.1
        cell = min(_CELL, (_WIDTH - _MARGIN - left) / max(1, min(len(columns), _COLUMNS)))
        longest = max((len(word[:16]) for _, _, word in columns[:_COLUMNS]), default=0)
        self.down(0.2 + 0.07 * longest)
        for i, (_, _, word) in enumerate(columns[:_COLUMNS]):
            self._write(left + (i + 0.5) * cell, self.y + 0.16, word[:16], 8.0, _INK, rotation=60)
        for row in rows[:_ROWS]:
            self._write(left - 0.1, self.y - 0.03, row.target[:14], 8.0, _INK, ha="right")
            for i, (at, w, _) in enumerate(columns[:_COLUMNS]):
                x, score = left + i * cell, row.scores[at][w]
                if at == 1 and row.read is not None and w >= row.read:
                    continue
                self._axes.barh(self.y - 0.11, cell, height=0.22, left=x, color=_washed(score, level(score, row.scale)))
                number = short(score) if cell > _WIDE_CELL else _shortest(score)
                self._write(x + cell / 2, self.y - 0.05, number, 7.0, _INK, ha="center")
            self.down(0.24)
        cut = len(columns) > _COLUMNS or len(rows) > _ROWS
        self.down(0.1)
        self.caption(
            "Blue speaks for the token, orange against it; each row by itself."
            + (f" The first {_COLUMNS} words and {_ROWS} tokens." if cut else "")
        )

    def _box(self, x: float, width: float, score: float, strength: int) -> None:
        if strength:
            self._axes.barh(self.y - 0.12, width, height=0.3, left=x, color=_washed(score, strength))
            colour, style = (_FOR, "-") if score > 0 else (_AGAINST, (0, (3, 2)))
            self._axes.plot([x, x + width], [self.y - 0.26] * 2, color=colour, linewidth=1.5, linestyle=style)

    def _write(self, x: float, y: float, text: str, size: float, colour: str, **how: Any) -> None:
        options = {"fontsize": size, "color": colour, "family": _FONTS, "va": "baseline", **how}
        self._axes.text(x, y - 0.95 * size / 72, text, parse_math=False, **options)

    def _width(self, text: str, size: float) -> float:
        """In inches, with the blanks at both ends."""
        if (text, size) not in self._widths:
            inches = []
            for content in (f"|{text}|", "||"):
                drawn = self._axes.text(0, 0, content, fontsize=size, family=_FONTS, parse_math=False)
                inches.append(drawn.get_window_extent().width / _DPI)
                drawn.remove()
            self._widths[text, size] = inches[0] - inches[1]
        return self._widths[text, size]


def _shortest(score: float) -> str:
    """Return a score with one decimal, in whole numbers from 10."""
    rounded = f"{score:+.1f}" if abs(score) < 9.95 else f"{score:+.0f}"
    return "0" if not float(rounded) else rounded.replace("-", "\N{MINUS SIGN}")


def _runs(piece: str) -> list[str]:
    """Cut what is written at a stroke from where a line may break."""
    return [run for run in re.split(r"\r?(\n)", piece) if run]


def _washed(score: float, strength: int) -> tuple[float, float, float]:
    """The colour of a score on white."""
    share = _WASH * strength / 8
    red, green, blue = (1 - share + share * part for part in to_rgb(_FOR if score > 0 else _AGAINST))
    return red, green, blue
