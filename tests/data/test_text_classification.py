"""Texts or pairs with one label, several, or a score become batches of the right shapes and values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from lit_nlp.data.text_classification import TextClassificationDataModule
from lit_nlp.errors import ConfigError, DataError

LONG = "the acting is good but the story is bad and far too long to be any fun"
TEXTS = ["a good film", LONG, "dull", "I hated the plot, the music and the awful ending"]

Make = Callable[..., TextClassificationDataModule]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes texts and other columns as JSONL; returns the path."""

    def write(name: str, text: list[str] = TEXTS, **columns: list[Any]) -> str:
        rows = [dict(zip(["text", *columns], row, strict=True)) for row in zip(text, *columns.values(), strict=True)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def make(bert: str, write: Callable[..., str]) -> Make:
    """A data module whose files all hold the four texts with these labels."""

    def module(label: list[Any], more: dict[str, list[Any]] | None = None, **arguments: Any) -> Any:
        source = write("all", label=label, **(more or {}))
        sources = {"train": source, "val": source, "test": source, "predict": source}
        return TextClassificationDataModule(bert, **{**sources, **arguments})

    return module


def only_batch(module: TextClassificationDataModule, split: str = "test") -> dict[str, Tensor]:
    """The one batch of a split, its sequences in the order of the file."""
    module.setup(split)
    (batch,) = getattr(module, f"{split}_dataloader")()
    assert batch["row"].unique_consecutive().numel() == len(batch["row"].unique())
    rows = batch["row"].unique_consecutive().argsort()
    order = batch["row"].argsort(stable=True)
    return {
        name: tensor[rows if name == "labels" else order]
        for name, tensor in batch.items()
        if isinstance(tensor, torch.Tensor)
    }


def trimmed(batch: dict[str, Tensor], name: str = "input_ids") -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(batch[name], batch["attention_mask"].bool(), strict=True)]


# One label


def test_a_batch_of_single_texts_holds_their_tokens_and_classes(make: Make) -> None:
    module = make(["pos", "neg", "neg", "pos"])
    batch = only_batch(module)
    reference = module.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "row", "labels"}
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], reference[name])
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert batch["labels"].tolist() == [1, 0, 0, 1]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_batch_is_padded_to_its_own_longest_text(make: Make) -> None:
    module = make(["a", "b", "a", "b"], batch_size=1)
    module.setup("test")
    for batch in module.test_dataloader():
        assert batch["input_ids"].shape == (1, len(module.tokenizer(TEXTS[batch["row"]])["input_ids"]))
        assert batch["attention_mask"].all()


def test_a_backbone_without_token_types_gets_none(llama: str, make: Make) -> None:
    module = make(["a", "b", "a", "b"])
    other = TextClassificationDataModule(llama, **module.sources)
    batch = only_batch(other)
    assert set(batch) == {"input_ids", "attention_mask", "row", "labels"}
    assert trimmed(batch) == [other.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize(
    ("label", "labels", "numbers"),
    [
        (["b", "a", "c", "a"], ["a", "b", "c"], [1, 0, 2, 0]),
        (["10", "9", "2", "2.0"], ["2", "9", "10"], [2, 1, 0, 0]),
        ([1, "1", 1.0, 0], ["0", "1"], [1, 1, 1, 0]),
        ([True, False, True, "true"], ["false", "true"], [1, 0, 1, 1]),
    ],
)
def test_classes_are_numbered_by_value_or_alphabet(
    make: Make, label: list[Any], labels: list[str], numbers: list[int]
) -> None:
    module = make(label)
    assert module.labels == labels
    assert module.label_counts == [numbers.count(number) for number in range(len(labels))]
    assert only_batch(module)["labels"].tolist() == numbers


def test_the_training_data_numbers_the_classes_of_every_split(make: Make, write: Callable[..., str]) -> None:
    module = make(["a", "b", "c", "c"], test=write("test", label=["c", "b", "b", "c"]))
    assert only_batch(module)["labels"].tolist() == [2, 1, 1, 2]


def test_a_class_that_was_not_trained_is_refused_with_its_line(make: Make, write: Callable[..., str]) -> None:
    source = write("test", label=["positive", "negative", "postive", "positive"])
    with pytest.raises(DataError) as caught:
        make(["positive", "negative"] * 2, test=source).setup("test")
    assert str(caught.value) == (
        f"{source}, line 3: label 'postive' is not one of negative, positive; did you mean 'positive'?"
    )


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["a", "b", 1, "a"], r"line 3: label '1' doesn't go with 'a' \(.*line 1\): one is a number, one a word"),
        ([0, 1, -1, 1], "line 3: label -1 usually means that a row has no label"),
        ([1, 2, -1, 1], "line 3: label -1 usually means that a row has no label"),
        (["a"] * 4, "line 1: the 4 training rows have no label but 'a'"),
        ([["a"], ["b"], ["a"], ["b"]], r"line 1: expected one label, got \['a'\]; set problem_type to multi_label"),
        ([{"a": 1}] * 4, r"line 1: expected one label, got {'a': 1}; set problem_type to multi_label"),
        ([1, 2, 3.5, 1], "line 3: label 3.5 is a number with decimals, not a class; set problem_type to regression"),
        ([1, 2, None, 1], "line 3: no value in column 'label'"),
    ],
)
@pytest.mark.parametrize("limit", [None, 2])
def test_labels_that_are_no_classes_are_refused_with_their_line(
    make: Make, label: list[Any], message: str, limit: int | None
) -> None:
    with pytest.raises(DataError, match=f"all.jsonl, {message}"):
        make(label, limit=limit).setup("fit")


