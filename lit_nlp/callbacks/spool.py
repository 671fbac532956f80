"""Rows that wait on disk until they are all there, so that memory doesn't grow with their number."""

import pickle
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, overload

import numpy as np


class Spool(Sequence[Any]):
    """A sequence that is kept in a file without a name, which vanishes with the process; 16 bytes a row in memory.

    Args:
        folder: Where the file lies: on the disk of what is written of the rows, which has room for them.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._starts, self._numbers = array("q"), array("q")

    def extend(self, rows: Iterable[Any]) -> None:
        """Append rows, whose attribute `row` is their number, or None."""
        self._file.seek(0, 2)
        for row in rows:
            self._starts.append(self._file.tell())
            self._numbers.append(-1 if row.row is None else row.row)
            pickle.dump(row, self._file)

    def sort(self) -> None:
        """Put the rows in the order of their numbers; those of one number, or without, stay as they came."""
        starts, numbers = (np.frombuffer(column, np.int64) for column in (self._starts, self._numbers))
        order = numbers.argsort(kind="stable")
        starts[:], numbers[:] = starts[order], numbers[order]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self._file.seek(self._starts[index])
        return pickle.load(self._file)
