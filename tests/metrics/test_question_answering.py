"""Exact match and F1, against the official scripts' rules written out anew, and torchmetrics where it is right."""

import collections
import random
import re
import string
from typing import Any

import pytest
import torch
from torchmetrics.text import SQuAD

from lit_nlp.metrics.question_answering import SquadMetric, exact_match, f1, normalise

WORDS = [
    "the",
    "a",
    "cat",
    "Cat.",
    "dogs",
    "in 1999",
    "Žižek",
    "—",
    "An",
    "«née»",
    "U.S.",
    "the cat",
    "",
    "the the",
    "猫",
]


# The rules of evaluate-v1.1.py and evaluate-v2.0.py, as their documentation states them


def official_normal(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_exact(gold: str, prediction: str) -> int:
    return int(official_normal(gold) == official_normal(prediction))


def official_f1_v1(prediction: str, gold: str) -> float:
    predicted, true = official_normal(prediction).split(), official_normal(gold).split()
    common = collections.Counter(predicted) & collections.Counter(true)
    same = sum(common.values())
    if same == 0:
        return 0
    return 2 * (same / len(predicted)) * (same / len(true)) / (same / len(predicted) + same / len(true))


def official_f1_v2(gold: str, prediction: str) -> float:
    predicted = official_normal(prediction).split() if prediction else []
    true = official_normal(gold).split() if gold else []
    if not predicted or not true:
        return int(predicted == true)
    return official_f1_v1(prediction, gold)


def official_v1(data: dict[str, list[str]], predictions: dict[str, str]) -> dict[str, float]:
    exact = sum(max(official_exact(gold, predictions[name]) for gold in golds) for name, golds in data.items())
    f1 = sum(max(official_f1_v1(predictions[name], gold) for gold in golds) for name, golds in data.items())
    return {"exact_match": 100 * exact / len(data), "f1": 100 * f1 / len(data)}


def official_v2(
    data: dict[str, list[str]], predictions: dict[str, str], null_odds: dict[str, float]
) -> dict[str, float]:
    has_answer = {name: bool(golds) for name, golds in data.items()}
    raw: dict[str, dict[str, float]] = {"exact": {}, "f1": {}}
    for name, golds in data.items():
        counted = [gold for gold in golds if official_normal(gold)] or [""]
        raw["exact"][name] = max(official_exact(gold, predictions[name]) for gold in counted)
        raw["f1"][name] = max(official_f1_v2(gold, predictions[name]) for gold in counted)
    told: dict[str, float] = {}
    for kind, scores in raw.items():
        told[kind] = 100 * sum(scores.values()) / len(scores)
        for group, wanted in (("HasAns", True), ("NoAns", False)):
            some = [scores[n] for n in data if has_answer[n] == wanted]
            if some:
                told |= {f"{group}_{kind}": 100 * sum(some) / len(some), f"{group}_total": len(some)}
        current = best = sum(not has for has in has_answer.values())
        best_threshold = 0.0
        for name in sorted(null_odds, key=lambda n: null_odds[n]):
            current += scores[name] if has_answer[name] else (-1 if predictions[name] else 0)
            if current > best:
                best, best_threshold = current, null_odds[name]
        told |= {f"best_{kind}": 100 * best / len(scores), f"best_{kind}_thresh": best_threshold}
    return {"exact_match": told.pop("exact"), **told}


def drawn(seed: int, unanswerable: bool) -> tuple[dict[str, list[str]], dict[str, str], dict[str, float]]:
    """Questions whose answers and predictions share words, are nothing but articles, or are empty."""
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randrange(1, 4)))

    names = [str(name) for name in range(generator.randrange(1, 40))]
    data = {name: [text() for _ in range(generator.randrange(0 if unanswerable else 1, 4))] for name in names}
    predictions = {name: generator.choice([text(), *data[name], ""]) for name in names}
    return data, predictions, {name: generator.gauss(0, 3) for name in names}