# Labels that are given


def test_labels_in_a_list_are_numbered_in_its_order(make: Make) -> None:
    module = make(["b", "a", "b", "b"], labels=["b", "never", "a"])
    assert (module.labels, module.label_counts) == (["b", "never", "a"], [3, 0, 1])
    assert only_batch(module)["labels"].tolist() == [0, 2, 0, 0]


def test_given_labels_need_no_training_data(make: Make) -> None:
    assert only_batch(make(["b", "a", "b", "b"], labels=["b", "a"], train=None))["labels"].tolist() == [0, 1, 0, 0]


def test_labels_in_a_dict_rename_the_values_of_the_file_and_can_merge_them(make: Make) -> None:
    names = {"0": "negative", "2": "neutral", "3": "neutral", "4": "positive"}
    module = make([4, "0", 2.0, 3], labels=names)
    assert (module.labels, module.label_counts) == (["negative", "neutral", "positive"], [1, 2, 1])
    assert only_batch(module)["labels"].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("keys", "values"), [((0, 1), (0, "1")), ((0.0, 1.0), (0, "1")), ((False, True), (False, "true"))]
)
def test_the_numbers_and_bools_that_yaml_makes_of_keys_are_the_files_values_too(
    make: Make, keys: tuple[Any, Any], values: tuple[Any, Any]
) -> None:
    module = make([*values, *values], labels={keys[0]: "no", keys[1]: "yes"})
    assert only_batch(module)["labels"].tolist() == [0, 1, 0, 1]


