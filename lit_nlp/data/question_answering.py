"""Extractive question answering: questions, contexts of any length, and answers that stand in them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_nlp.data.base import Split, TextDataModule
from lit_nlp.data.sources import Columns, Row, shortened
from lit_nlp.errors import ConfigError, DataError, require
from lit_nlp.tokenization import WINDOW_LENGTH, Text, context_offsets, encode_windows, no_answer_positions, pad_windows

# How far from its given start an answer is looked for: slips by a quote or a blank, not another mention.
_NEAR_CHARACTERS = 5
# What a start may count that isn't characters, and the bytes of one.
_UNITS = (("utf-8", 1), ("utf-16-le", 2))


@dataclass(frozen=True)
class Gold:
    """An answer where it stands: ``context[start:end]``, without blanks around it.

    Attributes:
        repaired: Whether the file gave another start.
    """

    start: int
    end: int
    repaired: bool = False


class QuestionAnsweringDataModule(TextDataModule):
    """Rows of `id`, `question`, `context` and `answers`: SQuAD JSON, flat files, or the hub's form.

    `answers` is a list of texts, or of objects with `text` and `answer_start`, or an object that holds both as
    lists; `columns` may name a column of texts and one of starts instead. No answer, in a flat file blank cells,
    makes an unanswerable question. Starts count characters; one that is off by a few, or counts bytes or UTF-16
    units, is repaired and counted in a warning. A row without `id` has its number.

    A batch holds for each window of its rows' contexts `input_ids` and `attention_mask` `[windows, tokens]`
    (and `token_type_ids`), `row` `[windows]`, and `start_positions` and `end_positions` `[windows]`: the tokens
    of the first answer where all of it stands in the window, else twice the token that stands for no answer.
    For evaluation also that token, `no_answer_position` `[windows]`, `offsets` `[windows, tokens, 2]`, the
    characters of each token in the context, `context_mask` `[windows, tokens]`, whether it has any, and one
    entry a row of the lists `id`, `question`, `context` and `answers`, the texts of the answers.

    Args:
        doc_stride: The tokens by which the windows of a long context overlap; at most half of what the
            question leaves to the context.
        max_length: Tokens of a window. None: what the backbone reads, at most 384.
        kwargs: The arguments of `TextDataModule`.

    Raises:
        ConfigError: Arguments out of range.
        DataError: An answer that doesn't stand in its context, an id that stands twice, or a question that is
            longer than `max_length`, with file and id.
    """

    task = "question_answering"

    canonical_columns = ("id", "question", "context", "answers", "is_impossible")

    def __init__(self, backbone: str, *, doc_stride: int = 128, max_length: int | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, max_length=max_length, **kwargs)
        if doc_stride < 0:
            raise ConfigError(f"doc_stride must be at least 0, got {doc_stride}", where="data")
        mapped = self.columns.get("answers", "answers")
        if not isinstance(mapped, str) and len(mapped) != 2:
            raise ConfigError(
                f"answers are read from one column, or from texts and starts, got {mapped}", where="data.columns"
            )
        self.doc_stride = doc_stride

    @property
    def max_length(self) -> int:
        """Tokens that a window may have, question and special tokens included."""
        return min(super().max_length, self._max_length or WINDOW_LENGTH)

    @cached_property
    def unanswerable(self) -> bool:
        """Whether the training data holds questions without an answer."""
        return any(not listed_answers(row) for row in self.read("train"))

    @property
    def facts(self) -> dict[str, Any]:
        """What the module must know: how contexts are split, and whether questions may have no answer."""
        return super().facts | {"doc_stride": self.doc_stride, "unanswerable": self.unanswerable}

    def columns_of(self, split: Split) -> Columns:
        """Read the answers everywhere but for `predict`."""
        return Columns(
            text=("question", "context"),
            value=None if split == "predict" else "answers",
            key="id",
            flag=None if split == "predict" else "is_impossible",
            blank_value=True,
            mapping=self.columns,
            names=self.column_names,
        )

    def read(self, split: Split) -> Iterator[Row]:
        """Return all rows of a split's source, each with an id of its own.

        Raises:
            ConfigError: The split has no source.
            DataError: While iterating: an id stands twice.
        """
        return self._identified(super().read(split))

    @property
    def schema(self) -> pa.Schema:
        """One row a question; what has tokens is a list of windows."""
        fields = self.window_columns | dict.fromkeys(("starts", "ends"), pa.list_(pa.list_(pa.int32())))
        fields |= dict.fromkeys(("start_positions", "end_positions", "no_answer_position"), pa.list_(pa.int32()))
        fields |= dict.fromkeys(("id", "question", "context", "where"), pa.string())
        fields |= dict.fromkeys(("repaired", "in_no_window"), pa.bool_())
        return pa.schema(fields | {"answers": pa.list_(pa.string()), "length": pa.int32()})

    def options(self, split: Split) -> dict[str, Any]:
        """Add how contexts are split."""
        return super().options(split) | {"doc_stride": self.doc_stride}

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Split contexts into windows, and find the answers' tokens in them."""
        pairs = [(row.values["question"], row.values["context"]) for row in rows]
        places = [row.where for row in rows]
        encoded = encode_windows(self.tokenizer, pairs, places, max_length=self.max_length, doc_stride=self.doc_stride)
        no_answer, spans_of = no_answer_positions(self.tokenizer, encoded), context_offsets(encoded)
        windows: list[list[int]] = [[] for _ in rows]
        for window, number in enumerate(encoded.row):
            windows[number].append(window)
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names if name not in ("question", "context")}
        for row, own in zip(rows, windows, strict=True):
            golds = [] if split == "predict" else gold_answers(row)
            offsets = [spans_of[window] for window in own]
            spans = answer_tokens(offsets, golds[0], row.where) if golds else [None] * len(own)
            nowhere = [no_answer[window] for window in own]
            for name in self.window_columns:
                columns[name].append([encoded.sequences[window][name] for window in own])
            columns["starts"].append([[start for start, _ in window] for window in offsets])
            columns["ends"].append([[end for _, end in window] for window in offsets])
            columns["start_positions"].append([s[0] if s else at for s, at in zip(spans, nowhere, strict=True)])
            columns["end_positions"].append([s[1] if s else at for s, at in zip(spans, nowhere, strict=True)])
            columns["no_answer_position"].append(nowhere)
            columns["id"].append(row.values["id"])
            columns["where"].append(row.where)
            columns["repaired"].append(any(gold.repaired for gold in golds))
            columns["in_no_window"].append(bool(golds) and not any(spans))
            said = None if split == "predict" else [row.values["context"][gold.start : gold.end] for gold in golds]
            columns["answers"].append(said)
            # What the windows take in a batch, padded to their longest.
            columns["length"].append(len(own) * max(map(len, offsets)))
        questions, contexts = zip(*pairs, strict=True)
        return columns | {"question": list(questions), "context": list(contexts)}

    def batch_columns(self, split: Split) -> list[str]:
        """Let texts and the tokens' characters ride along to where spans become answers again."""
        trained = [*self.window_columns, "start_positions", "end_positions"]
        asked = ["no_answer_position", "starts", "ends", "id", "question", "context"]
        if split == "train":
            return trained
        return [*self.window_columns, *asked] if split == "predict" else [*trained, *asked, "answers"]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad all windows of the rows to one batch."""
        batch: dict[str, Any] = pad_windows(rows, list(self.window_columns), int(self.tokenizer.pad_token_id))
        for name in ("start_positions", "end_positions", "no_answer_position"):
            if name in rows[0]:
                batch[name] = torch.tensor([position for row in rows for position in row[name]])
        if "starts" in rows[0]:
            width = batch["input_ids"].shape[1]
            sides = [
                [window + [-1] * (width - len(window)) for row in rows for window in row[side]]
                for side in ("starts", "ends")
            ]
            batch["offsets"] = torch.tensor(sides).permute(1, 2, 0).contiguous()
            batch["context_mask"] = batch["offsets"][..., 0] < batch["offsets"][..., 1]
        texts = [name for name in ("id", "question", "context", "answers") if name in rows[0]]
        return batch | {name: [row[name] for row in rows] for name in texts}

    def texts_of(self, rows: dict[str, list[Any]]) -> list[Text]:
        """Return questions, each with its context."""
        return list(zip(rows["question"], rows["context"], strict=True))

    def given_of(self, rows: dict[str, list[Any]]) -> list[Any] | None:
        """Return the answers to each question, none where there is none; None where they aren't known."""
        return None if None in rows["answers"] else [list(dict.fromkeys(each)) for each in rows["answers"]]

    def _identified(self, rows: Iterator[Row]) -> Iterator[Row]:
        mapped = self.columns.get("answers")
        places: dict[str, str] = {}
        for number, (given, where) in enumerate(rows):
            values = {"id": str(number)} | given
            name = values["id"]
            if name != str(number) and not where.endswith(f", question {name}"):
                where = f"{where}, id {name}"
            if name in places:
                earlier = "there twice" if places[name] == where else f"already at {places[name]}"
                raise DataError(
                    f"the id {name} stands {earlier}", where=where, mend="give each question an id of its own"
                )
            places[name] = where
            if isinstance(mapped, list) and "answers" in values:
                texts, starts = (values["answers"][column] for column in mapped)
                values["answers"] = {"text": texts, "answer_start": starts}
            yield Row(values, where)

    def _open(self, split: Split) -> datasets.Dataset:
        table = super()._open(split)
        columns = table.with_format("arrow")
        if repaired := pc.sum(columns["repaired"]).as_py():
            first = table[pc.index(columns["repaired"][:], True).as_py()]["where"]
            rank_zero_warn(
                f"{split}: the answer_start of {repaired} of {len(table)} questions was wrong, and was corrected to"
                f" where the answer stands; the first is {first}."
            )
        if split == "train" and not pc.any(pc.greater(pc.list_value_length(columns["answers"]), 0)).as_py():
            rank_zero_warn("train: no question has an answer, and so the model learns to give none.")
        if lost := pc.sum(columns["in_no_window"]).as_py():
            # They would be trained as questions without an answer.
            left_out = "; they are left out of training" if split == "train" else ""
            rank_zero_warn(
                f"{split}: the answers to {lost} of {len(table)} questions fit whole in no window of"
                f" max_length={self.max_length} tokens with doc_stride={self.doc_stride}{left_out}; raise either."
            )
            if split == "train":
                table = table.select([row for row, nowhere in enumerate(table["in_no_window"][:]) if not nowhere])
                require(len(table) > 0, "no answer fits whole in a window", "data.max_length", mend="raise it")
        return table