def measured(
    data: dict[str, list[str]], predictions: dict[str, str], null_odds: dict[str, float], **arguments: Any
) -> dict[str, float]:
    metric = SquadMetric(**arguments)
    for some in (list(data)[:3], list(data)[3:]):
        if some:
            metric.update([predictions[n] for n in some], [null_odds[n] for n in some], [data[n] for n in some])
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(20))
def test_figures_are_those_of_the_official_script_1(seed: int) -> None:
    data, predictions, null_odds = drawn(seed, unanswerable=False)
    assert measured(data, predictions, null_odds) == pytest.approx(official_v1(data, predictions), rel=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_figures_are_those_of_the_official_script_2(seed: int) -> None:
    data, predictions, null_odds = drawn(seed, unanswerable=True)
    data["none"], predictions["none"], null_odds["none"] = [], "cat", 0.5
    figures = measured(data, predictions, null_odds, no_answers=True)
    assert figures == pytest.approx(official_v2(data, predictions, null_odds), rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_figures_are_torchmetrics_where_every_answer_has_words_and_no_id_comes_twice(seed: int) -> None:
    data, predictions, null_odds = drawn(seed, unanswerable=False)
    data = {name: [f"{gold} dogs" for gold in golds] for name, golds in data.items()}
    predictions = {name: f"{text} cats" for name, text in predictions.items()}
    reference = SQuAD()
    reference.update(
        [{"id": name, "prediction_text": text} for name, text in predictions.items()],
        [{"id": n, "answers": {"text": golds, "answer_start": [0] * len(golds)}} for n, golds in data.items()],
    )
    expected = {name: float(value) for name, value in reference.compute().items()}
    assert measured(data, predictions, null_odds) == pytest.approx(expected, rel=1e-6)


def test_the_two_rules_part_where_an_answer_is_all_articles() -> None:
    assert (f1("the", ["a"]), f1("the", ["a"], no_answers=True)) == (0.0, 1.0)
    assert exact_match("the", ["a"]) == exact_match("the", ["a"], no_answers=True) == 1.0
    assert (exact_match("", ["the", "cat"]), exact_match("", ["the", "cat"], no_answers=True)) == (1.0, 0.0)


def test_a_question_without_an_answer_is_right_where_nothing_is_predicted_by_either_rule() -> None:
    for no_answers in (False, True):
        assert exact_match("", [], no_answers=no_answers) == f1("", [], no_answers=no_answers) == 1.0
        assert exact_match("cat", [], no_answers=no_answers) == f1("cat", [], no_answers=no_answers) == 0.0


def test_only_ascii_punctuation_and_whole_articles_are_left_out() -> None:
    assert normalise("The  «Theatre», a U.S.\tTHE") == "«theatre» us"


def test_a_set_without_questions_of_one_kind_has_no_figures_of_it() -> None:
    metric = SquadMetric(no_answers=True)
    metric.update(["x"], [1.0], [[]])
    figures = metric.compute()
    assert {"NoAns_f1", "best_f1"} <= figures.keys()
    assert "HasAns_f1" not in figures
    metric.reset()
    metric.update(["x"], [-1.0], [["x"]])
    assert set(metric.compute()) == {"exact_match", "f1"}


def test_the_threshold_that_is_called_best_gives_the_best_figure() -> None:
    data: dict[str, list[str]] = {"a": ["cat"], "b": [], "c": ["dogs"], "d": []}
    predictions, null_odds = dict.fromkeys(data, "cat"), {"a": -3.0, "b": 0.5, "c": 0.25, "d": 4.0}
    figures = measured(data, predictions, null_odds, no_answers=True)
    for kind, name in ("exact", "exact_match"), ("f1", "f1"):
        # A figure is kept in float32.
        threshold = figures[f"best_{kind}_thresh"] + 1e-6
        kept = {each: "" if null_odds[each] > threshold else text for each, text in predictions.items()}
        again = measured(data, kept, null_odds, no_answers=True)
        assert again[name] == pytest.approx(figures[f"best_{kind}"], rel=1e-6)
        assert figures[name] < figures[f"best_{kind}"]


def test_where_no_answers_at_all_are_best_the_threshold_is_0_as_in_the_official_script() -> None:
    figures = measured({"1": [], "2": []}, {"1": "x", "2": "x"}, {"1": -4.0, "2": 5.0}, no_answers=True)
    assert (figures["best_f1"], figures["best_f1_thresh"], figures["f1"]) == (100.0, 0.0, 0.0)


def test_two_processes_tell_what_one_tells() -> None:
    data, predictions, null_odds = drawn(5, unanswerable=True)
    one, other = SquadMetric(no_answers=True), SquadMetric(no_answers=True)
    for number, name in enumerate(data):
        [one, other, other][number % 3].update([predictions[name]], [null_odds[name]], [data[name]])
    theirs = torch.cat(other.scored)
    one.distributed_available_fn = lambda: True
    one.dist_sync_fn = lambda mine, group: [mine, theirs]
    expected = measured(data, predictions, null_odds, no_answers=True)
    assert {name: float(value) for name, value in one.compute().items()} == pytest.approx(expected, rel=1e-6)


def test_the_rules_of_version_2_hold_where_only_the_last_question_has_no_answer() -> None:
    metric = SquadMetric()
    metric.update(["a"], [0.0], [["the", "x"]])
    assert metric.compute()["exact_match"] == 100
    metric.update([""], [1.0], [[]])
    found = metric.compute()
    assert (found["HasAns_exact"], found["NoAns_exact"], found["best_exact"]) == (0, 100, 50)
