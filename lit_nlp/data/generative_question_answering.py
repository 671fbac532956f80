"""Generative question answering: questions, with or without a context, and answers to be written."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from lit_nlp.data.base import Split
from lit_nlp.data.question_answering import listed_answers
from lit_nlp.data.sources import Columns, Row
from lit_nlp.data.text_to_text import TextToTextDataModule
from lit_nlp.errors import DataError
from lit_nlp.generation import question_with_context


class GenerativeQuestionAnsweringDataModule(TextToTextDataModule):
    """Rows of `question`, `answer` and optionally `context`; or of SQuAD, whose first answer is trained on.

    What is asked reads ``question: … context: …`` as in Raffel et al. 2020, appendix D.15, or is the question alone.
    Questions of SQuAD 2.0 without an answer are left out, and counted in a warning. Outside training, all answers
    that count ride along as `answers`.

    Args:
        kwargs: The arguments of `TextToTextDataModule`.
    """

    canonical_columns = ("question", "answer", "context", "answers", "is_impossible")

    def columns_of(self, split: Split) -> Columns:
        """Read the question, the context where there is one, and outside `predict` the answer."""
        text, listed = ("question",), self._lists_answers(split)
        lines = self.reads_lines(split)
        return Columns(
            text=text if split == "predict" or listed else (*text, "answer"),
            optional_text=("context",),
            value="answers" if listed and split != "predict" else None,
            flag="is_impossible" if listed and split != "predict" else None,
            blank_value=True,
            mapping=({"question": "text"} if lines else {}) | self.columns,
            names=self.column_names,
        )

    def read(self, split: Split) -> Iterator[Row]:
        """Return the split's rows, without questions that have no answer."""
        rows = super().read(split)
        return self._answered(rows, split) if split != "predict" and self._lists_answers(split) else rows

    def source_of(self, row: Row) -> str:
        """Return the question, with its context where it has one."""
        return question_with_context(row.values["question"], row.values.get("context"))

    def target_of(self, row: Row) -> str:
        """Return the answer to be written, the first of several."""
        return _answers(row)[0]

    @property
    def schema(self) -> pa.Schema:
        """Add all answers that count."""
        return super().schema.append(pa.field("answers", pa.list_(pa.string())))

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Tokenise both sides, and keep all answers."""
        answers = [None if split == "predict" else _answers(row) for row in rows]
        return {**super().tokenise(rows, split), "answers": answers}

    def batch_columns(self, split: Split) -> list[str]:
        """Let all answers ride along where they are measured."""
        return super().batch_columns(split) + ([] if split in ("train", "predict") else ["answers"])

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad pairs to a batch."""
        answers = {"answers": [row["answers"] for row in rows]} if "answers" in rows[0] else {}
        return super().collate(rows) | answers

    def _lists_answers(self, split: Split) -> bool:
        """Whether the rows of a split hold lists of answers, as SQuAD's do."""
        names = self.columns.keys() & {"answer", "answers"} or self.first_record(split).keys()
        return "answers" in names and "answer" not in names

    def _answered(self, rows: Iterator[Row], split: Split) -> Iterator[Row]:
        left_out = kept = 0
        for row in rows:
            if listed_answers(row):
                kept += 1
                yield row
            else:
                left_out += 1
        if not kept:
            raise DataError(f"none of the {left_out} questions has an answer", where=f"data.{split}")
        if left_out:
            self.note(f"{left_out} questions without an answer are left out.")


def _answers(row: Row) -> list[str]:
    if "answer" in row.values:
        return [str(row.values["answer"])]
    return list(dict.fromkeys(text for text, _ in listed_answers(row)))
