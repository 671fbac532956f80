"""The pure parts of the benchmarks: nothing here is timed."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.evaluating import Question, best_answer, first_questions, windows_of
from tests.benchmarks.harness import Clock, Line, Missing, Setting, costs, rates
from tests.benchmarks.speed import LINES, as_row

# They need nothing, and take long.
WITHOUT_DATA = {"start", "load"}


def line(*ratios: float, aim: float = 2.0, better: str = "more", **also: str) -> Line:
    return Line("what", "other", list(ratios), aim, ours=3.0, theirs=1.5, unit="s", better=better, also=also)  # type: ignore[arg-type]


def test_a_line_is_judged_by_the_median_of_its_turns() -> None:
    assert line(1.0, 2.5, 9.0).ratio == 2.5
    assert line(1.0, 2.0, 9.0).holds
    assert not line(1.0, 1.9, 9.0).holds


def test_less_is_better_where_a_line_says_so() -> None:
    assert line(1.9, better="less").holds
    assert not line(2.1, better="less").holds


def test_a_row_shows_spread_aim_and_what_else_came_out() -> None:
    row = as_row(line(1.0, 2.0, 4.0, same="3 of 4"))
    assert row == "| what | other | **2.00** (1.00 to 4.00) | ≥ 2 | 3 s; same 3 of 4 | 1.5 s |"
    assert "| 2.50 (2.50 to 2.50) | ≤ 2 |" in as_row(line(2.5, better="less"))


def test_sides_are_measured_in_turns_after_a_run_that_does_not_count() -> None:
    order: list[str] = []

    def side(name: str, done: float, clock: Clock) -> None:
        order.append(name)
        clock.seconds, clock.done = 2.0, done

    (found,) = rates(
        "what",
        lambda clock: side("ours", 6.0, clock),
        {"other": (1.0, lambda clock: side("theirs", 4.0, clock))},
        unit="rows",
        turns=2,
    )
    assert order == ["ours", "theirs"] * 3
    assert (found.ratios, found.ours, found.theirs) == ([1.5, 1.5], 3.0, 2.0)
    assert (found.unit, found.better) == ("rows a CPU second", "more")


def test_costs_are_better_the_less_they_are() -> None:
    (found,) = costs("what", lambda: 3.0, {"other": (1.0, lambda: 4.0)}, unit="s", turns=1)
    assert (found.ratios, found.better, found.holds) == ([0.75], "less", True)


@pytest.mark.parametrize("name", LINES)
def test_every_line_exists_and_is_left_out_where_its_data_is_missing(name: str, tmp_path: Path) -> None:
    measure = getattr(import_module(f"tests.benchmarks.{LINES[name]}"), name)
    assert measure.__doc__
    if name not in WITHOUT_DATA:
        with pytest.raises(
            Missing, match=r"isn't there; (give --data|fit configs/)|isn't installed: pip install|there is no GPU"
        ):
            measure(Setting(tmp_path, tmp_path, turns=1))


def logits(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_the_best_answer_begins_and_ends_in_the_context_in_order() -> None:
    context, offsets = "a red fox ran", [None, (0, 1), (2, 5), (6, 9), (10, 13), None]
    starts, ends = logits(9, 0, 5, 4, 0, 0), logits(9, 0, 8, 6, 1, 8)
    assert best_answer(context, [(starts, ends, offsets)]) == "red"
    # The highest end now lies before the highest start.
    assert best_answer(context, [(logits(9, 0, 1, 5, 0, 0), logits(9, 9, 0, 2, 6, 0), offsets)]) == "fox ran"


def test_the_best_answer_is_the_best_of_all_windows() -> None:
    windows = [(logits(1, 0), logits(1, 0), [(0, 1), (2, 5)]), (logits(0, 2), logits(0, 1), [(2, 5), (6, 9)])]
    assert best_answer("a red fox", windows) == "fox"


def test_padding_and_answers_that_are_too_long_are_passed_over() -> None:
    words = ["w"] * 40
    offsets = [(2 * i, 2 * i + 1) for i in range(40)]
    starts, ends = np.full(42, -100.0), np.full(42, -100.0)
    starts[[0, 20]], ends[[39, 41]] = (9.0, 1.0), (9.0, 99.0)
    assert best_answer(" ".join(words), [(starts, ends, offsets)]) == " ".join(words[20:])
    assert best_answer("", []) == ""


def test_windows_know_their_question_and_where_its_context_is(bert: str) -> None:
    from lit_nlp.pretrained import load_tokenizer

    asked = [Question("who ran", "a fox ran", ["a fox"]), Question("who", "the cat sat", ["the cat"])]
    windows = windows_of(asked, load_tokenizer(bert), "max_length")
    assert windows.question == [0, 1]
    for window, each in enumerate(asked):
        spans = [span for span in windows.offsets[window] if span is not None]
        assert "".join(each.context[begin:end] for begin, end in spans) == each.context.replace(" ", "")
    assert {len(ids) for ids in windows.table["input_ids"]} == {384}


def test_the_first_questions_keep_their_contexts() -> None:
    paragraphs = [{"context": name, "qas": [{"id": name + str(i)} for i in range(2)]} for name in "abc"]
    found = list(first_questions([{"paragraphs": paragraphs}], 3))
    assert [[each["id"] for each in article["paragraphs"][0]["qas"]] for article in found] == [["a0", "a1"], ["b0"]]
