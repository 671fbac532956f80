"""Text classification: single texts or pairs, with one label, several, or a score."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import datasets
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_nlp.data import sources
from lit_nlp.data.base import Split, TextDataModule, numbers
from lit_nlp.data.labels import class_index, class_label, count_labels, in_order, listed, number, several_labels
from lit_nlp.data.sources import Columns, Row
from lit_nlp.errors import ConfigError, DataError, known_name, require
from lit_nlp.targets import stand_elsewhere
from lit_nlp.tokenization import Text, encode, pad_windows

ProblemType = Literal["single_label", "multi_label", "regression"]
# Names in order, or the file's value -> name; YAML makes numbers and bools of some values.
Labels = list[str] | dict[Any, str]
# Scores that lie so far from 0 a head doesn't reach at the usual rates.
_FAR = 10.0


class TextClassificationDataModule(TextDataModule):
    """Rows of `text`, optionally `text_pair`, and `label`.

    A batch holds `input_ids` and `attention_mask` `[sequences, sequence]` (and `token_type_ids`), `row`
    `[sequences]`, the row of each sequence, and `labels`: class numbers `[rows]`, or for several labels
    or scores floats `[rows, classes]`. Sequences and rows differ in number only where `doc_stride`
    splits long texts.

    Args:
        labels: The classes' names in order, or a dict from the file's values to their names. None: the
            labels found in the training data, numbers by value, words by alphabet.
        problem_type: `single_label`, `multi_label` (a list, a string with separators, or one column of
            0 or 1 for each label) or `regression` (numbers).
        label_separator: Between the labels of one cell, for `multi_label`.
        doc_stride: Split texts longer than `max_length` into windows that overlap by this many tokens,
            instead of truncating them; the windows' logits are averaged.
        pairs: Whether rows hold a `text_pair`, which every split then needs. None: the training data tells.
        kwargs: The arguments of `TextDataModule`.
    """

    task = "text_classification"

    instead_of_truncating: ClassVar[str] = "set doc_stride to split them into windows instead"

    canonical_columns = ("text", "text_pair", "label")

    def __init__(
        self,
        backbone: str,
        *,
        labels: Labels | None = None,
        problem_type: ProblemType = "single_label",
        label_separator: str = "|",
        doc_stride: int | None = None,
        pairs: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.pairs = pairs
        known_name(problem_type, get_args(ProblemType), "data.problem_type")
        require(label_separator != "", "label_separator is empty", "data", mend="give a character")
        self.label_names = {} if problem_type == "regression" else _names(labels)
        self._score = list(labels or ["score"])
        self.problem_type, self.label_separator, self.doc_stride = problem_type, label_separator, doc_stride

    @cached_property
    def labels(self) -> list[str]:
        """The classes' names, in the order of the logits; for regression the name of the score."""
        if self.problem_type == "regression":
            return self._score
        return list(dict.fromkeys(self.label_names.values())) or in_order(self._counted)

    @cached_property
    def label_counts(self) -> list[int]:
        """The rows of each class in the training source, in the order of `labels`; empty for regression."""
        return [] if self.problem_type == "regression" else [self._counted[label] for label in self.labels]

    @property
    def facts(self) -> dict[str, Any]:
        """What the module must know: the classes and how long texts are met."""
        return super().facts | {
            "labels": self.labels,
            "label_counts": self.label_counts,
            "problem_type": self.problem_type,
            "doc_stride": self.doc_stride,
            "pairs": bool(self.reads_pairs),
        }

    @cached_property
    def reads_pairs(self) -> bool | None:
        """Whether rows are pairs: as given, else as the first training row; None where neither tells."""
        if self.pairs is not None or self.sources["train"] is None:
            return self.pairs
        columns = Columns(text=("text",), optional_text=("text_pair",), mapping=self.columns, names=self.column_names)
        return "text_pair" in next(iter(sources.read(self.sources["train"], columns))).values

    def columns_of(self, split: Split) -> Columns:
        """Read the label everywhere but for `predict`, and the second text where the training rows have one."""
        pair = ("text_pair",)
        return Columns(
            text=("text", *pair) if self.reads_pairs else ("text",),
            optional_text=pair if self.pairs is None and not self.reads_pairs else (),
            value=None if split == "predict" else "label",
            # A text may have none of several labels.
            blank_value=self.problem_type == "multi_label",
            mapping=self.columns,
            names=self.column_names,
        )

    @property
    def schema(self) -> pa.Schema:
        """One row a text; `input_ids` is a list of windows."""
        fields = {"length": pa.int32(), "truncated": pa.bool_(), "label": pa.list_(pa.float32())}
        if self.problem_type == "single_label":
            fields["label"] = pa.int64()
        return pa.schema(self.window_columns | dict.fromkeys(("where", "text", "text_pair"), pa.string()) | fields)

    def options(self, split: Split) -> dict[str, Any]:
        """Add the classes, which decide the labels' numbers."""
        known = {} if split == "predict" else {"labels": self.labels, "names": self.label_names}
        ours = {"doc_stride": self.doc_stride, "type": self.problem_type, "separator": self.label_separator}
        return super().options(split) | ours | known

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Tokenise texts and number labels."""
        pairs = [row.values.get("text_pair") for row in rows]
        if self.reads_pairs is False and any(pairs):
            raise DataError(
                "there is a text_pair here, but the first training row has none",
                where=rows[0].where,
                mend="give all rows one, or set data.pairs to false to leave them unread",
            )
        texts = [
            (row.values["text"], pair) if pair else row.values["text"] for row, pair in zip(rows, pairs, strict=True)
        ]
        encoded = encode(self.tokenizer, texts, max_length=self.max_length, doc_stride=self.doc_stride, places=False)
        columns: dict[str, list[Any]] = {name: [[] for _ in rows] for name in self.window_columns}
        for row, tokens in zip(encoded.row, encoded.sequences, strict=True):
            for name in columns:
                columns[name][row].append(tokens[name])
        return columns | {
            # What the windows take in a batch, padded to their longest.
            "length": [len(windows) * max(map(len, windows)) for windows in columns["input_ids"]],
            "truncated": encoded.truncated,
            "where": [row.where for row in rows],
            "text": [row.values["text"] for row in rows],
            "text_pair": pairs,
            "label": [None if split == "predict" else self.target(row) for row in rows],
        }

    def target(self, row: Row) -> int | list[float]:
        """Return what a row's label is to the loss: a class number, or floats `[classes]`.

        Raises:
            DataError: The label isn't one of the classes, or no number for regression.
        """
        value = row.values["label"]
        if self.problem_type == "regression":
            return [number(value, row.where)]
        if self.problem_type == "single_label":
            return self._class(class_label(value, row.where), row.where)
        chosen = {self._class(label, row.where) for label in several_labels(value, row.where, self.label_separator)}
        return [float(index in chosen) for index in range(len(self.labels))]

    def batch_columns(self, split: Split) -> list[str]:
        """Let the texts ride along to where results show them."""
        return [*self.window_columns, "label"] + ([] if split == "train" else ["text", "text_pair"])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad all windows of the rows to one batch."""
        batch: dict[str, Any] = pad_windows(rows, list(self.window_columns), int(self.tokenizer.pad_token_id))
        if rows[0].get("label") is not None:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        texts = [name for name in ("text", "text_pair") if name in rows[0]]
        return batch | {name: [row[name] for row in rows] for name in texts}

    def texts_of(self, rows: dict[str, list[Any]]) -> list[Text]:
        """Return texts, or pairs of texts."""
        return [(text, pair) if pair else text for text, pair in zip(rows["text"], rows["text_pair"], strict=True)]

    def given_of(self, rows: dict[str, list[Any]]) -> list[Any] | None:
        """Return a class's name, the names of several, or a score; None for rows without labels."""
        if None in rows["label"]:
            return None
        if self.problem_type == "regression":
            return [score for (score,) in rows["label"]]
        if self.problem_type == "single_label":
            return [self.labels[label] for label in rows["label"]]
        return [[name for name, given in zip(self.labels, label, strict=True) if given] for label in rows["label"]]

    def check_module(self, module: LightningModule, stage: str | None = None) -> None:
        """Make sure that the module has the classes in the same places; rows to predict have none.

        Raises:
            ConfigError: It hasn't.
        """
        super().check_module(module, stage)
        if stage == "predict":
            return
        self.check_shared("problem_type", self.problem_type, module.hparams.get("problem_type"))
        labels = list(map(str, module.hparams.get("labels") or self.labels))
        if stand_elsewhere(self.labels, labels) or len(labels) < len(self.labels):
            self.check_shared("labels", self.labels, labels)

    def _open(self, split: Split) -> datasets.Dataset:
        table = super()._open(split)
        if split == "train" and self.problem_type != "regression":
            held = set(numbers(table, "label", of=self._classes_of).tolist())
            if unseen := [label for i, label in enumerate(self.labels) if i not in held]:
                rank_zero_warn(f"train: no row has these labels, which the model then never learns: {listed(unseen)}")
        if split == "train" and self.problem_type == "regression":
            _warn_of_far_scores(numbers(table, "label", of=lambda labels: labels.combine_chunks().flatten()))
        return table

    def _classes_of(self, labels: pa.ChunkedArray) -> Int[np.ndarray, " classes"]:
        """Return the numbers of the classes that some rows have."""
        if self.problem_type == "single_label":
            return np.unique(np.asarray(labels))
        each = np.asarray(labels.combine_chunks().flatten()).reshape(-1, len(self.labels))
        return np.flatnonzero(each.any(0))

    @cached_property
    def _counted(self) -> Counter[str]:
        separator = self.label_separator if self.problem_type == "multi_label" else None
        return count_labels(self.read("train"), self.label_names, separator)

    def _class(self, label: str, where: str) -> int:
        if not self.label_names:
            return class_index(label, self.labels, where)
        values = list(self.label_names)
        return self.labels.index(self.label_names[values[class_index(label, values, where)]])


def _warn_of_far_scores(scores: Float[np.ndarray, " rows"]) -> None:
    mean, deviation = scores.mean(), scores.std()
    if max(abs(mean), deviation) > _FAR:
        rank_zero_warn(
            f"train: the scores' mean is {mean:.3g}, their standard deviation {deviation:.3g}: from 0, where a new head"
            " begins, they are learnt slowly; give them scaled to about 1."
        )


def _names(labels: Labels | None) -> dict[str, str]:
    """Return the file's value -> class name; empty where the data decides."""
    pairs = labels.items() if isinstance(labels, dict) else [(label, label) for label in labels or []]
    names = {class_label(value, "data.labels"): name for value, name in pairs}
    if labels is not None and len(set(names.values())) < 2:
        raise ConfigError(f"at least two classes are needed, got {labels}", where="data.labels")
    if len(names) < len(pairs):
        raise ConfigError(f"a label is named twice in {labels}", where="data.labels")
    return names
