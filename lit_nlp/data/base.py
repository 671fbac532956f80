"""TextDataModule: what the data modules share. Text in, padded batches out."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import datasets
import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from lit_nlp import scratch
from lit_nlp.data import sources
from lit_nlp.data.batching import Batches, BatchSampler, Lengths
from lit_nlp.data.sources import Columns, Row
from lit_nlp.errors import ConfigError, known_name, require
from lit_nlp.files import cache_folder, write_text, written_whole
from lit_nlp.pretrained import load_tokenizer
from lit_nlp.tokenization import Text, resolve_max_length, tokenizer_fingerprint

Split = Literal["train", "val", "test", "predict"]
Source = str | list[str]

# Raise it when the same source and arguments would give other tables than before.
_CACHE_FORMAT = 5
_ROWS_AT_ONCE = 1_000
_SPLITS_OF_VERB: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}

T = TypeVar("T")


class Drawn(NamedTuple):
    """Some rows of a split.

    Attributes:
        texts: As the module's `predict_texts` takes them.
        given: What the data says of each; None where it says nothing.
        rows: Their numbers.
        total: How many rows the split has.
    """

    texts: list[Text]
    given: list[Any] | None
    rows: list[int]
    total: int

    def share(self, shown: int) -> str:
        """Return how much of the split so many rows are, as readers are told."""
        return f"all {self.total} rows" if shown == self.total else f"{shown} of {self.total} rows"


class TextDataModule(LightningDataModule):
    """Reads, tokenises once, caches, shuffles, groups by length and pads.

    A task says which columns it reads (`columns_of`), what it keeps of a row (`tokenise`, `schema`),
    how rows become a batch (`collate`), and what a module must know of the data (`facts`).

    Args:
        backbone: Whose tokenizer to use: a hub id, folder, ``package:name/folder``, GGUF file or checkpoint.
        train: Source of the training rows: a file, glob, ``hub:…`` or ``package:…``, or a list of these.
        val: Source of the validation rows. None: `val_fraction` of the training rows is held out.
        test: Source of the test rows.
        predict: Source of the rows to predict; they need no labels.
        columns: Canonical column -> the file's column, or a list of columns to join.
        column_names: The columns' names of a CSV or TSV file without a header.
        max_length: Tokens of a sequence. None: what the backbone reads, at most 512.
        batch_size: Rows of a batch.
        max_tokens: Fill batches up to this many tokens, padding included, instead of counting rows. In training on a
            GPU they are padded further: a sequence by at most an eighth, or 15 tokens.
        val_fraction: Share of the training rows to validate on when `val` is absent.
        limit: At most this many rows of each split, drawn at random by `seed`.
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        seed: Decides the shuffling, the held-out share and the drawn rows.

    Raises:
        ConfigError: Arguments out of range, or a split that is needed and has no source.
        DataError: A row that can't be read as what it should be, with its file and line.
    """

    def __init__(
        self,
        backbone: str,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        columns: dict[str, str | list[str]] | None = None,
        column_names: list[str] | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        max_tokens: int | None = None,
        val_fraction: float = 0.1,
        limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}", "data")
        require(max_tokens is None or max_tokens >= 1, f"max_tokens must be at least 1, got {max_tokens}", "data")
        require(0 < val_fraction < 1, f"val_fraction must lie between 0 and 1, got {val_fraction}", "data")
        require(limit is None or limit >= 1, f"limit must be at least 1, got {limit}", "data")
        require(num_workers >= 0, f"num_workers must be at least 0, got {num_workers}", "data")
        require(max_length is None or max_length >= 1, f"max_length must be at least 1, got {max_length}", "data")
        self._backbone = backbone
        self.sources: dict[Split, Source | None] = {"train": train, "val": val, "test": test, "predict": predict}
        _check_strings(backbone, "data.backbone")
        for split, source in self.sources.items():
            if source is not None:
                _check_strings(source, f"data.{split}")
        for name in columns or {}:
            known_name(name, self.canonical_columns, "data.columns")
        self.columns, self.column_names = columns or {}, column_names
        self._max_length, self.batch_size, self.max_tokens = max_length, batch_size, max_tokens
        self.val_fraction, self.limit, self.num_workers, self.seed = val_fraction, limit, num_workers, seed
        self.tables: dict[Split, datasets.Dataset] = {}
        self._notes: list[str] = []
        # Which rows were held out stands in the checkpoint, so that none of them is trained on and then tested.
        self.save_hyperparameters({"val_fraction": val_fraction, "seed": seed, "limit": limit}, logger=False)

    # What a task says

    # The kind of task that batches are for, as modules tell theirs.
    task: ClassVar[str | None] = None
    # The columns that `columns` may name.
    canonical_columns: ClassVar[tuple[str, ...]]
    # Attributes that a module takes as arguments, too: with others it would read batches otherwise than they are meant.
    shared_with_module: ClassVar[tuple[str, ...]] = ()
    instead_of_truncating: ClassVar[str] = "raise it to read them whole"

    @property
    def length_limits(self) -> str:
        """The arguments that say where a text is cut off, for a warning."""
        return f"max_length={self.max_length}"

    def columns_of(self, split: Split) -> Columns:
        """Return the columns that the task reads of a split's files."""
        raise NotImplementedError

    @property
    def schema(self) -> pa.Schema:
        """The columns that `tokenise` returns."""
        raise NotImplementedError

    @cached_property
    def id_type(self) -> pa.DataType:
        """What holds the id of a token that a text is read as: two bytes, unless the tokenizer knows too many."""
        return pa.uint16() if max(self.tokenizer.get_vocab().values()) < 2**16 else pa.int32()

    @cached_property
    def window_columns(self) -> dict[str, pa.DataType]:
        """The columns that the backbone reads, where a row is a list of windows: a number for each token of each."""
        ids, types = pa.list_(pa.list_(self.id_type)), pa.list_(pa.list_(pa.int8()))
        has_types = "token_type_ids" in self.tokenizer.model_input_names
        return {"input_ids": ids, "token_type_ids": types} if has_types else {"input_ids": ids}

    def tokenise(self, rows: list[Row], split: Split) -> Mapping[str, list[Any]]:
        """Turn rows into the columns of `schema`."""
        raise NotImplementedError

    def batch_columns(self, split: Split) -> list[str]:
        """Return the columns of `schema` that `collate` needs: in training no more than makes tensors."""
        raise NotImplementedError

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad rows of a table to a batch under the names that transformers' forward takes.

        The key `row` holds the rows' numbers in their split, one for each sequence. Texts that metrics and
        results need ride along as lists of strings, one for each row.
        """
        raise NotImplementedError

    def lengths(self, table: datasets.Dataset) -> Lengths:
        """Return the tokens of each row on each side that is padded by itself: what batches are grouped by."""
        return numbers(table, "length").reshape(-1, 1)

    def options(self, split: Split) -> dict[str, Any]:
        """Return what decides the split's table besides its source and columns; part of the cache's key."""
        return {"max_length": self.max_length}

    @property
    def facts(self) -> dict[str, Any]:
        """What a module must know of the data, by the names of the module's arguments."""
        return {"max_length": self.max_length}

    def __getstate__(self) -> dict[str, Any]:
        """Leave trainer and tables behind where a worker is spawned: it needs `collate` alone."""
        return {**self.__dict__, "trainer": None, "tables": {}}

    # What every task shares

    def texts_of(self, rows: dict[str, list[Any]]) -> list[Text]:
        """Return what is explained of some rows of a table, as the module's `predict_texts` takes it.

        Raises:
            ConfigError: There is nothing to explain.
        """
        raise ConfigError(f"{type(self).__name__} has no texts that could be explained", where="explain")

    def given_of(self, rows: dict[str, list[Any]]) -> list[Any] | None:
        """Return what the data says of each of some rows; None where it says nothing."""
        return None

    @cached_property
    def backbone(self) -> str:
        """The backbone as given; for `scratch:` without a tokenizer, one that was trained on the training texts."""
        given = self._backbone
        if not given.startswith(scratch.PREFIX) or scratch.has_tokenizer(given):
            return given

        def texts() -> Iterator[str]:
            return (text for row in self.read("train") for text in self.learnt_from(row))

        # The first row's texts tell how others are framed.
        first = self.learnt_from(next(self.read("train")))
        corpus = [sources.fingerprint(self.source("train")), repr(self.columns_of("train")), first]
        return scratch.with_tokenizer(given, texts, corpus)

    def learnt_from(self, row: Row) -> list[str]:
        """Return the texts of a row that a tokenizer from scratch is trained on: all that is read or written."""
        columns = self.columns_of("train")
        return [row.values[name] for name in (*columns.text, *columns.optional_text) if name in row.values]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return load_tokenizer(self.backbone)

    @property
    def max_length(self) -> int:
        """Tokens that a sequence may have, special tokens included."""
        return resolve_max_length(self.tokenizer, self._max_length)

    def read(self, split: Split) -> Iterator[Row]:
        """Return all rows of a split's source, whatever the limit.

        Raises:
            ConfigError: The split has no source.
        """
        return sources.read(self.source(split), self.columns_of(split))

    def note(self, text: str) -> None:
        """Let what is found out while rows are read be a warning whenever their table is opened."""
        self._notes.append(text)

    def source(self, split: Split) -> Source:
        """Return where a split's rows come from.

        Raises:
            ConfigError: The split has no source.
        """
        source = self.sources[split]
        if source is None:
            raise ConfigError(f"there is no {split} data", where=f"data.{split}", mend=f"give --data.{split} FILE")
        return source

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows are trained on, for a checkpoint to tell."""
        return {"train_rows": len(self.tables["train"])} if "train" in self.tables else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Tell who goes on with a run on another number of rows."""
        resumes = self.trainer is not None and self.trainer.state.fn == "fit"
        trained, rows = state.get("train_rows"), len(self.tables.get("train", ()))
        if resumes and trained not in (None, rows):
            rank_zero_warn(
                f"train: the run was trained on {trained} rows before, these are {rows}; is it the same file?"
            )

    def prepare_data(self) -> None:
        """Tokenise what the verb needs, once; other processes then find it in the cache."""
        for split in self._needed():
            table = self._table(split)
            if split == "train" and self.sources["val"] is None:
                _check_divisible(table)  # before a run's folder is made

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage needs.

        Args:
            stage: fit, validate, test or predict; None opens every split that has a source.

        Raises:
            ConfigError: The trainer's module reads batches otherwise than they are made, or the trainer would make
                loaders of its own.
        """
        # Lightning leaves a trainer behind when it is done.
        if self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING:
            # For them Lightning takes a `DataLoader` apart.
            overfits = stage == "fit" and self.trainer.overfit_batches  # type: ignore[attr-defined]
            require(not overfits, "overfit_batches is set", "trainer", mend="set data.limit instead")
            module = self.trainer.lightning_module
            if hasattr(type(module), "runtime_arguments"):  # else it is another project's
                self.check_module(module, stage)
        for split in _SPLITS_OF_VERB[stage] if stage else self._needed():
            self.opened(split)

    def check_module(self, module: LightningModule, stage: str | None = None) -> None:
        """Make sure that a module of ours, where it tells, reads batches as they are meant.

        Args:
            module: A `TransformerModule`; what it leaves open is taken as agreed.
            stage: Of the run that the batches are for.

        Raises:
            ConfigError: The module knows other tokens by the numbers, or has another of what is shared with it.
        """
        self.check_task(type(module))
        tokenizer: Any = module.tokenizer
        theirs = tokenizer.get_vocab()
        if any(theirs.get(token) != number for token, number in self.tokenizer.get_vocab().items()):
            problem, mend = "the module's tokenizer has other tokens", "give both the same backbone"
            raise ConfigError(problem, where="data.backbone", mend=mend)
        for name in self.shared_with_module:
            self.check_shared(name, getattr(self, name), module.hparams.get(name))

    def check_task(self, module_class: type) -> None:
        """Make sure that modules of a class of ours, where both tell, read such batches.

        Raises:
            ConfigError: They are for another kind of task.
        """
        theirs = getattr(module_class, "task", None)
        if None not in (theirs, self.task) and theirs != self.task:
            problem = f"{type(self).__name__} makes batches for {self.task}, {module_class.__name__} reads {theirs}"
            raise ConfigError(problem, where="data", mend="give a module and data of one task")

    def check_shared(self, name: str, ours: Any, theirs: Any) -> None:
        """Make sure that an argument of a module is as the data has it, where neither leaves it open.

        Raises:
            ConfigError: It isn't.
        """
        if None not in (ours, theirs) and ours != theirs:
            mend = f"give the module {name}=data.{name}"
            raise ConfigError(f"the data has {ours!r}, the module {theirs!r}", where=f"data.{name}", mend=mend)

    def train_dataloader(self) -> Batches:
        """Shuffled batches of like length; those of another epoch once its `sampler.set_epoch` was called."""
        return self._batches("train", shuffle=True)

    def val_dataloader(self) -> Batches:
        """Validation batches, the longest first."""
        return self._batches("val")

    def test_dataloader(self) -> Batches:
        """Test batches, the longest first."""
        return self._batches("test")

    def predict_dataloader(self) -> Batches:
        """Batches to predict, the longest first; `row` counts the rows that were read, after `limit` drew from them."""
        return self._batches("predict")

    def drawn(self, split: Split, limit: int) -> Drawn:
        """Return at most so many rows of a split, drawn by the seed, to be explained."""
        return self.rows(split, sample(range(len(self.opened(split))), limit, self.seed))

    def opened(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split, which is opened where it isn't yet.

        Raises:
            ConfigError: There is no such split, or it has no source.
        """
        if split not in self.tables:
            known_name(split, self.sources, "split")
            self.tables[split] = self._open(split)
        return self.tables[split]

    def batch_of(self, split: Split, numbers: list[int]) -> dict[str, Any]:
        """Return rows of a split that is set up as a batch, as they come in training."""
        table = self.tables[split].select_columns(self.batch_columns("train"))
        return self.collate(_NumberedRows(table).__getitems__(numbers))

    def rows(self, split: Split, numbers: list[int]) -> Drawn:
        """Return rows of a split by their numbers, each once.

        Raises:
            ConfigError: The split has no such row.
        """
        table, numbers = self.opened(split), list(dict.fromkeys(numbers))
        beyond = [number for number in numbers if not 0 <= number < len(table)]
        if beyond:
            raise ConfigError(f"{split} has rows 0 to {len(table) - 1}, but no row {beyond[0]}", where=f"data.{split}")
        some = table[numbers]
        return Drawn(self.texts_of(some), self.given_of(some), numbers, len(table))

    def _needed(self) -> tuple[Split, ...]:
        if self.trainer is not None and self.trainer.state.fn is not None:
            return _SPLITS_OF_VERB[self.trainer.state.fn]
        given = tuple(split for split, source in self.sources.items() if source is not None)
        return given + (("val",) if "train" in given and "val" not in given else ())

    def _open(self, split: Split) -> datasets.Dataset:
        table = self._table(split)
        for note in self._notes_of(split):
            rank_zero_warn(f"{split}: {note}")
        if self.sources["val"] is None and split in ("train", "val"):
            _check_divisible(table)
            held_out = self._held_out(len(table))
            table = table.select(held_out if split == "val" else np.delete(np.arange(len(table)), held_out))
        truncated = numbers(table, "truncated").sum() if "truncated" in table.column_names else 0
        if truncated:
            rank_zero_warn(
                f"{split}: {truncated} of {len(table)} texts are longer than {self.length_limits} tokens"
                f" and were truncated; {self.instead_of_truncating}."
            )
        return table

    def _notes_of(self, split: Split) -> list[str]:
        if self.sources[split] is None:
            return []
        path = cache_folder() / f"{self._cache_key(split)}.notes"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def _held_out(self, rows: int) -> list[int]:
        count = min(max(1, round(rows * self.val_fraction)), rows - 1)
        return sorted(random.Random(self.seed).sample(range(rows), count))

    def _batches(self, split: Split, shuffle: bool = False) -> Batches:
        table = self.opened(split)
        sampler = BatchSampler(
            self.lengths(table),
            batch_size=self.batch_size if self.max_tokens is None else max(1, len(table)),
            max_tokens=self.max_tokens,
            shuffle=shuffle,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return Batches(
            _NumberedRows(table.select_columns(self.batch_columns(split))), sampler, self.collate, self.num_workers
        )

    def _table(self, split: Split) -> datasets.Dataset:
        """Return the split's tokenised rows, memory-mapped from the cache."""
        if split == "val" and self.sources["val"] is None and self.sources["train"] is not None:
            split = "train"
        path = cache_folder() / f"{self._cache_key(split)}.arrow"
        if not path.exists():
            self._write_table(split, path)
        return datasets.Dataset.from_file(str(path))

    def _cache_key(self, split: Split) -> str:
        identity = [
            _CACHE_FORMAT,
            f"{type(self).__module__}.{type(self).__qualname__}",
            sources.fingerprint(self.source(split)),
            repr(self.columns_of(split)),
            str(self.schema),
            tokenizer_fingerprint(self.tokenizer),
            self.options(split),
            self.limit and [self.limit, self.seed],
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def _write_table(self, split: Split, path: Path) -> None:
        self._notes = []
        rows = tqdm(self._limited(self.read(split)), desc=f"Tokenising {split}", unit=" rows", disable=None)
        with written_whole(path) as partial, pa.ipc.new_stream(str(partial), self.schema) as writer:
            for some in _chunks(rows, _ROWS_AT_ONCE):
                writer.write_table(pa.table(dict(self.tokenise(some, split)), schema=self.schema))
            if self._notes:
                write_text(path.with_suffix(".notes"), "".join(f"{note}\n" for note in self._notes), keep_earlier=False)

    def _limited(self, rows: Iterator[Row]) -> Iterable[Row]:
        if self.limit is None:
            return rows
        return sample(rows, self.limit, self.seed)


def _check_strings(given: Source, where: str) -> None:
    for one in given if isinstance(given, list | tuple) else [given]:
        require(isinstance(one, str), f"expected a string, got {one!r:.80}", where, mend="a path is given as str(path)")


def _check_divisible(table: datasets.Dataset) -> None:
    require(len(table) >= 2, "one training row can't be split in two", "data", mend="give --data.val FILE")


class _NumberedRows(Dataset[dict[str, Any]]):
    """The rows of a table, each with its number under `row`."""

    def __init__(self, table: datasets.Dataset) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        columns = self.table[rows]
        return [{"row": row} | {name: columns[name][i] for name in columns} for i, row in enumerate(rows)]


def numbers(
    table: datasets.Dataset, name: str, of: Callable[[pa.ChunkedArray], Any] = np.asarray
) -> Shaped[np.ndarray, " rows"]:
    """Return a number for each row, read a few rows at a time: `datasets` gathers drawn rows with 500 bytes for each.

    Args:
        table: The table.
        name: The column.
        of: Makes numbers of some rows of the column.
    """
    parts = table.select_columns(name).with_format("arrow").iter(_ROWS_AT_ONCE)
    return np.concatenate([np.empty(0, np.int64), *(np.asarray(of(part[name])) for part in parts)])


def sample(items: Iterable[T], size: int, seed: int) -> list[T]:
    """Draw `size` items with equal chance, in their order (Vitter's algorithm R); all, where there are fewer."""
    generator = random.Random(seed)
    drawn: list[tuple[int, T]] = []
    for number, item in enumerate(items):
        if number < size:
            drawn.append((number, item))
        elif (slot := generator.randrange(number + 1)) < size:
            drawn[slot] = (number, item)
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
