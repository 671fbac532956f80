import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_nlp.callbacks.spool import Spool


@dataclass
class Row:
    row: int | None
    text: str = ""


def test_rows_come_back_in_the_order_of_their_numbers_however_often_they_are_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.extend([Row(2, "c"), Row(0, "a")])
    assert spool[0] == Row(2, "c")
    spool.extend([Row(None, "x"), Row(1, "b\n")])
    spool.sort()
    expected = [Row(None, "x"), Row(0, "a"), Row(1, "b\n"), Row(2, "c")]
    assert list(spool) == list(spool) == expected
    assert spool[1:3] == expected[1:3]
    with pytest.raises(IndexError):
        spool[4]
    spool.extend([Row(0, "later")])
    spool.sort()
    assert list(spool) == [*expected[:2], Row(0, "later"), *expected[2:]]


def test_it_leaves_no_file_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    spool.extend([Row(0)])
    assert list((tmp_path / "run").iterdir()) == []


def test_memory_does_not_grow_with_the_rows_text(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    tracemalloc.start()
    try:
        spool.extend(Row(i, f"{i}" * 10_000) for i in range(500))
        spool.sort()
        assert sum(len(row.text) for row in spool) > 10_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