def gold_answers(row: Row) -> list[Gold]:
    """Return where a row's answers stand in its context; none for an unanswerable question.

    Raises:
        DataError: An answer stands neither where it should nor near there.
    """
    return [locate(row.values["context"], text, start, row.where) for text, start in listed_answers(row)]


def locate(context: str, text: str, start: int | None, where: str) -> Gold:
    """Return where an answer stands in its context.

    A start at which something else stands is taken for one in bytes of UTF-8 or in UTF-16 units, or for one
    that is a few characters off, where all of these that lead to the answer lead to the same place.

    Args:
        context: The text that holds the answer.
        text: The answer; blanks around it don't count.
        start: Its first character, counted from 0. None: it stands in the context once.
        where: The place of the row, for messages.

    Raises:
        DataError: It doesn't stand there, or may be meant at several places.
    """
    bare = text.strip()
    if start is None:
        return _only_mention(context, bare, where)
    lead = len(text) - len(text.lstrip())
    if context.startswith(bare, start + lead):
        return Gold(start + lead, start + lead + len(bare))
    meant = _nearest(context, bare, start + lead)
    for encoding, width in _UNITS:
        characters = _characters(context, start, encoding, width)
        if characters is not None and context.startswith(bare, characters + lead):
            meant.add(characters + lead)
    if len(meant) == 1:
        (at,) = meant
        return Gold(at, at + len(bare), repaired=True)
    shown = f"answer {shortened(bare)!r}"
    if meant:
        problem = f"answer_start {start} may mean {shown} at {' or '.join(map(str, sorted(meant)))}"
        raise DataError(problem, where=where, mend="correct answer_start")
    problem = f"at answer_start {start} stands {shortened(context[start : start + len(text)])!r}, not {shown}"
    if start >= len(context):
        problem = f"answer_start {start} of {shown} lies beyond the context's {len(context)} characters"
    there = context.find(bare)
    mend = "correct the answer: the context doesn't hold it" if there < 0 else f"correct it: {there} is the first"
    raise DataError(problem, where=where, mend=mend)


