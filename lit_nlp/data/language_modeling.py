"""Language modelling: texts as they are, cut into blocks, with tokens hidden anew each epoch."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, get_args

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from lit_nlp.data.base import Split, TextDataModule
from lit_nlp.data.batching import Batches, BatchSampler, Lengths
from lit_nlp.data.sources import Columns, Row
from lit_nlp.errors import DataError, known_name
from lit_nlp.objectives import Blocks, Examples, Objective


class LanguageModelingDataModule(TextDataModule):
    """Rows of `text`, each a document: a line of a `.txt` file, a cell, a JSON string.

    A row of a batch is a block of `max_length` tokens: of one document that is cut into as many blocks as it needs,
    or for `causal` of several that stand one after the other and don't see each other. Only to `predict`, a row is
    a document. What a batch holds, `Examples.pad` tells; with it goes `row`.

    What is hidden is drawn by the seed, the epoch and the row alone: another in each epoch of training, always the
    same in validation and test, and again the same where a run is resumed.

    Args:
        objective: `masked` for encoders, `causal` for decoders, `denoising` for encoder-decoders.
        whole_words: Mask all tokens of a word or none, for `masked`.
        mask_probability: Share of the tokens to be found, for `masked` and `denoising`.
        span_length: Mean tokens of a hidden span, for `denoising`.
        kwargs: The arguments of `TextDataModule`; `max_length` is the size of a block.
    """

    task = "language_modeling"

    canonical_columns = ("text",)
    shared_with_module = ("objective",)

    def __init__(
        self,
        backbone: str,
        *,
        objective: Objective,
        whole_words: bool = False,
        mask_probability: float = 0.15,
        span_length: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        known_name(objective, get_args(Objective), "data.objective")
        self.objective, self.whole_words = objective, whole_words
        self.mask_probability, self.span_length = mask_probability, span_length
        self._documents: dict[Split, datasets.Dataset] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the documents behind too: the rows that a worker reads hold them."""
        return super().__getstate__() | {"_documents": {}}

    @cached_property
    def examples(self) -> Examples:
        """What makes examples of documents."""
        return Examples(
            self.tokenizer,
            self.objective,
            max_length=self.max_length,
            mask_probability=self.mask_probability,
            whole_words=self.whole_words,
            span_length=self.span_length,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the module must know: what is asked of it."""
        return super().facts | {
            "objective": self.objective,
            "mask_probability": self.mask_probability,
            "span_length": self.span_length,
        }

    def columns_of(self, split: Split) -> Columns:
        """Read the text alone."""
        return Columns(text=("text",), mapping=self.columns, names=self.column_names)

    @property
    def schema(self) -> pa.Schema:
        """One row a document, of any length."""
        fields = {"input_ids": pa.list_(self.id_type), "length": pa.int32(), "where": pa.string(), "text": pa.string()}
        return pa.schema(fields | ({"words": pa.list_(pa.int32())} if self.whole_words else {}))

    def options(self, split: Split) -> dict[str, Any]:
        """Documents are kept whole: blocks of another length need no tokenising."""
        ends = [self.examples.before, self.examples.after] if self.objective == "causal" else None
        return {"ends": ends, "words": self.whole_words, "text": split == "predict"}

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Tokenise texts whole."""
        texts = [row.values["text"] for row in rows]
        documents = self.examples.documents(texts)
        columns: dict[str, list[Any]] = {
            "input_ids": documents.ids,
            "length": [len(tokens) for tokens in documents.ids],
            "where": [row.where for row in rows],
            "text": texts if split == "predict" else [None] * len(rows),
        }
        return columns | ({"words": documents.words} if self.whole_words else {})

    def batch_columns(self, split: Split) -> list[str]:
        """Let the texts ride along to predictions; blocks are gathered from their documents."""
        return ["input_ids", "text"] if split == "predict" else []

    def lengths(self, table: datasets.Dataset) -> Lengths:
        """Return the tokens of a block in a batch, or of the blocks of a document to predict."""
        return self.examples.sides(np.minimum(super().lengths(table)[:, 0], self.examples.room))

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Hide tokens of the blocks, or of documents all of them in turn, and pad them to a batch."""
        if "text" in rows[0]:
            several = [self.examples.complete(row["input_ids"]) for row in rows]
            batch: dict[str, Any] = self.examples.pad([example for examples in several for example in examples])
            numbers = [row["row"] for row, examples in zip(rows, several, strict=True) for _ in examples]
            return batch | {"row": torch.tensor(numbers), "text": [row["text"] for row in rows]}
        examples = [
            self.examples.example(row["pieces"], np.random.default_rng(row["draw"]), row.get("words")) for row in rows
        ]
        return self.examples.pad(examples) | {"row": torch.tensor([row["row"] for row in rows])}

    def _open(self, split: Split) -> datasets.Dataset:
        documents = super()._open(split)
        if split == "predict":
            return documents
        self._documents[split] = documents
        blocks = self.examples.cut(np.array(documents["length"][:], dtype=np.int64))
        if len(blocks.firsts) < 2:
            raise DataError("no text has a token", where=f"data.{split}", mend="name a file that holds text")
        return _table_of(blocks, documents)

    def _batches(self, split: Split, shuffle: bool = False) -> Batches:
        batches = super()._batches(split, shuffle)
        if split != "predict":
            epochs = batches.sampler if shuffle else None
            batches.dataset = _GatheredBlocks(self._documents[split], self.tables[split], self.seed, epochs)
        return batches


class _GatheredBlocks(Dataset[dict[str, Any]]):
    """Blocks, gathered from their documents when they are asked for, with what seeds their draw.

    Args:
        documents: One row a document.
        blocks: One row a block, as `_table_of` makes them.
        seed: The data module's.
        epochs: Tells the epoch. None: every epoch draws the same.
    """

    def __init__(
        self, documents: datasets.Dataset, blocks: datasets.Dataset, seed: int, epochs: BatchSampler | None
    ) -> None:
        names = [name for name in ("input_ids", "words") if name in documents.column_names]
        self.documents, self.blocks = documents.select_columns(names), blocks
        self.seed, self.epochs = seed, epochs

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        pieces = [list(zip(*each, strict=True)) for each in zip(*self._columns(rows), strict=True)]
        needed = sorted({document for each in pieces for document, _, _ in each})
        columns = self.documents[needed]
        found = {document: place for place, document in enumerate(needed)}
        epoch = self.epochs.epoch if self.epochs else 0
        gathered = []
        for row, each in zip(rows, pieces, strict=True):
            example: dict[str, Any] = {"row": row, "draw": [self.seed % 2**32, epoch, row]}
            example["pieces"] = [columns["input_ids"][found[document]][start:stop] for document, start, stop in each]
            if "words" in columns:
                ((document, start, stop),) = each
                example["words"] = columns["words"][found[document]][start:stop]
            gathered.append(example)
        return gathered

    def _columns(self, rows: list[int]) -> list[list[list[int]]]:
        some = self.blocks[rows]
        return [some["document"], some["start"], some["stop"]]


def _table_of(blocks: Blocks, documents: datasets.Dataset) -> datasets.Dataset:
    """Return a table of blocks: the pieces that each is gathered from, its tokens, and where its text stands."""
    offsets = pa.array(blocks.firsts, pa.int32())
    names = ("document", "start", "stop")
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(blocks.pieces[:, i], pa.int64()))
        for i, name in enumerate(names)
    }
    sizes = blocks.pieces[:, 2] - blocks.pieces[:, 1]
    columns["length"] = pa.array(np.add.reduceat(sizes, blocks.firsts[:-1]), pa.int32())
    places = documents.with_format("arrow")["where"][:]
    columns["where"] = places.take(pa.array(blocks.pieces[blocks.firsts[:-1], 0]))
    return datasets.Dataset(pa.table(columns))
