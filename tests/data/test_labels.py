"""Every way in which labels are known to go wrong, and what is said about it."""

from collections import Counter
from typing import Any

import pytest

from lit_nlp.data.labels import class_index, class_label, count_labels, in_order, number, several_labels
from lit_nlp.data.sources import Row
from lit_nlp.errors import DataError

HERE = "r.csv, line 2"


def rows(*labels: Any) -> list[Row]:
    return [Row({"text": "a", "label": label}, f"r.csv, line {line}") for line, label in enumerate(labels, 2)]


def counted(*labels: Any, names: dict[str, str] | None = None, separator: str | None = None) -> dict[str, int]:
    return dict(count_labels(rows(*labels), names or {}, separator))


def refused(*labels: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        counted(*labels, **options)
    assert caught.value.mend, "every error has a mend"
    return str(caught.value)


# One label


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        (" 1 ", "1"),
        ("1.0", "1"),
        ("1.", "1"),
        ("+1", "1"),
        (-1, "-1"),
        ("-1.0", "-1"),
        (-0.0, "0"),
        ("-0", "0"),
        (True, "true"),
        (False, "false"),
        ("True", "True"),
        (" very good ", "very good"),
        ("007", "007"),
        ("1e5", "1e5"),
        ("1.5", "1.5"),
        ("NA", "NA"),
        ("9007199254740993", "9007199254740993"),
        (9007199254740993, "9007199254740993"),
        ("9" * 400, "9" * 400),
    ],
)
def test_a_label_is_the_same_class_however_its_type_is_written(value: Any, label: str) -> None:
    assert class_label(value, HERE) == label


def test_a_number_with_decimals_is_no_class() -> None:
    with pytest.raises(DataError) as caught:
        class_label(3.5, HERE)
    assert str(caught.value) == (
        "r.csv, line 2: label 3.5 is a number with decimals, not a class;"
        " set problem_type to regression to predict numbers"
    )


@pytest.mark.parametrize("value", [["a", "b"], ["a"], [], {"toxic": 1}])
def test_several_labels_are_no_single_one(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        class_label(value, HERE)
    assert str(caught.value) == (
        f"r.csv, line 2: expected one label, got {value!r}; set problem_type to multi_label if a text may have several"
    )


# Several labels


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", "b"], ["a", "b"]),
        ([], []),
        ([1, 2.0, "3"], ["1", "2", "3"]),
        ("a|b", ["a", "b"]),
        (" a | b ", ["a", "b"]),
        ("a||b|", ["a", "b"]),
        ("a", ["a"]),
        ("|", []),
        (3, ["3"]),
        ({"toxic": "1", "spam": "0", "rude": 1.0}, ["toxic", "rude"]),
        ({"toxic": False, "spam": True}, ["spam"]),
        ({"toxic": "TRUE", "spam": " 0 ", "rude": "0.0"}, ["toxic"]),
        ({"toxic": 0, "spam": 0}, []),
    ],
)
def test_several_labels_are_a_list_a_string_or_a_column_each(value: Any, labels: list[str]) -> None:
    assert several_labels(value, HERE, "|") == labels


def test_the_separator_is_free() -> None:
    assert several_labels("a|b; c", HERE, ";") == ["a|b", "c"]


@pytest.mark.parametrize("flag", ["2", "yes", 0.5, -1, "toxic", ["1"]])
def test_a_column_that_is_no_indicator_is_named(flag: Any) -> None:
    with pytest.raises(DataError) as caught:
        several_labels({"spam": 0, "toxic": flag}, HERE, "|")
    assert str(caught.value) == (f"r.csv, line 2: column 'toxic' should hold 0 or 1, got {flag!r}; correct the row")


# Scores


@pytest.mark.parametrize(("value", "score"), [(1, 1.0), (-2.5, -2.5), ("3.25", 3.25), (" 1e-3 ", 0.001)])
def test_a_score_is_any_finite_number(value: Any, score: float) -> None:
    assert number(value, HERE) == score