def answer_tokens(windows: list[list[tuple[int, int]]], gold: Gold, where: str) -> list[tuple[int, int] | None]:
    """Return the first and last token of an answer in each window, None where not all of it is there.

    They and what is between them hold each character of the answer that any token holds: a tokenizer may leave
    out blanks, control characters and combining marks.

    Args:
        windows: The characters of each token in all windows of a context, as `context_offsets` tells them.
        gold: The answer.
        where: The place of the row, for messages.

    Raises:
        DataError: No token holds anything of the answer.
    """
    touched = sorted({s for window in windows for s in window if max(s[0], gold.start) < min(s[1], gold.end)})
    if not touched:
        problem = "the tokenizer leaves the whole answer out"
        raise DataError(problem, where=where, mend="use another backbone, or delete the row")
    return [
        (window.index(touched[0]), len(window) - 1 - window[::-1].index(touched[-1]))
        if touched[0] in window and touched[-1] in window
        else None
        for window in windows
    ]


def listed_answers(row: Row) -> list[tuple[str, int | None]]:
    """Return the texts and starts of a row's answers, whatever their form.

    Raises:
        DataError: They have none of the known forms, or `is_impossible` says otherwise.
    """
    found, impossible = _listed(row), row.values.get("is_impossible")
    if impossible is not None and impossible == bool(found):
        problem = f"is_impossible is {str(impossible).lower()}, but there are {len(found)} answers"
        raise DataError(problem, where=row.where, mend="correct one of the two")
    return found


