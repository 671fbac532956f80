"""The samples are what they are said to be: whole, balanced, and nothing of one split stands in another."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import lit_nlp

SAMPLES = Path(lit_nlp.__file__).parent / "samples"
CLASSES = ["sentiment", "text_classification"]


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def runs(path: Path, length: int = 6) -> set[tuple[str, ...]]:
    """Return all runs of so many words of a file."""
    words = [re.findall(r"\w+", line.lower()) for line in path.read_text("utf-8").splitlines()]
    return {tuple(line[i : i + length]) for line in words for i in range(len(line) - length + 1)}


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_class_has_as_many_rows(task: str, split: str) -> None:
    found = rows(SAMPLES / task / f"{split}.jsonl")
    assert len(found) >= 60
    assert len({row["text"] for row in found}) == len(found)
    assert len(set(Counter(row["label"] for row in found).values())) == 1


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("sentiment", ["train.jsonl", "val.jsonl", "test.jsonl"]),
        ("text_classification", ["train.jsonl", "val.jsonl", "test.jsonl"]),
        ("translation", ["train.jsonl", "val.jsonl", "test.jsonl"]),
        ("question_answering", ["pairs_train.jsonl", "pairs_val.jsonl", "pairs_test.jsonl"]),
        ("language_modeling", ["train.txt", "val.txt", "test.txt"]),
    ],
)
def test_no_run_of_eight_words_stands_in_two_splits(task: str, names: list[str]) -> None:
    by_split = [runs(SAMPLES / task / name, 8) for name in names]
    assert all(by_split)
    for one, other in combinations(by_split, 2):
        assert one & other == set()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_answer_stands_where_it_is_said_to(split: str) -> None:
    data = json.loads((SAMPLES / "question_answering" / f"{split}.json").read_text("utf-8"))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    questions = [(paragraph["context"], asked) for paragraph in paragraphs for asked in paragraph["qas"]]
    assert len({asked["id"] for _, asked in questions}) == len(questions) >= 50
    assert 0.1 < sum(asked["is_impossible"] for _, asked in questions) / len(questions) < 0.4
    for context, asked in questions:
        assert asked["is_impossible"] != bool(asked["answers"])
        for answer in asked["answers"]:
            assert context[answer["answer_start"] :].startswith(answer["text"])
