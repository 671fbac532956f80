"""Writing results: whole or not at all, and never over an earlier one."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from lit_nlp.errors import UserError

# JSON leaves these in strings as they are, but many readers end a line at them.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def cache_folder() -> Path:
    """Return where tokenised tables and tokenizers are kept: `$LIT_NLP_CACHE`, else `~/.cache/lit_nlp`."""
    return Path(os.environ.get("LIT_NLP_CACHE") or Path.home() / ".cache" / "lit_nlp")


@contextmanager
def written_whole(path: Path, *, keep_earlier: bool = False) -> Iterator[Path]:
    """Give a path beside the target to write to, which is synced and moved there once it is whole.

    Whatever fails or is killed meanwhile, the target is as it was, or new and whole.

    Args:
        keep_earlier: Keep an earlier file of the name beside it, as ``name-1.json``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        kept = unused(path.with_name(f"{path.stem}-1{path.suffix}"))
        if keep_earlier and path.exists():
            _keep(path, kept)
        try:
            os.replace(partial, path)
        except OSError:
            kept.unlink(missing_ok=True)
            raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder beside the target to write files to, which becomes the target once it is whole.

    Args:
        replace: Put it in the place of an earlier one. Otherwise that one stays.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    earlier = partial.with_suffix(".earlier")
    try:
        yield partial
        for path in (partial, *partial.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if replace and folder.exists():
            os.replace(folder, earlier)
        try:
            os.replace(partial, folder)
        except OSError:
            if replace or not folder.exists():  # else another process of the run was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def usable_folder(folder: Path) -> Path:
    """Make a folder, and try whether it can be written: before the work that will be written there.

    Raises:
        UserError: It can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    mend = "choose another name" if isinstance(error, FileExistsError | NotADirectoryError) else ""
    mend = mend or "choose a folder that you may write"
    return UserError(f"it can't be written ({error.strerror})", where=str(path), mend=mend)


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, or where the file system has no links a copy of that name."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)


def write_text(path: Path, text: str, *, keep_earlier: bool = True) -> None:
    """Write a file in one move, as `write_lines` does."""
    write_lines(path, [text], keep_earlier=keep_earlier)


def write_lines(path: Path, lines: Iterable[str], *, keep_earlier: bool = True) -> None:
    """Write a file in one move, from lines, or other pieces of it, that are made one by one.

    Args:
        keep_earlier: As for `written_whole`.

    Raises:
        UserError: The folder can't be written.
    """
    try:
        with written_whole(path, keep_earlier=keep_earlier) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, as `write_lines` does."""
    write_lines(path, json_lines(rows))


def json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield one JSON object a line, each a line to every reader; null where a number isn't finite."""
    return (_as_json(row).translate(_LINE_ENDS) + "\n" for row in rows)


def _as_json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False)


def _finite(value: Any) -> Any:
    """Return a value with null for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unused(path: Path) -> Path:
    """Return the path, or the first of ``name-2``, ``name-3``, … that isn't taken."""
    if not path.exists():
        return path
    stem = path.stem.removesuffix("-1")
    return next(free for number in count(2) if not (free := path.with_name(f"{stem}-{number}{path.suffix}")).exists())