@pytest.mark.parametrize(
    "value", ["good", "", "1,5", "nan", "NaN", float("nan"), "inf", float("-inf"), True, None, [1.0], {"a": 1}, 10**400]
)
def test_what_is_no_finite_number_is_no_score(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        number(value, HERE)
    assert str(caught.value) == f"r.csv, line 2: expected a number as label, got {value!r}; mend or remove the row"


# The place of a label


def test_a_label_is_numbered_by_its_place() -> None:
    assert [class_index(label, ["b", "a"], HERE) for label in ("a", "b")] == [1, 0]


def test_an_unknown_label_is_shown_the_one_that_was_meant() -> None:
    with pytest.raises(DataError) as caught:
        class_index("postive", ["negative", "positive"], "reviews.csv, line 17")
    assert str(caught.value) == (
        "reviews.csv, line 17: label 'postive' is not one of negative, positive; did you mean 'positive'?"
    )


def test_of_many_labels_ten_are_shown() -> None:
    labels = [f"class {number}" for number in range(77)]
    with pytest.raises(DataError) as caught:
        class_index("other", labels, HERE)
    assert str(caught.value) == (
        f"r.csv, line 2: label 'other' is not one of {', '.join(labels[:10])}, … (77 in all);"
        " correct the row, or name all labels in data.labels"
    )


# Order


def test_numbers_are_ordered_by_value_and_words_by_alphabet() -> None:
    assert in_order(["10", "9", "-1", "2"]) == ["-1", "2", "9", "10"]
    assert in_order(["10", "9", "b", "a"]) == ["10", "9", "a", "b"]
    assert in_order(Counter({"b": 1, "a": 2})) == ["a", "b"]


# All training labels


def test_classes_are_counted_whatever_their_type() -> None:
    assert counted(1, "1", 1.0, " 1", 0, "0.0") == {"1": 4, "0": 2}
    assert counted(True, False, "true", "false") == {"true": 2, "false": 2}


def test_the_labels_of_a_text_are_counted_once_each() -> None:
    assert counted(["a", "b"], ["a"], [], ["a", "a", " a"], separator="|") == {"a": 3, "b": 1}
    assert counted("a|b", "b|b", separator="|") == {"a": 1, "b": 2}


def test_an_indicator_that_is_never_one_is_a_class_too() -> None:
    assert counted({"a": 1, "b": 0}, {"a": 0, "b": 0}, separator="|") == {"a": 1, "b": 0}


def test_named_values_are_counted_under_their_names() -> None:
    names = {"0": "negative", "1": "positive", "2": "positive"}
    assert counted(0, "1", 2.0, names=names) == {"negative": 1, "positive": 2}
    assert counted([1, 2], [0], names=names, separator="|") == {"negative": 1, "positive": 1}


def test_a_value_without_a_name_is_refused() -> None:
    assert refused(0, 1, 3, names={"0": "negative", "1": "positive"}) == (
        "r.csv, line 4: label '3' is not one of 0, 1; correct the row, or name all labels in data.labels"
    )


@pytest.mark.parametrize(
    ("labels", "line", "late", "early_line", "early"),
    [
        ((0, 1, "positive"), 4, "positive", 2, "0"),
        (("a", "b", "a", 2), 5, "2", 2, "a"),
        (("a", True, 1), 4, "1", 2, "a"),
        (("1", "0", "1.5", "a"), 4, "1.5", 2, "1"),
    ],
)
def test_words_and_numbers_do_not_mix(
    labels: tuple[Any, ...], line: int, late: str, early_line: int, early: str
) -> None:
    assert refused(*labels) == (
        f"r.csv, line {line}: label {late!r} doesn't go with {early!r} (r.csv, line {early_line}):"
        " one is a number, one a word; write all labels alike, or name them in data.labels"
    )


def test_numbers_of_which_some_have_decimals_are_no_classes() -> None:
    assert refused("1", "0", "1.5", "-.25") == (
        "r.csv, line 4: label '1.5' is a number with decimals, not a class;"
        " set problem_type to regression to predict numbers"
    )


@pytest.mark.parametrize("minus", [-1, "-1", -1.0])
def test_minus_one_beside_zero_is_taken_for_a_missing_label(minus: Any) -> None:
    assert refused(0, 1, minus) == (
        "r.csv, line 4: label -1 usually means that a row has no label;"
        " remove such rows, or list -1 in data.labels if it is a class"
    )


def test_minus_one_is_a_class_beside_one_or_where_it_is_named() -> None:
    assert counted(-1, 1) == {"-1": 1, "1": 1}
    assert counted(-1, 0, 1, names={label: label for label in ("-1", "0", "1")}) == {"-1": 1, "0": 1, "1": 1}


@pytest.mark.parametrize(
    ("labels", "separator", "found"),
    [
        (("a", "a"), None, "no label but 'a'"),
        ((["a"], []), "|", "no label but 'a'"),
        (({"a": 1}, {"a": 0}), "|", "no label but 'a'"),
        (([], []), "|", "no label"),
    ],
)
def test_one_class_alone_is_nothing_to_learn(labels: tuple[Any, ...], separator: str | None, found: str) -> None:
    where = "" if found == "no label" else "r.csv, line 2: "
    assert refused(*labels, separator=separator) == (
        f"{where}the 2 training rows have {found}; check data.columns, or name all labels in data.labels"
    )


def test_a_column_of_texts_is_not_taken_for_labels() -> None:
    assert refused(*(f"title {number}" for number in range(30))) == (
        "r.csv, line 2: 30 different labels in 30 rows don't look like classes;"
        " check which column is the label (data.columns), or set problem_type to regression"
    )
    assert len(counted(*(f"title {number}" for number in range(20)))) == 20, "few rows may have as many classes"
    assert len(counted(*(f"intent {number % 77}" for number in range(200)))) == 77


def test_names_that_are_given_are_not_judged() -> None:
    assert counted("a", "a", names={"a": "a", "b": "b"}) == {"a": 2}
    assert counted("a", "1", names={"a": "a", "1": "1"}) == {"a": 1, "1": 1}


# What may be meant otherwise


def test_labels_that_differ_in_case_alone_are_told() -> None:
    told = (
        r"^r.csv, line 4: label 'sport' differs from 'Sport' \(r.csv, line 2\) in case alone, and is a class of its"
        " own; write them alike, or name all labels in data.labels, both of these as 'Sport'$"
    )
    given = ("Sport", "tech", "sport", "Sport")
    with pytest.warns(UserWarning, match=told):
        assert counted(*given) == {"Sport": 2, "tech": 1, "sport": 1}
    assert counted(*given, names={"Sport": "Sport", "sport": "Sport", "tech": "tech"}) == {"Sport": 3, "tech": 1}


@pytest.mark.parametrize("separator", [",", ";"])
def test_labels_that_another_separator_stands_between_are_told(separator: str) -> None:
    label = f"sport{separator}news"
    told = f"^r.csv, line 3: label '{label}' is one class, and no text has several; set data.label_separator to "
    with pytest.warns(UserWarning, match=f"{told}'{separator}' if that stands between two$"):
        counted("tech", label, separator="|")


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (("a, b", "c"), None),
        (("a, b|c", "c"), "|"),
        (("a", "b"), "|"),
        ((["a, b"], ["c"]), "|"),
        (({"a, b": 1, "c": 0}, {"a, b": 0, "c": 1}), "|"),
    ],
)
def test_of_other_labels_nothing_is_told(
    labels: tuple[Any, ...], separator: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    counted(*labels, separator=separator)
    assert not list(recwarn)