def test_a_value_that_has_no_name_is_refused(make: Make) -> None:
    with pytest.raises(DataError, match=r"all.jsonl, line 3: label 'x' is not one of a, b"):
        make(["a", "b", "x", "a"], labels={"a": "A", "b": "B"}).setup("test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"], r"data.labels: at least two classes are needed, got \['a'\]"),
        ({"a": "x", "b": "x"}, "data.labels: at least two classes are needed, got {'a': 'x', 'b': 'x'}"),
        (["a", "b", "a"], r"data.labels: a label is named twice in \['a', 'b', 'a'\]"),
        (["1", "2", "1.0"], r"data.labels: a label is named twice in \['1', '2', '1.0'\]"),
    ],
)
def test_names_that_tell_nothing_apart_are_refused(bert: str, labels: list[str] | dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        TextClassificationDataModule(bert, labels=labels)


def test_a_kind_of_problem_or_a_separator_that_is_none_is_refused(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    with pytest.raises(ConfigError, match=r"^data.problem_type: 'multilabel' is not one of single_label, multi_label"):
        TextClassificationDataModule(bert, problem_type="multilabel")
    with pytest.raises(ConfigError, match=r"^data: label_separator is empty"):
        TextClassificationDataModule(bert, label_separator="")


# Pairs


def test_a_batch_of_pairs_holds_both_texts(make: Make) -> None:
    pairs = ["short", "a story", LONG, "fun"]
    module = make(["a", "b", "a", "b"], {"text_pair": pairs})
    reference = module.tokenizer(TEXTS, pairs, padding=True, return_tensors="pt")
    batch = only_batch(module)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(batch[name], reference[name])
    assert batch["token_type_ids"].any()


# Several labels


@pytest.mark.parametrize(
    ("label", "arguments"),
    [
        ([["rude", "spam"], [], ["spam"], ["toxic"]], {}),
        (["rude|spam", "|", "spam", " toxic "], {}),
        (["spam, rude", ",", "spam,spam", "toxic"], {"label_separator": ","}),
    ],
)
def test_several_labels_become_zeros_and_ones(make: Make, label: list[Any], arguments: dict[str, Any]) -> None:
    module = make(label, problem_type="multi_label", **arguments)
    batch = only_batch(module)
    assert module.labels == ["rude", "spam", "toxic"]
    assert module.label_counts == [1, 2, 1]
    assert batch["labels"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert batch["labels"].dtype == torch.float32


def test_a_column_for_each_label_becomes_zeros_and_ones(make: Make) -> None:
    flags = {"toxic": [1, 0, "1", False], "spam": [True, "0", 0.0, 0], "never": [0, 0, 0, 0]}
    arguments = {"columns": {"label": list(flags)}, "problem_type": "multi_label"}
    module = make(["unread"] * 4, flags, **arguments)
    assert (module.labels, module.label_counts) == (["never", "spam", "toxic"], [0, 1, 2])
    assert only_batch(module)["labels"].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_column_that_holds_something_else_is_refused_with_its_line(make: Make) -> None:
    flags = {"toxic": [1, 0, 2, 0], "spam": [0, 1, 0, 0]}
    with pytest.raises(
        DataError, match=r"all.jsonl, line 3: column 'toxic' should hold 0 or 1, got 2; correct the row"
    ):
        make(["unread"] * 4, flags, columns={"label": list(flags)}, problem_type="multi_label").setup("test")


def test_several_labels_can_be_renamed_and_merged(make: Make) -> None:
    names = {"a": "good", "b": "good", "c": "bad"}
    module = make(["a|b", "c", "b", "a|c"], problem_type="multi_label", labels=names)
    assert (module.labels, module.label_counts) == (["good", "bad"], [3, 2])
    assert only_batch(module)["labels"].tolist() == [[1, 0], [0, 1], [1, 0], [1, 1]]


# Scores


def test_scores_become_floats(make: Make) -> None:
    module = make([1, "2.5", -0.125, 1e-3], problem_type="regression")
    batch = only_batch(module)
    assert (module.labels, module.label_counts) == (["score"], [])
    assert torch.equal(batch["labels"], torch.tensor([[1.0], [2.5], [-0.125], [1e-3]]))


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ([1, 2, "good", 3], "expected a number as label, got 'good'"),
        ([1, 2, "nan", 3], "expected a number as label, got 'nan'"),
        ([1, 2, float("inf"), 3], "expected a number as label, got inf"),
        ([1, 2, float("nan"), 3], "no value in column 'label'"),
        ([1, 2, True, 3], "expected a number as label, got True"),
    ],
)
def test_what_is_no_score_is_refused_with_its_line(make: Make, label: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"all.jsonl, line 3: {problem}"):
        make(label, problem_type="regression").setup("test")


# Windows


@pytest.mark.parametrize("stride", [0, 3])
def test_windows_cover_every_token_and_tell_their_row(make: Make, stride: int) -> None:
    module = make(["a", "b", "b", "a"], max_length=8, doc_stride=stride)
    batch = only_batch(module)
    windows = dict(zip(range(4), [[] for _ in range(4)], strict=True))
    for row, tokens in zip(batch["row"].tolist(), trimmed(batch), strict=True):
        windows[row].append(tokens)
    for row, text in enumerate(TEXTS):
        begin, *tokens, end = module.tokenizer(text)["input_ids"]
        rebuilt = [windows[row][0][1:-1], *(window[1 + stride : -1] for window in windows[row][1:])]
        assert [token for part in rebuilt for token in part] == tokens
        assert all((window[0], window[-1]) == (begin, end) for window in windows[row])
        assert all(len(window) == 8 for window in windows[row][:-1])
        for window, following in zip(windows[row], windows[row][1:], strict=False):
            assert window[1:-1][len(window) - 2 - stride :] == following[1 : 1 + stride]
    assert len(windows[1]) > 2
    assert batch["labels"].tolist() == [0, 1, 1, 0], "one for each row, not for each window"
    assert batch["input_ids"].shape == (sum(map(len, windows.values())), 8)


@pytest.mark.parametrize(
    ("labels", "arguments", "unseen"),
    [
        (["a", "c", "c", "a"], {}, "b, d"),
        (["a|c", "", "c", "a"], {"problem_type": "multi_label"}, "b, d"),
        (["a", "b", "c", "d"], {}, None),
        (["a|b|c|d", "", "", ""], {"problem_type": "multi_label"}, None),
    ],
)
def test_a_class_that_no_training_row_has_is_told(
    labels: list[str], arguments: dict[str, Any], unseen: str | None, make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    module = make(labels, labels=["a", "b", "c", "d"], **arguments)
    module.setup("test")
    assert not [each for each in recwarn if "never learns" in str(each.message)], "of the training rows alone"
    module.setup("fit")
    told = [str(each.message) for each in recwarn if "never learns" in str(each.message)]
    assert told == [f"train: no row has these labels, which the model then never learns: {unseen}"] * bool(unseen)


def test_without_windows_a_long_text_is_one_sequence_cut_off(make: Make) -> None:
    module = make(["a", "b", "b", "a"], max_length=8)
    with pytest.warns(UserWarning, match="test: . of 4 texts are longer than max_length=8"):
        batch = only_batch(module)
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert batch["input_ids"].shape == (4, 8)
    whole = module.tokenizer(LONG)["input_ids"]
    assert batch["input_ids"][1].tolist() == [*whole[:7], whole[-1]]


@pytest.mark.parametrize("budget", [16, 40, 64, 120])
def test_a_budget_of_tokens_counts_the_padding_of_windows(bert: str, write: Callable[..., str], budget: int) -> None:
    words = LONG.split()
    texts = [" ".join(words[: 1 + size % 17]) for size in range(60)]
    source = write("many", texts, label=["a", "b"] * 30)
    module = TextClassificationDataModule(
        bert, train=source, val=source, max_length=8, doc_stride=1, batch_size=60, max_tokens=budget
    )
    module.setup("fit")
    for batch in [*module.train_dataloader(), *module.val_dataloader()]:
        assert batch["input_ids"].numel() <= budget or len(batch["labels"]) == 1


# Predicting


def test_predicting_needs_neither_labels_nor_training_data(make: Make, write: Callable[..., str]) -> None:
    module = make(["a", "b"] * 2, train=None, val=None, predict=write("unlabelled"))
    batch = only_batch(module, "predict")
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "row"}
    assert trimmed(batch) == [module.tokenizer(text)["input_ids"] for text in TEXTS]


def test_labels_in_a_file_to_predict_are_not_read(make: Make) -> None:
    assert "labels" not in only_batch(make(["a", "b", {"odd": None}, 3.5], labels=["a", "b"]), "predict")


# What a module must know


@pytest.mark.parametrize(
    ("problem_type", "label", "labels", "counts"),
    [
        ("single_label", ["a", "b", "b", "b"], ["a", "b"], [1, 3]),
        ("multi_label", ["a|b", "b", "b", "b"], ["a", "b"], [1, 4]),
        ("regression", [1, 2, 3, 4], ["score"], []),
    ],
)
def test_the_facts_are_the_classes_and_how_long_texts_are_met(
    make: Make, problem_type: str, label: list[Any], labels: list[str], counts: list[int]
) -> None:
    assert make(label, problem_type=problem_type, max_length=20, doc_stride=5).facts == {
        "max_length": 20,
        "labels": labels,
        "label_counts": counts,
        "problem_type": problem_type,
        "doc_stride": 5,
        "pairs": False,
    }


def test_a_text_pair_that_only_later_rows_have_is_no_longer_lost_in_silence(make: Make, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y", "text_pair": "c"}]
    source = tmp_path / "late.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = make(["x", "y"] * 2, train=str(source), val=str(source))
    with pytest.raises(DataError, match=r"late.jsonl, line 2: only one of this row and the first .* has text_pair"):
        module.setup("fit")


def test_a_text_pair_that_training_rows_lack_is_refused_elsewhere_unless_pairs_are_off(
    make: Make, write: Callable[..., str]
) -> None:
    paired = write("paired", label=["x", "y"] * 2, text_pair=TEXTS)
    with pytest.raises(DataError, match=r"paired.jsonl, line 1: there is a text_pair here"):
        make(["x", "y"] * 2, test=paired).setup("test")
    make(["x", "y"] * 2, test=paired, pairs=False).setup("test")


def test_a_text_may_have_none_of_several_labels_in_a_table_too(make: Make) -> None:
    module = make(["a|b", "", "b", " "], problem_type="multi_label")
    assert only_batch(module)["labels"].tolist() == [[1, 1], [0, 0], [0, 1], [0, 0]]


def test_scores_far_from_where_a_head_begins_are_told(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    make([0.5, -1.0, 2.0, 9.0], problem_type="regression").setup("fit")
    assert not [each for each in recwarn if "scores" in str(each.message)]
    with pytest.warns(UserWarning, match=r"^train: the scores' mean is 42.5, their standard deviation [.\d]+: from 0"):
        make([30.0, 40.0, 50.0, 50.0], problem_type="regression").setup("fit")
