"""Names, class numbers, star ratings and scores all become classes from negative to positive."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_nlp.data.base import Split
from lit_nlp.data.sentiment import POLARITIES, SentimentDataModule
from lit_nlp.errors import ConfigError, DataError

Make = Callable[..., SentimentDataModule]


@pytest.fixture
def make(bert: str, tmp_path: Path) -> Make:
    """A data module whose files all hold rows with these labels."""

    def module(label: list[Any], **arguments: Any) -> SentimentDataModule:
        path = tmp_path / "r.jsonl"
        rows = [{"text": f"film {row}", "label": value} for row, value in enumerate(label)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = {"train": str(path), "val": str(path), "test": str(path), "predict": str(path)}
        return SentimentDataModule(bert, **{**sources, **arguments})

    return module


def numbers(module: SentimentDataModule, split: Split = "test") -> list[int]:
    module.setup(split)
    return list(module.tables[split]["label"])


def refused(module: SentimentDataModule) -> str:
    with pytest.raises(DataError) as caught:
        module.setup("test")
    assert caught.value.mend, "every error has a mend"
    return str(caught.value).rpartition("/")[2]


# Names


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes_run_from_negative_to_positive_whatever_the_case(make: Make, classes: Any) -> None:
    names = POLARITIES[classes]
    module = make([*names, *map(str.upper, names), *map(str.title, names), f" {names[-1]} "], classes=classes)
    assert numbers(module) == [*range(classes)] * 3 + [classes - 1]
    assert module.labels == names
    assert (names[0], names[-1]) == (("negative", "positive") if classes < 5 else ("very negative", "very positive"))


def test_two_classes_are_the_default(make: Make) -> None:
    module = make(["positive", "negative", "positive"])
    assert numbers(module) == [1, 0, 1]
    assert module.facts["labels"] == ["negative", "positive"]
    assert module.facts["label_counts"] == [1, 2]
    assert "problem_type" not in module.facts


def test_a_misspelt_name_is_shown_the_one_that_was_meant(make: Make) -> None:
    assert refused(make(["negative", "postive"])) == (
        "r.jsonl, line 2: label 'postive' is not one of negative, positive; did you mean 'positive'?"
    )


def test_neutral_rows_need_a_class_of_their_own(make: Make) -> None:
    assert refused(make(["negative", "neutral"])).startswith(
        "r.jsonl, line 2: label 'neutral' is not one of negative, positive;"
    )


def test_other_names_keep_their_order_and_case(make: Make) -> None:
    module = make(["Good", "bad", "BAD", 1, 0], labels=["Bad", "Good"])
    assert numbers(module) == [1, 0, 0, 1, 0]
    assert module.labels == ["Bad", "Good"]


def test_the_files_values_can_be_renamed_and_merged(make: Make) -> None:
    names = {"neg": "negative", "mixed": "neutral", "none": "neutral", "pos": "positive"}
    module = make(["pos", "NEG", "mixed", "None"], classes=3, labels=names)
    assert numbers(module) == [2, 0, 1, 1]
    assert module.label_counts == [1, 2, 1]


def test_where_numbers_are_renamed_no_other_number_is_a_class(make: Make) -> None:
    names = {-1: "negative", 1: "positive"}
    assert numbers(make([1, "-1", 1.0], labels=names)) == [1, 0, 1]
    assert refused(make([1, 0], labels=names)).startswith("r.jsonl, line 2: label '0' is not one of -1, 1;")


# Class numbers


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("kind", [int, str, float, lambda number: f" {number}.0"])
def test_class_numbers_count_from_zero(make: Make, classes: Any, kind: Callable[[int], Any]) -> None:
    assert numbers(make([kind(number) for number in range(classes)], classes=classes)) == [*range(classes)]


@pytest.mark.parametrize("rating", [2, "2", 5.0, -1, "-1", 3.5, "3.5", "+7"])
def test_other_numbers_are_ratings_and_need_cutoffs(make: Make, rating: Any) -> None:
    shown = {5.0: "5", "+7": "7"}.get(rating, str(rating))
    assert refused(make([0, 1, rating])) == (
        f"r.jsonl, line 3: label {shown!r} is not one of 0, 1; set data.cutoffs to make classes of ratings or scores"
    )


@pytest.mark.parametrize("label", ["²", "٣", ["negative"], {"a": 1}, True])
def test_what_is_no_name_and_no_number_is_refused(make: Make, label: Any) -> None:
    assert refused(make(["negative", label])).startswith(
        f"r.jsonl, line 2: label {str(label)!r} is not one of negative, positive;"
    )


# Ratings and scores


def by_hand(score: float, cutoffs: list[float]) -> int:
    """A class begins at its cutoff."""
    return sum(score >= cutoff for cutoff in cutoffs)


@pytest.mark.parametrize(
    ("classes", "cutoffs"),
    [
        (2, [3.0]),
        (2, [0.0]),
        (3, [2.5, 3.5]),
        (3, [3.0, 4.0]),
        (5, [1.5, 2.5, 3.5, 4.5]),
        (5, [-0.6, -0.2, 0.2, 0.6]),
    ],
)
def test_a_class_begins_at_its_cutoff(make: Make, classes: Any, cutoffs: list[float]) -> None:
    scores = [step / 10 for step in range(-60, 61)] + [1, 2, 3, 4, 5]
    scores += [cutoff + change for cutoff in cutoffs for change in (-1e-9, 0, 1e-9)]
    module = make([*scores, "3.5"], classes=classes, cutoffs=cutoffs)
    expected = [by_hand(score, cutoffs) for score in [*scores, 3.5]]
    assert numbers(module) == expected
    assert module.label_counts == [expected.count(number) for number in range(classes)]


def test_stars_become_three_classes(make: Make) -> None:
    assert numbers(make([1, 2, 3, 4, 5], classes=3, cutoffs=[2.5, 3.5])) == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("label", ["good", "nan", True, [3]])
def test_what_is_no_score_is_refused(make: Make, label: Any) -> None:
    assert refused(make([1, label], cutoffs=[2.0])) == (
        f"r.jsonl, line 2: expected a number as label, got {label!r}; mend or remove the row"
    )


def test_other_cutoffs_give_another_table(make: Make) -> None:
    first = make([1, 2, 3], cutoffs=[2.0])
    second = SentimentDataModule(first.backbone, cutoffs=[3.0], **first.sources)
    assert (numbers(first), numbers(second)) == ([0, 1, 1], [0, 0, 1])


# The neutral band


def test_two_cutoffs_for_two_classes_leave_out_what_lies_between_and_count_it(make: Make) -> None:
    scores = [1, 2, 2.4, 2.5, 3, 3.4, 3.5, 4, 5]
    module = make(scores, cutoffs=[2.5, 3.5])
    with pytest.warns(UserWarning, match="^test: 3 rows between the cutoffs 2.5 and 3.5 are neutral and left out.$"):
        module.setup("test")
    assert list(module.tables["test"]["text"]) == [f"film {row}" for row in (0, 1, 2, 6, 7, 8)]
    assert list(module.tables["test"]["label"]) == [0, 0, 0, 1, 1, 1]
    assert module.label_counts == [3, 3]
    with pytest.warns(UserWarning, match="^test: 3 rows between the cutoffs"):  # and so where they come from the cache
        make(scores, cutoffs=[2.5, 3.5]).setup("test")


def test_rows_to_predict_are_all_kept(make: Make) -> None:
    module = make([1, 3, 5], cutoffs=[2.5, 3.5])
    module.setup("predict")
    assert len(module.tables["predict"]) == 3


def test_without_rows_in_the_band_nothing_is_said(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert numbers(make([1, 5], cutoffs=[2.5, 3.5])) == [0, 1]


def test_a_band_that_swallows_all_rows_is_refused(make: Make) -> None:
    assert refused(make([0.1, 0.9], cutoffs=[0.0, 1.0])) == (
        "data.test: all 2 rows lie between the cutoffs 0.0 and 1.0; set data.cutoffs to match the scores"
    )


@pytest.mark.parametrize(
    ("label", "cutoffs", "message"),
    [
        ([5, 4, 5], [0.5], "data.train: the 3 training rows have no label but 'positive'; set data.cutoffs to match"),
        (["negative"] * 3, None, "data.train: the 3 training rows have no label but 'negative'; check data.columns"),
    ],
)
def test_training_rows_of_one_class_are_refused(
    make: Make, label: list[Any], cutoffs: list[float] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _ = make(label, cutoffs=cutoffs).facts


# Arguments


@pytest.mark.parametrize(
    ("classes", "cutoffs"),
    [
        (2, []),
        (2, [1.0, 2.0, 3.0]),
        (2, [2.0, 1.0]),
        (2, [1.0, 1.0]),
        (2, [float("nan")]),
        (2, [float("inf")]),
        (3, [1.0]),
        (3, [1.0, 2.0, 3.0]),
        (3, [3.0, 1.0]),
        (5, [1.0, 2.0]),
    ],
)
def test_cutoffs_that_do_not_rise_or_fit_are_refused(bert: str, classes: Any, cutoffs: list[float]) -> None:
    with pytest.raises(ConfigError) as caught:
        SentimentDataModule(bert, classes=classes, cutoffs=cutoffs)
    assert str(caught.value) == (
        f"data.cutoffs: {classes} classes take {classes - 1} rising cutoffs (or, for two classes, two), got {cutoffs}"
    )
