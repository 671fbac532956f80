"""What people marked in texts, to be told apart from what moved the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor, cat

from lit_nlp.data.sources import File, lines
from lit_nlp.errors import DataError
from lit_nlp.explain.attribution import Attribution
from lit_nlp.explain.faithfulness import rationale_words

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Rationale:
    """The characters `(start, end)` of the spans that people marked in a text, and in the one beside it."""

    text: Spans = ()
    text_pair: Spans = field(default=())

    def words_of(self, attribution: Attribution) -> Bool[Tensor, " words"]:
        """Return which of an attribution's words were marked, those of the text and then those of its pair.

        Raises:
            DataError: A span ends beyond its text.
        """
        marked = []
        for name, text, words, spans in (
            ("text", attribution.text, attribution.words, self.text),
            ("text_pair", attribution.text_pair or "", attribution.pair_words, self.text_pair),
        ):
            for start, end in spans:
                if end > len(text):
                    problem = f"the span [{start}, {end}] ends beyond the {len(text)} characters of the row's {name}"
                    raise DataError(problem, where="rationales", mend="write a line for each row of the split")
            marked.append(rationale_words([(word.start, word.end) for word in words], spans))
        return cat(marked)


def read_rationales(path: str, rows: Sequence[int], *, total: int | None = None) -> list[Rationale]:
    """Read what was marked in some rows of a split: a JSON object a line, the first that of row 0.

    Each holds spans under `text`, and where there is a second text under `text_pair`: ``{"text": [[0, 4], [9, 13]]}``,
    in characters, the end behind the last. A row in which nothing is marked is an empty object.

    Args:
        path: The file.
        rows: The numbers of the rows.
        total: How many rows the split has, after `limit` and `val_fraction` drew from its source. None: not told.

    Raises:
        DataError: It can't be read, a line is no such object, or there are too few, or more than the split has rows.
    """
    file = File(path, str(Path(path)))
    found = [_rationale(line, file.line(number)) for number, line in enumerate(lines(file), 1)]
    if rows and max(rows) >= len(found):
        problem = f"there is no line for row {max(rows)} of the split (counted from 0)"
        raise DataError(problem, where=path, mend="write a line for each row, {} where nothing is marked")
    if total is not None and len(found) > total:
        # Not all of a source's rows are in the split, or the file is of another: then line and row don't meet.
        mend = "write a line for each row that the split has, after data.limit and data.val_fraction"
        raise DataError(f"it is of no row, the split has {total}", where=file.line(total + 1), mend=mend)
    return [found[row] for row in rows]


def _rationale(line: str, where: str) -> Rationale:
    mend = 'write {"text": [[start, end], …]}, in characters'
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg}", where=where, mend=mend) from error
    if (
        not isinstance(given, dict)
        or not given.keys() <= {"text", "text_pair"}
        or not all(map(_are_spans, given.values()))
    ):
        raise DataError(f"expected spans, got {line.strip()[:80]}", where=where, mend=mend)
    return Rationale(**{name: [(start, end) for start, end in spans] for name, spans in given.items()})


def _are_spans(given: Any) -> bool:
    return isinstance(given, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(place, int) and not isinstance(place, bool) for place in span)
        and 0 <= span[0] < span[1]
        for span in given
    )
