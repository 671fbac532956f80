"""Sentiment: polarity in its natural order, from names, class numbers, star ratings or scores."""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from lit_nlp.data.base import Split
from lit_nlp.data.labels import class_label, number
from lit_nlp.data.sources import Row
from lit_nlp.data.text_classification import Labels, TextClassificationDataModule
from lit_nlp.errors import ConfigError, DataError

POLARITIES: dict[int, list[str]] = {
    2: ["negative", "positive"],
    3: ["negative", "neutral", "positive"],
    5: ["very negative", "negative", "neutral", "positive", "very positive"],
}
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+")


class SentimentDataModule(TextClassificationDataModule):
    """Rows of `text` and `label`, the label a polarity; classes run from negative to positive.

    A label is a class's name (whatever its case), its number from 0, or with `cutoffs` any score.

    Args:
        classes: 2 (negative, positive), 3 (with neutral) or 5 (with very negative, very positive). None:
            as many as `labels` names, else 2.
        cutoffs: The scores at which the next class begins, rising: star ratings 1 to 5 become three
            classes by ``[2.5, 3.5]``. One fewer than classes; or two for two classes, and the scores
            between them, the neutral ones, are left out and counted.
        labels: Other names for the classes, from negative to positive; or a dict from the file's
            values to the classes' names, in that order.
        kwargs: The arguments of `TextClassificationDataModule`.

    Raises:
        ConfigError: Cutoffs that don't rise or don't fit the number of classes.
    """

    def __init__(
        self,
        backbone: str,
        *,
        classes: Literal[2, 3, 5] | None = None,
        cutoffs: list[float] | None = None,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> None:
        if labels is None and (classes or 2) not in POLARITIES:
            raise ConfigError(f"sentiment has 2, 3 or 5 classes, got {classes}", where="data.classes")
        super().__init__(backbone, labels=labels or POLARITIES[classes or 2], problem_type="single_label", **kwargs)
        self.cutoffs = cutoffs
        self.save_hyperparameters({"cutoffs": cutoffs}, logger=False)
        count = len(self.labels)
        if count not in POLARITIES or count != (classes or count):
            raise ConfigError(
                f"{count} names for {classes or '2, 3 or 5'} classes", where="data.labels", mend="name each class once"
            )
        if cutoffs is not None and not _fits(cutoffs, count):
            raise ConfigError(
                f"{count} classes take {count - 1} rising cutoffs (or, for two classes, two), got {cutoffs}",
                where="data.cutoffs",
            )

    def read(self, split: Split) -> Iterator[Row]:
        """Return the split's rows, without those that are neither negative nor positive."""
        rows = super().read(split)
        return self._polar(rows, split) if self._leaves_out_neutral and split != "predict" else rows

    @property
    def facts(self) -> dict[str, Any]:
        """What the module must know; that there is one label a text goes without saying."""
        return {name: fact for name, fact in super().facts.items() if name != "problem_type"}

    def options(self, split: Split) -> dict[str, Any]:
        """Add the cutoffs, which decide the labels' numbers."""
        return super().options(split) | {"cutoffs": self.cutoffs}

    def target(self, row: Row) -> int:
        """Return the class of a row, 0 the most negative.

        Raises:
            DataError: The label is none of the classes, or no number where cutoffs are given.
        """
        value = row.values["label"]
        if self.cutoffs is not None:
            side = bisect_right(self.cutoffs, number(value, row.where))
            return side // 2 if self._leaves_out_neutral else side
        label = class_label(str(value), row.where)
        if label not in self.label_names:
            label = {name.casefold(): name for name in self.label_names}.get(label.casefold(), label)
        if not _NUMBER.fullmatch(label) or any(map(_NUMBER.fullmatch, self.label_names)):
            return self._class(label, row.where)
        numbers = [str(i) for i in range(len(self.labels))]
        if label not in numbers:
            raise DataError(
                f"label {label!r} is not one of {', '.join(numbers)}",
                where=row.where,
                mend="set data.cutoffs to make classes of ratings or scores",
            )
        return int(label)

    @cached_property
    def _counted(self) -> Counter[str]:
        counts = Counter(self.labels[self.target(row)] for row in self.read("train"))
        if len(counts) < 2:
            raise DataError(
                f"the {counts.total()} training rows have no label but {next(iter(counts))!r}",
                where="data.train",
                mend="check data.columns" if self.cutoffs is None else "set data.cutoffs to match the scores",
            )
        return counts

    @property
    def _leaves_out_neutral(self) -> bool:
        return len(self.labels) == 2 and len(self.cutoffs or []) == 2

    def _polar(self, rows: Iterator[Row], split: Split) -> Iterator[Row]:
        assert self.cutoffs is not None
        low, high = self.cutoffs
        left_out = kept = 0
        for row in rows:
            if low <= number(row.values["label"], row.where) < high:
                left_out += 1
            else:
                kept += 1
                yield row
        if not kept:
            raise DataError(
                f"all {left_out} rows lie between the cutoffs {low} and {high}",
                where=f"data.{split}",
                mend="set data.cutoffs to match the scores",
            )
        if left_out:
            self.note(f"{left_out} rows between the cutoffs {low} and {high} are neutral and left out.")


def _fits(cutoffs: list[float], classes: int) -> bool:
    rising = all(map(math.isfinite, cutoffs)) and all(low < high for low, high in pairwise(cutoffs))
    return rising and (len(cutoffs) == classes - 1 or (classes == 2 and len(cutoffs) == 2))