def _listed(row: Row) -> list[tuple[str, int | None]]:
    answers = _unpacked(row.values["answers"])
    if answers in ("", {"text": "", "answer_start": ""}):
        return []
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        several = isinstance(texts, list)
        texts = texts if isinstance(texts, list) else [texts]
        if starts is None or not several:
            starts = [starts] * len(texts)
        if not isinstance(starts, list) or len(starts) != len(texts):
            problem = f"{len(texts)} texts of answers with answer_start {shortened(repr(starts))}"
            raise DataError(problem, where=row.where, mend="give each text its start")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list):
        mend = "write a list of objects with text and answer_start, [] where there is none"
        raise DataError(f"expected answers, got {shortened(repr(answers))}", where=row.where, mend=mend)
    return [_text_and_start(answer, row.where) for answer in answers]


def _unpacked(answers: Any) -> Any:
    """Return what a cell of a table holds as JSON, where that has the form of answers; else the cell."""
    if not isinstance(answers, str) or not answers.lstrip().startswith(("[", "{")):
        return answers
    try:
        found = json.loads(answers)
    except ValueError:
        return answers
    several = found if isinstance(found, list) else [found]
    return found if all(isinstance(each, dict) and "text" in each for each in several) else answers


def _text_and_start(answer: Any, where: str) -> tuple[str, int | None]:
    text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (answer, None)
    if not isinstance(text, str) or not text.strip():
        problem = f"expected the text of an answer, got {shortened(repr(answer))}"
        raise DataError(problem, where=where, mend="write it as a string, and [] for a question without answers")
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if isinstance(start, str) and start.isdecimal():
        start = int(start)
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        problem = f"answer_start {start!r} of answer {shortened(text)!r} is no place in the context"
        raise DataError(problem, where=where, mend="count the characters before the answer")
    return text, start


def _only_mention(context: str, bare: str, where: str) -> Gold:
    at = context.find(bare)
    if at < 0:
        problem, mend = f"answer {shortened(bare)!r} doesn't stand in the context", "correct it, or delete the row"
        raise DataError(problem, where=where, mend=mend)
    if (again := context.find(bare, at + 1)) >= 0:
        problem = f"answer {shortened(bare)!r} stands at {at} and at {again}, and has no answer_start"
        mend = 'give it one; a cell of a table holds both as {"text": ["…"], "answer_start": [0]}'
        raise DataError(problem, where=where, mend=mend)
    return Gold(at, at + len(bare))


def _nearest(context: str, bare: str, at: int) -> set[int]:
    """Return where the answer stands within a few characters of a place, as whole words if it does so anywhere."""
    near = range(max(0, at - _NEAR_CHARACTERS), at + _NEAR_CHARACTERS + 1)
    places = [place for place in near if context.startswith(bare, place)]
    return {place for place in places if _is_whole(context, place, place + len(bare))} or set(places)


def _is_whole(context: str, start: int, end: int) -> bool:
    """Whether no word reaches over an end of a span."""
    return not any(context[at - 1 : at].isalnum() and context[at : at + 1].isalnum() for at in (start, end))


def _characters(context: str, start: int, encoding: str, width: int) -> int | None:
    """Return the characters in a context's first units of an encoding, where they end with a character."""
    raw = context.encode(encoding)
    try:
        return len(raw[: start * width].decode(encoding)) if start * width <= len(raw) else None
    except UnicodeDecodeError:
        return None
