"""A result is written whole or not at all, and an earlier one is kept beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_nlp.errors import UserError
from lit_nlp.files import folder_written_whole, unused, write_jsonl, write_text


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_a_file_is_written_with_its_folders_and_can_be_read_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run" / "metrics.json"
    write_text(path, "Grüße 🎬\n")
    assert path.read_bytes() == "Grüße 🎬\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert contents(path.parent) == {"metrics.json": "Grüße 🎬\n"}


def test_earlier_files_are_kept_in_the_order_they_were_written(tmp_path: Path) -> None:
    for number in range(4):
        write_text(tmp_path / "metrics.json", str(number))
    assert contents(tmp_path) == {
        "metrics.json": "3",
        "metrics-1.json": "0",
        "metrics-2.json": "1",
        "metrics-3.json": "2",
    }


def test_a_file_whose_own_name_ends_in_a_number_keeps_its_earlier_ones_apart(tmp_path: Path) -> None:
    write_text(tmp_path / "run.json", "other")
    for number in range(3):
        write_text(tmp_path / "run-1.json", str(number))
    assert contents(tmp_path) == {"run.json": "other", "run-1.json": "2", "run-1-1.json": "0", "run-1-2.json": "1"}


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "earlier")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(UserError) as caught:
        write_text(path, "later")
    assert str(caught.value) == (
        f"{path}: it can't be written (No space left on device); choose a folder that you may write"
    )
    assert contents(tmp_path) == {"metrics.json": "earlier"}


def test_a_text_that_can_not_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "half of a pair: \ud83c")
    assert contents(tmp_path) == {}


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/metrics.json: it can't be written .*; choose another name"):
        write_text(tmp_path / "file" / "metrics.json", "")


def test_rows_become_one_json_object_a_line(tmp_path: Path) -> None:
    rows = [{"text": "Grüße\n\u2028", "row": 0}, {"text": None, "score": 0.5}]
    write_jsonl(tmp_path / "rows.jsonl", iter(rows))
    raw = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert raw.endswith("\n")
    assert "Grüße" in raw, "people read these files"
    assert [json.loads(line) for line in raw[:-1].split("\n")] == rows


def test_numbers_that_json_has_no_word_for_are_null(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"losses": [float("nan"), 1.5], "of": {"a": -float("inf")}}])
    assert contents(tmp_path) == {"rows.jsonl": '{"losses": [null, 1.5], "of": {"a": null}}\n'}


def test_rows_that_fail_half_way_leave_no_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"row": 0}
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_jsonl(tmp_path / "rows.jsonl", rows())
    assert contents(tmp_path) == {}


def test_a_name_that_is_taken_gets_the_first_free_number(tmp_path: Path) -> None:
    assert unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert unused(tmp_path / "run") == tmp_path / "run-2"
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-4").mkdir()
    assert unused(tmp_path / "run") == tmp_path / "run-3"


def test_a_folder_appears_whole_and_can_be_read_by_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "backbone"
    with folder_written_whole(target, replace=False) as partial:
        (partial / "config.json").write_text("{}")
        assert not target.exists()
    assert [path.name for path in target.parent.rglob("*")] == ["backbone", "config.json"]
    assert (target.stat().st_mode & 0o777, (target / "config.json").stat().st_mode & 0o777) == (0o755, 0o644)


@pytest.mark.parametrize(("replace", "left"), [(True, "new"), (False, "old")])
def test_a_folder_that_is_there_is_replaced_only_where_asked(tmp_path: Path, replace: bool, left: str) -> None:
    target = tmp_path / "backbone"
    target.mkdir()
    (target / "old").touch()
    with folder_written_whole(target, replace=replace) as partial:
        (partial / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["backbone", left]


def test_a_folder_behind_a_link_is_replaced_and_its_folders_can_be_entered(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "backbone").symlink_to(tmp_path / "disk")
    with folder_written_whole(tmp_path / "backbone", replace=True) as partial:
        (partial / "templates").mkdir(mode=0o700)
        (partial / "templates" / "chat").touch()
    assert (tmp_path / "backbone").is_symlink()
    assert (tmp_path / "disk" / "templates" / "chat").exists()
    assert (tmp_path / "disk" / "templates").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "backbone"}


def test_a_folder_that_fails_half_way_leaves_the_earlier_one(tmp_path: Path) -> None:
    def fail() -> None:
        with folder_written_whole(tmp_path / "backbone", replace=True) as partial:
            (partial / "new").touch()
            raise RuntimeError("out of memory")

    (tmp_path / "backbone").mkdir()
    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["backbone"]
