"""Labels as files write them -> class names, their order, and numbers; with the line at fault where they can't be."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_nlp.data.sources import Row
from lit_nlp.errors import DataError, did_you_mean

_DECIMAL = re.compile(r"[+-]?\d*\.\d+")
_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?")
# What may stand between the labels of one text.
_SEPARATORS = "|,;"
# A tuple: a union would be made anew for every row.
_SEVERAL = (list, dict)


def class_label(value: Any, where: str) -> str:
    """Return one label as a string: ``1``, ``1.0`` and ``"1"`` are the same class, and so is ``" 1"``.

    Raises:
        DataError: A number with decimals, or several labels, where one class is expected.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, _SEVERAL):
        raise DataError(
            f"expected one label, got {value!r}",
            where=where,
            mend="set problem_type to multi_label if a text may have several",
        )
    text = str(value).strip()
    if _WHOLE_NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0]))
    if isinstance(value, float):
        raise _has_decimals(value, where)
    return text


def several_labels(value: Any, where: str, separator: str) -> list[str]:
    """Return the labels of one text: a list, a string with separators, or a column of 0 or 1 for each.

    Raises:
        DataError: An indicator column holds something else than 0 or 1.
    """
    if isinstance(value, dict):
        return [name for name, flag in value.items() if _indicator(name, flag, where)]
    if isinstance(value, str):
        value = [part for part in value.split(separator) if part.strip()]
    return [class_label(item, where) for item in (value if isinstance(value, list) else [value])]


def number(value: Any, where: str) -> float:
    """Return a score.

    Raises:
        DataError: It isn't a finite number.
    """
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if isinstance(value, bool) or not math.isfinite(score):
        raise DataError(f"expected a number as label, got {value!r}", where=where, mend="mend or remove the row")
    return score


def class_index(label: str, labels: list[str], where: str) -> int:
    """Return the place of a label among the known ones.

    Raises:
        DataError: It isn't one of them.
    """
    if label not in labels:
        raise DataError(
            f"label {label!r} is not one of {listed(labels)}",
            where=where,
            mend=did_you_mean(label, labels) or "correct the row, or name all labels in data.labels",
        )
    return labels.index(label)


def listed(labels: list[str]) -> str:
    """Return labels in a row, of many the first ten."""
    return ", ".join(labels[:10]) + (f", … ({len(labels)} in all)" if len(labels) > 10 else "")


def count_labels(rows: Iterable[Row], names: Mapping[str, str], separator: str | None) -> Counter[str]:
    """Count the classes of the training rows, each under its name; checks that they look like classes.

    Args:
        rows: Rows with a `label`.
        names: The file's value -> the class's name; empty: the values are the names.
        separator: Between the labels of one text, where it may have several; None: it has one.

    Raises:
        DataError: Words and numbers are mixed, -1 stands for "no label", there is only one class, or
            nearly as many as rows.
    """
    counts: Counter[str] = Counter()
    first_seen: dict[str, str] = {}
    total, of_one_label = 0, True
    for row in rows:
        total += 1
        value = row.values["label"]
        several = [class_label(value, row.where)] if separator is None else several_labels(value, row.where, separator)
        for label in several:
            if names:
                class_index(label, list(names), row.where)
            first_seen.setdefault(label, row.where)
        of_one_label &= isinstance(value, str) and len(several) <= 1
        counts.update({names.get(label, label) for label in several})
        if isinstance(value, dict):
            for name in value:
                counts[name] += 0
    if not names:
        _check_kinds(first_seen)
        _check_number_of_classes(counts, total, first_seen)
        _warn_of_cases(first_seen)
        if separator is not None and of_one_label:
            _warn_of_separators(first_seen)
    return counts


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort class names: by value where all are whole numbers, else by alphabet."""
    labels = list(labels)
    whole = all(_WHOLE_NUMBER.fullmatch(label) for label in labels)
    return sorted(labels, key=int) if whole else sorted(labels)


def _indicator(name: str, flag: Any, where: str) -> bool:
    text = str(flag).strip().lower()
    if text not in ("0", "1", "0.0", "1.0", "true", "false"):
        raise DataError(f"column {name!r} should hold 0 or 1, got {flag!r}", where=where, mend="correct the row")
    return text in ("1", "1.0", "true")


def _has_decimals(label: str | float, where: str) -> DataError:
    problem = f"label {label!r} is a number with decimals, not a class"
    return DataError(problem, where=where, mend="set problem_type to regression to predict numbers")


def _check_kinds(first_seen: dict[str, str]) -> None:
    numbers = [label for label in first_seen if _WHOLE_NUMBER.fullmatch(label)]
    words = [label for label in first_seen if label not in numbers]
    if numbers and words and all(map(_DECIMAL.fullmatch, words)):
        raise _has_decimals(words[0], first_seen[words[0]])
    if numbers and words:
        late, early = (words[0], numbers[0]) if next(iter(first_seen)) == numbers[0] else (numbers[0], words[0])
        raise DataError(
            f"label {late!r} doesn't go with {early!r} ({first_seen[early]}): one is a number, one a word",
            where=first_seen[late],
            mend="write all labels alike, or name them in data.labels",
        )
    if "-1" in numbers and "-2" not in numbers and len(numbers) > 2 - ("0" in numbers):
        raise DataError(
            "label -1 usually means that a row has no label",
            where=first_seen["-1"],
            mend="remove such rows, or list -1 in data.labels if it is a class",
        )


def _warn_of_cases(first_seen: dict[str, str]) -> None:
    alike: dict[str, str] = {}
    for label, where in first_seen.items():
        if (other := alike.setdefault(label.casefold(), label)) != label:
            rank_zero_warn(
                f"{where}: label {label!r} differs from {other!r} ({first_seen[other]}) in case alone, and is a class"
                f" of its own; write them alike, or name all labels in data.labels, both of these as {other!r}"
            )


def _warn_of_separators(first_seen: dict[str, str]) -> None:
    for label, where in first_seen.items():
        if other := next((each for each in _SEPARATORS if each in label), None):
            rank_zero_warn(
                f"{where}: label {label!r} is one class, and no text has several;"
                f" set data.label_separator to {other!r} if that stands between two"
            )
            return


def _check_number_of_classes(counts: Counter[str], total: int, first_seen: dict[str, str]) -> None:
    if len(counts) < 2:
        raise DataError(
            f"the {total} training rows have {f'no label but {next(iter(counts))!r}' if counts else 'no label'}",
            where=next(iter(first_seen.values()), None),
            mend="check data.columns, or name all labels in data.labels",
        )
    if len(counts) > 20 and len(counts) > total / 2:
        raise DataError(
            f"{len(counts)} different labels in {total} rows don't look like classes",
            where=next(iter(first_seen.values())),
            mend="check which column is the label (data.columns), or set problem_type to regression",
        )
