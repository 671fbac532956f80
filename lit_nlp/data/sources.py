"""A source in one string -> checked rows with canonical columns, or an error that names file and line.

The readers stand on the standard library: those of `datasets` guess types (`NA` -> None, `007` -> 7), merge rows, and
don't tell the line. All of them stream, except for `.json`, whose text is held whole.

Quotes in a TSV are plain characters, as in GLUE and SST-2, with two exceptions for what spreadsheets and pandas write:
where every field of the header is quoted, the file has CSV's quoting; and a field that stands in quotes and has quotes
inside, all of them doubled, is taken for what CSV means by it.
"""

import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, cast

from lit_nlp.errors import DataError, did_you_mean, half_character
from lit_nlp.packages import PREFIX as PACKAGE
from lit_nlp.packages import locate

if TYPE_CHECKING:
    import datasets
    import pyarrow

HUB = "hub:"
_HUB_NAME = re.compile(
    r"hub:(?P<path>[\w.-]+(/[\w.-]+)?)(/(?P<config>[^/@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?"
)
# A quote that is never closed swallows the rest of its file: no honest field is longer than this.
_MAX_FIELD_CHARS = 2**24
_BATCH_ROWS = 1000
# A tuple: a union would be made anew for every row, which takes as long as all else that is done with a value.
_VALUES = (str, int, float, list, dict)
_SQUAD_COLUMNS = {"id", "question", "context", "answers", "title"}
_JSON_BLANK = re.compile(r"[ \t\r\n]*")
_NOT_TEXT = {
    b"\x1f\x8b": "it is compressed with gzip: add .gz to its name",
    b"PK\x03\x04": "it is a zip archive or an Excel workbook: unpack it, or export it as CSV",
    b"PAR1": "it is Parquet: end its name in .parquet",
    b"ARROW1": "it is an Arrow file: end its name in .arrow",
    b"\xff\xfe": "it is UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "it is UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
}

Cells: TypeAlias = tuple[int, list[str]]
# Its number in the file, or its place in words.
Record: TypeAlias = tuple[int | str, dict[str, Any]]


class Row(NamedTuple):
    """One row: canonical column -> value, and its place, such as `reviews.csv, line 17`."""

    values: dict[str, Any]
    where: str


class File(NamedTuple):
    """One file of a source: its name as the user gave it, which messages use, and its path."""

    name: str
    path: str

    def line(self, number: int) -> str:
        """Return the place of a line."""
        return f"{self.name}, line {number}"


@dataclass(frozen=True)
class Columns:
    """Which of the file's columns stands for which canonical column.

    Args:
        text: Canonical columns that must hold text.
        optional_text: Further ones, read where the file has them; what `mapping` names must be there.
        value: Canonical column that may hold a string, number, bool, list or object. None: not read.
        key: Canonical column with the rows' names, strings or whole numbers; read where the file has it.
        flag: Canonical column that holds whether something is so; read where the file has it.
        mapping: Canonical column -> the file's column, or a list of columns: texts are joined with a blank, the value
            becomes a dict of them. A column that isn't named here keeps its own name.
        names: The columns of a CSV or TSV that has no header.
        blank: Whether texts may be empty; otherwise the blank lines of a text file are none of its rows.
        blank_value: Whether the value may be an empty string.

    A name with a dot, where no column is called so, leads into an object: `translation.de`.
    """

    text: tuple[str, ...]
    optional_text: tuple[str, ...] = ()
    value: str | None = None
    key: str | None = None
    flag: str | None = None
    mapping: Mapping[str, str | list[str]] = field(default_factory=dict)
    names: list[str] | None = None
    blank: bool = False
    blank_value: bool = False


def read(source: str | list[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of a source, or of several in turn, all with the same canonical columns.

    Raises:
        DataError: While iterating: a file can't be found or read, lacks a column, has a broken row or one without a
            value, or has no rows.
    """
    wanted = _wanted(columns)
    first: Row | None = None
    for file, (records, unit) in [(file, _reader(file)) for file in files(source)]:
        empty = True
        for number, record in records(file, columns):
            where = f"{file.name}, {number if isinstance(number, str) else f'{unit} {number}'}"
            row = Row(_values(record, wanted, where), where)
            first, empty = first or row, False
            if row.values.keys() != first.values.keys():
                odd = ", ".join(row.values.keys() ^ first.values.keys())
                problem = f"only one of this row and the first ({first.where}) has {odd}"
                raise DataError(problem, where=where, mend="give all rows the same columns")
            yield row
        if empty:
            raise DataError("no rows", where=file.name, mend="name a file that holds data")


def first_record(source: str | list[str]) -> dict[str, Any]:
    """Return the first record of a source under the file's own names; empty where there is none.

    Raises:
        DataError: The file can't be found or read.
    """
    file = files(source)[0]
    records, _ = _reader(file)
    return next((record for _, record in records(file, Columns(text=()))), {})


def fingerprint(source: str | list[str]) -> list[str | int]:
    """Return what changes when the source's content may have changed: the key for a cache.

    Raises:
        DataError: A file or data set isn't there.
    """
    parts: list[str | int] = []
    for file in files(source):
        if file.name.startswith(HUB):
            parts += [file.name, str(_load_hub(file)._fingerprint)]
        else:
            for name, path in zip(_aligned(file.name), _aligned(file.path), strict=True):
                with _system_faults(File(name, path)):
                    stat = os.stat(path)
                parts += [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
    return parts


def files(source: str | list[str]) -> list[File]:
    """Return the files that a source names: globs sorted, packages located, `hub:` as it is.

    Raises:
        DataError: A pattern that matches nothing, a folder, a URL, an empty list, or an unknown package.
    """
    if not source:
        raise DataError("the source is empty", mend="name at least one file")
    return [file for one in ([source] if isinstance(source, str) else source) for file in _files(one)]


def lines(file: File) -> Iterator[str]:
    """Yield a text file's lines with their ends: unzipped, decoded, without the byte order mark.

    Raises:
        DataError: The file can't be read, isn't UTF-8, holds a NUL byte, or is damaged gzip.
    """
    offset = 0
    with _opened(file) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                problem = f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
                mend = _of_its_kind(raw, number) or "convert it, e.g. with iconv -f ISO-8859-1 -t UTF-8"
                raise DataError(problem, where=file.line(number), mend=mend) from error
            if "\0" in text:
                problem = f"a NUL byte at offset {offset + raw.index(0)}"
                mend = _of_its_kind(raw, number) or "remove it, e.g. with tr -d '\\000'"
                raise DataError(problem, where=file.line(number), mend=mend)
            offset += len(raw)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _of_its_kind(raw: bytes, number: int) -> str | None:
    """Return what to do with a file whose first line begins as no text does."""
    return next((mend for magic, mend in _NOT_TEXT.items() if number == 1 and raw.startswith(magic)), None)


# From a source to files, and from a file to its reader


def _files(source: str) -> list[File]:
    if source.startswith(HUB):
        return [File(source, source)]
    if "://" in source:
        raise DataError("URLs are not read", where=source, mend="download it, or name a data set as hub:owner/name")
    path = str(locate(source, DataError)) if source.startswith(PACKAGE) else os.path.expanduser(source)
    if os.path.isdir(path):
        mend = f"name its files, e.g. {source.rstrip('/')}/*.csv"
        raise DataError("a folder, not a file", where=source, mend=mend)
    if not has_magic(path) or os.path.exists(path) or len(_aligned(path)) == 2:
        return [File(source, path)]
    matches = sorted(match for match in glob(path, recursive=True) if os.path.isfile(match))
    if not matches:
        mend = f"check the pattern; relative paths start from {os.getcwd()}"
        raise DataError("no file matches", where=source, mend=mend)
    return [File(match, match) for match in matches]


def _ending(file: File) -> tuple[str, bool]:
    """Return the ending without .gz, and whether there was a .gz."""
    path = file.path.lower()
    return os.path.splitext(path.removesuffix(".gz"))[1], path.endswith(".gz")


def _reader(file: File) -> tuple[Callable[[File, Columns], Iterator[Record]], str]:
    """Return what reads the file, and whether its records are counted in lines or rows."""
    text = {".csv": _csv, ".tsv": _tsv, ".txt": _txt, ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json}
    arrow = {".parquet": _parquet, ".arrow": _arrow}
    ending, zipped = _ending(file)
    if file.name.startswith(HUB):
        return _hub, "row"
    if len(_aligned(file.path)) == 2:
        return _parallel, "line"
    if ending in arrow and not zipped:
        return arrow[ending], "row"
    if ending in text:
        return text[ending], "line"
    others = "hub:owner/name, or x.{en,de} for two files of aligned lines"
    mend = f"use {', '.join(text)} (each also with .gz), {', '.join(arrow)}, {others}"
    raise DataError("no reader for a file with this ending", where=file.name, mend=mend)


@contextmanager
def _system_faults(file: File) -> Iterator[None]:
    """Turn what the operating system and gzip report about a file into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        folder, name = os.path.split(file.path)
        near = did_you_mean(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else None
        mend = near or f"relative paths start from {os.getcwd()}"
        raise DataError("no such file", where=file.name, mend=mend) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"damaged gzip: {error}", where=file.name, mend="copy or compress it again") from error
    except OSError as error:
        problem = f"can't be read: {error.strerror or error}"
        raise DataError(problem, where=file.name, mend="check the file and its permissions") from error


@contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    with _system_faults(file), open(file.path, "rb") as raw:
        yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw))) if _ending(file)[1] else raw


# CSV, TSV and plain text


def _csv(file: File, columns: Columns) -> Iterator[Record]:
    return _table(file, _quoted_rows(file, ","), ",", columns)


def _tsv(file: File, columns: Columns) -> Iterator[Record]:
    header = next(lines(file), "").rstrip("\r\n").split("\t")
    quoted = columns.names is None and all(re.fullmatch('".+"', name) for name in header)
    return _table(file, _quoted_rows(file, "\t") if quoted else _plain_rows(file), "\t", columns)


def _txt(file: File, columns: Columns) -> Iterator[Record]:
    _check_columns(columns, ["text"], file.name)
    numbered = enumerate(lines(file), 1)
    return ((number, {"text": line.rstrip("\r\n")}) for number, line in numbered if columns.blank or line.strip())


def _aligned(path: str) -> list[str]:
    """Return the two paths that ``train.{en,de}`` stands for, where it has this form; else the path alone."""
    pair = re.fullmatch(r"(.*)\{([^{},]+),([^{},]+)\}(.*)", path)
    return [f"{pair[1]}{side}{pair[4]}" for side in (pair[2], pair[3])] if pair else [path]


def _parallel(file: File, columns: Columns) -> Iterator[Record]:
    """Yield the lines of two files that belong together, under `source` and `target`."""
    names = _aligned(file.name)
    both = [lines(File(name, path)) for name, path in zip(names, _aligned(file.path), strict=True)]
    _check_columns(columns, ["source", "target"], file.name)
    for number, (source, target) in enumerate(zip_longest(*both), 1):
        if source is None or target is None:
            short, long = names if source is None else reversed(names)
            problem = f"it ends after {number - 1} lines, and {long} has more"
            raise DataError(problem, where=short, mend="give two files whose lines belong together")
        yield number, {"source": source.rstrip("\r\n"), "target": target.rstrip("\r\n")}


def _table(file: File, cells: Iterable[Cells], delimiter: str, columns: Columns) -> Iterator[Record]:
    """Yield the rows below the header, each found to be as wide as the header."""
    rows = _without_blank_end(file, cells)
    first = next(rows, None)
    if first is None:
        return
    _check_header(file, first, delimiter, columns)
    header = columns.names or first[1]
    for number, fields in chain([first], rows) if columns.names else rows:
        if len(fields) != len(header):
            problem = f"{_count(fields)} where {len(header)} are expected"
            mend = "quote the field that holds a comma, and close every quote"
            if delimiter == "\t":
                mend = "replace the tabs and line breaks inside its fields, or save the file as .csv"
            raise DataError(problem, where=file.line(number), mend=mend)
        yield number, dict(zip(header, fields, strict=True))


def _check_header(file: File, first: Cells, delimiter: str, columns: Columns) -> None:
    fields, names, where = first[1], columns.names, file.line(first[0])
    for other, mend in ("\t", "rename it to .tsv"), (",", "rename it to .csv"), (";", "save it with commas"):
        if other != delimiter and len(fields) == 1 and other in fields[0] and (names is None or len(names) > 1):
            raise DataError(f"the columns are separated by {other!r}, not {delimiter!r}", where=where, mend=mend)
    if names == fields:
        raise DataError("the file has a header already", where=where, mend="leave `column_names` out")
    if names and len(names) != len(fields):
        problem = f"{_count(fields)}, but {len(names)} in `column_names`"
        raise DataError(problem, where=where, mend="name each column of the file, from left to right")
    _check_columns(columns, names or fields, file.name, header=names is None)
    _check_unique(names or fields, where)


def _without_blank_end(file: File, rows: Iterable[Cells]) -> Iterator[Cells]:
    blank = None
    for number, fields in rows:
        if not fields or (len(fields) == 1 and fields[0].isspace()):
            blank = blank or number
        elif blank:
            raise DataError("a blank line between the rows", where=file.line(blank), mend="delete it")
        else:
            yield number, fields


def _plain_rows(file: File) -> Iterator[Cells]:
    for number, line in enumerate(lines(file), 1):
        text = line.rstrip("\r\n")
        if "\r" in text:
            raise _carriage_return(file, number)
        fields = text.split("\t") if text else []
        yield number, [_unquoted(each) for each in fields] if '""' in text else fields


def _unquoted(text: str) -> str:
    inside = text[1:-1]
    quoted = text.startswith('"') and text.endswith('"') and '""' in inside
    return inside.replace('""', '"') if quoted and '"' not in inside.replace('""', "") else text


def _quoted_rows(file: File, delimiter: str) -> Iterator[Cells]:
    """Yield rows with RFC 4180's quoting, each with the number of the line where it starts."""
    row: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines(file):
            row.append(line)
            yield line

    # csv knows only one limit for the whole process, and its 131,072 are too few for documents.
    csv.field_size_limit(max(_MAX_FIELD_CHARS, csv.field_size_limit()))
    rows = csv.reader(remembered(), delimiter=delimiter, strict=True)
    while True:
        row.clear()
        start = rows.line_num + 1
        try:
            fields = next(rows, None)
        except csv.Error as error:
            if "new-line" in str(error):
                raise _carriage_return(file, rows.line_num) from error
            raise _quote_fault(file, start, "".join(row), delimiter) from error
        if fields is None:
            return
        yield start, fields


def _quote_fault(file: File, start: int, row: str, delimiter: str) -> DataError:
    """Return the error for a row that csv refused, with the line where the faulty quote opened."""
    # Possessive: nothing is tried twice, since the text after a quote that stays open is long.
    quoted = r'"[^"]*+(?:""[^"]*+)*+"'
    sound, at = re.compile(rf'(?:{quoted}|(?!")[^{delimiter}\r\n]*+){delimiter}'), 0
    while match := sound.match(row, at):
        at = match.end()
    closed = re.compile(quoted).match(row, at)
    end = f"closes amid text in line {start + _newlines(row, closed.end())}" if closed else "stays open"
    mend = 'close it where the field ends, and double the quotes inside the field ("")'
    where = file.line(start + _newlines(row, at))
    return DataError(f"the quote that opens here {end}: {shortened(row[at:])}", where=where, mend=mend)


def _carriage_return(file: File, number: int) -> DataError:
    problem = "a carriage return inside a field or as the end of a line"
    return DataError(problem, where=file.line(number), mend="convert it, e.g. with tr '\\r' '\\n'")


def _newlines(text: str, end: int) -> int:
    return text.count("\n", 0, end)


def _count(fields: list[str]) -> str:
    return f"{len(fields)} field{'s' * (len(fields) != 1)}"


# JSON


def _jsonl(file: File, columns: Columns) -> Iterator[Record]:
    for number, line in enumerate(lines(file), 1):
        if text := line.rstrip():
            value, end = _decode(file, text, len(text) - len(text.lstrip()), number)
            if end < len(text):
                raise _broken(file, "more follows the first value", text, end, number)
            yield number, _object(file, value, number)


def _json(file: File, columns: Columns) -> Iterator[Record]:
    text = "".join(lines(file))
    at = _after_blank(text, 0)
    if at == len(text):
        return
    if text[at] != "[":
        yield from _squad(file, _decode(file, text, at, 1, whole=False)[0], columns)
        return
    if text.startswith("]", _after_blank(text, at + 1)):
        return
    number, counted = 1, 0
    while text[at] in "[,":  # object by object, since a list that is parsed whole forgets its lines
        at = _after_blank(text, at + 1)
        number, counted = number + text.count("\n", counted, at), at
        value, end = _decode(file, text, at, 1)
        yield number, _object(file, value, number)
        at = _after_blank(text, end)
        if not text.startswith((",", "]"), at):
            raise _broken(file, "expected ',' or ']'", text, at, 1)
    if (end := _after_blank(text, at + 1)) < len(text):
        raise _broken(file, "more follows the list", text, end, 1)


def _after_blank(text: str, at: int) -> int:
    return _JSON_BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too


def _decode(file: File, text: str, at: int, first_line: int, *, whole: bool = True) -> tuple[Any, int]:
    """Return the JSON value that begins at `at`, and where it ends; `text` begins in `first_line`.

    Where it is `whole`, its texts are found to be so, too.
    """
    try:
        value, end = _DECODER.raw_decode(text, at)
        if whole and text.find("\\u", at, end) >= 0:
            _check_surrogates(value, lambda: file.line(first_line + _newlines(text, at)))
        return value, end
    except json.JSONDecodeError as error:
        raise _broken(file, error.msg, text, error.pos, first_line) from error
    except (ValueError, RecursionError) as error:
        raise _broken(file, str(error), text, at, first_line, "correct the object that begins here") from error


def _check_surrogates(value: Any, where: Callable[[], str]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()  # fails where half of a surrogate pair was escaped
    except UnicodeEncodeError as error:
        raise half_character(where()) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _broken(file: File, problem: str, text: str, at: int, first_line: int, mend: str | None = None) -> DataError:
    where = f"{file.line(first_line + _newlines(text, at))}, column {at - text.rfind(chr(10), 0, at)}"
    return DataError(f"broken JSON: {problem}", where=where, mend=mend or _json_mend(file))


def _object(file: File, value: Any, number: int) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(f"expected an object, got {_kind(value)}", where=file.line(number), mend=_json_mend(file))


def _squad(file: File, value: Any, columns: Columns) -> Iterator[Record]:
    """Yield the questions of SQuAD 1.1 or 2.0 JSON, each with its context and the title of its article.

    https://rajpurkar.github.io/SQuAD-explorer
    """
    articles = value.get("data") if isinstance(value, dict) else None
    if not isinstance(articles, list) or not ("version" in value or _holds(articles[:1], "paragraphs")):
        problem, mend = f"expected a list of objects, got {_kind(value)}", _json_mend(file)
        if isinstance(articles, list):
            mend = "give the list under 'data' alone; SQuAD's has articles there, each with its paragraphs"
        raise DataError(problem, where=file.name, mend=mend)
    needed = {name for _, names, _, optional in _wanted(columns) if not optional for name in names}
    if not needed <= _SQUAD_COLUMNS:
        mend = "let question_answering read it, or give a list of objects"
        raise DataError("this is SQuAD JSON", where=file.name, mend=mend)
    for a, article in enumerate(articles, 1):
        for p, paragraph in enumerate(_part(file, article, "paragraphs", list, f"article {a}"), 1):
            place = f"article {a}, paragraph {p}"
            context = _part(file, paragraph, "context", str, place)
            for q, asked in enumerate(_part(file, paragraph, "qas", list, place), 1):
                name = f"{place}, question {asked.get('id', q) if isinstance(asked, dict) else q}"
                _part(file, asked, "question", str, name)
                title = {"title": article["title"]} if "title" in article else {}
                yield name, _squad_row(file, asked, name) | {"context": context} | title


def _squad_row(file: File, asked: dict[str, Any], name: str) -> dict[str, Any]:
    names = ("id", "question", "answers", "is_impossible")
    row: dict[str, Any] = {key: asked[key] for key in names if key in asked}
    if row.get("is_impossible"):
        row.setdefault("answers", [])
    _check_surrogates(row, lambda: f"{file.name}, {name}")
    return row


def _part(file: File, value: Any, key: str, kind: type, place: str) -> Any:
    """Return what stands under a key of SQuAD JSON, found to be of the right kind."""
    where = f"{file.name}, {place}"
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        found = _kind(value[key]) if isinstance(value, dict) and key in value else "nothing"
        problem = f"expected {'text' if kind is str else 'a list'} under {key!r}, got {found}"
        raise DataError(problem, where=where, mend="write it as SQuAD does: data, paragraphs, context, qas, question")
    part = value[key]
    if kind is str:
        _check_surrogates(part, lambda: where)
    return part


def _holds(values: list[Any], key: str) -> bool:
    return any(isinstance(value, dict) and key in value for value in values)


def _json_mend(file: File) -> str:
    if _ending(file)[0] == ".json":
        return "give one list of objects, or name a file with one object on each line .jsonl"
    return "write one whole object on each line, or name a file that is one list .json"


# Parquet, Arrow and the hub


def _parquet(file: File, columns: Columns) -> Iterator[Record]:
    import pyarrow.parquet

    with _opened(file) as stream, _arrow_faults(file):
        table = pyarrow.parquet.ParquetFile(stream)
        names = _present(table.schema_arrow, columns, file.name)
        batches = table.iter_batches(_BATCH_ROWS, columns=names)
        yield from _arrow_records(file, table.schema_arrow, names, batches)


def _arrow(file: File, columns: Columns) -> Iterator[Record]:
    import pyarrow.ipc

    with _opened(file) as stream, _arrow_faults(file):
        streamed = stream.read(6) != b"ARROW1"
        stream.seek(0)
        table = pyarrow.ipc.open_stream(stream) if streamed else pyarrow.ipc.open_file(stream)
        batches = table if streamed else map(table.get_batch, range(table.num_record_batches))
        yield from _arrow_records(file, table.schema, _present(table.schema, columns, file.name), batches)


def _hub(file: File, columns: Columns) -> Iterator[Record]:
    dataset = _load_hub(file)
    schema = dataset.features.arrow_schema
    names = _present(schema, columns, file.name)
    batches = dataset.select_columns(names).with_format("arrow").iter(_BATCH_ROWS)
    return _arrow_records(file, schema, names, batches)


def _load_hub(file: File) -> "datasets.Dataset":
    parts = _HUB_NAME.fullmatch(file.name)
    if parts is None:
        mend = "write hub:owner/name[/config][@revision][#split]"
        raise DataError("not the name of a data set", where=file.name, mend=mend)
    path, split = parts["path"], parts["split"] or "train"
    if os.path.exists(path):
        problem = f"`datasets` would read the local {path} in its place"
        raise DataError(problem, where=file.name, mend="name its files, or start from another folder")
    import datasets

    try:
        return datasets.load_dataset(path, parts["config"], revision=parts["revision"], split=split)
    except Exception as error:  # whatever the builders, the network and the disk raise
        problem = f"can't be loaded: {type(error).__name__}: {shortened(str(error), 200)}"
        mend = "check name, config, revision and split, and that the hub is in reach or the set in the cache"
        raise DataError(problem, where=file.name, mend=mend) from error


@contextmanager
def _arrow_faults(file: File) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        problem = f"not a sound {_ending(file)[0]} file: {shortened(str(error), 200)}"
        raise DataError(problem, where=file.name, mend="write or copy it again") from error


def _present(schema: "pyarrow.Schema", columns: Columns, where: str) -> list[str]:
    """Return the columns to read from a file with this schema."""
    _check_columns(columns, schema.names, where)
    asked = {name for wanted in _wanted(columns) for name in wanted.columns}
    asked |= {name.partition(".")[0] for name in asked}
    names = [name for name in schema.names if name in asked] or schema.names
    _check_unique(names, where)
    return names


def _arrow_records(file: File, schema: "pyarrow.Schema", names: list[str], batches: Iterable[Any]) -> Iterator[Record]:
    classes = {name: labels for name, labels in _class_labels(schema).items() if name in names}
    parts = (batch.slice(at, _BATCH_ROWS) for batch in batches for at in range(0, batch.num_rows, _BATCH_ROWS))
    for number, record in enumerate(chain.from_iterable(part.select(names).to_pylist() for part in parts), 1):
        for name, labels in classes.items():
            record[name] = _class_name(record[name], labels, f"{file.name}, row {number}")
        yield number, record


def _class_labels(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """Return column -> names of its classes, which `datasets` writes beside the schema."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    labels = {}
    for name, feature in info.get("features", {}).items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            labels[name] = inner["names"]
    return labels


def _class_name(value: Any, labels: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_class_name(each, labels, where) for each in value]
    if value is None or 0 <= value < len(labels):
        return value if value is None else labels[value]
    problem = f"class {value} is none of 0 to {len(labels) - 1}"
    raise DataError(problem, where=where, mend="-1 stands for no label: take a split that is labelled")


# From a record to a row


class _Wanted(NamedTuple):
    """A canonical column, the file's columns behind it, and what makes the one of the others."""

    canonical: str
    columns: list[str]
    make: Callable[[dict[str, Any], list[str], str], Any]
    optional: bool = False


def _wanted(columns: Columns) -> list[_Wanted]:
    def listed(canonical: str) -> list[str]:
        mapped = columns.mapping.get(canonical, canonical)
        return [mapped] if isinstance(mapped, str) else list(mapped)

    text = _any_text if columns.blank else _text
    wanted = [_Wanted(name, listed(name), text) for name in columns.text]
    for name in columns.optional_text:
        wanted.append(_Wanted(name, listed(name), text, optional=name not in columns.mapping))
    if columns.value is not None:
        single = isinstance(columns.mapping.get(columns.value, ""), str)
        one = _value_or_blank if columns.blank_value else _value
        wanted.append(_Wanted(columns.value, listed(columns.value), one if single else partial(_by_column, one)))
    if columns.key is not None:
        wanted.append(_Wanted(columns.key, listed(columns.key), _key, optional=columns.key not in columns.mapping))
    if columns.flag is not None:
        wanted.append(_Wanted(columns.flag, listed(columns.flag), _flag, optional=columns.flag not in columns.mapping))
    return wanted


def _values(record: dict[str, Any], wanted: list[_Wanted], where: str) -> dict[str, Any]:
    values = {}
    for canonical, columns, make, optional in wanted:
        try:
            values[canonical] = make(record, columns, where)
        except KeyError:
            if not optional:
                raise _missing(canonical, columns, record, where) from None
    return values


def _cell(record: dict[str, Any], name: str) -> Any:
    """Return a record's value; a dotted name leads into objects.

    Raises:
        KeyError: There is none.
    """
    if name in record or "." not in name:
        return record[name]
    outer, _, inner = name.partition(".")
    if not isinstance(record[outer], dict):
        raise KeyError(name)
    return _cell(record[outer], inner)


def _any_text(record: dict[str, Any], columns: list[str], where: str) -> str:
    cells = [_cell(record, name) for name in columns]
    for name, cell in zip(columns, cells, strict=True):
        if not isinstance(cell, str):
            problem = f"column {name!r} holds {_kind(cell)}, not text"
            raise DataError(problem, where=where, mend="write it as a string, or delete the row")
    return str(cells[0]) if len(cells) == 1 else " ".join([cell for cell in cells if cell.strip()])


def _text(record: dict[str, Any], columns: list[str], where: str) -> str:
    text = _any_text(record, columns, where)
    if not text or text.isspace():
        problem = f"no text in column {' or '.join(map(repr, columns))}"
        raise DataError(problem, where=where, mend="fill it in, or delete the row")
    return text


def _value(record: dict[str, Any], columns: list[str], where: str) -> Any:
    value = _cell(record, columns[0])
    blank = isinstance(value, str) and not value.strip()
    if blank or value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"no value in column {columns[0]!r}", where=where, mend="fill it in, or delete the row")
    if not isinstance(value, _VALUES):
        mend = "write it as a string, number, bool or list"
        raise DataError(f"column {columns[0]!r} holds {_kind(value)}", where=where, mend=mend)
    return value


def _key(record: dict[str, Any], columns: list[str], where: str) -> str:
    value = _cell(record, columns[0])
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        problem = f"column {columns[0]!r} holds {_kind(value)}, which names no row"
        raise DataError(problem, where=where, mend="write a string or a whole number")
    return str(value)


def _flag(record: dict[str, Any], columns: list[str], where: str) -> bool:
    value = _cell(record, columns[0])
    told = str(value).lower()
    if told not in ("true", "false", "1", "0"):
        problem = f"column {columns[0]!r} holds {_kind(value)}, neither true nor false"
        raise DataError(problem, where=where, mend="write true or false")
    return told in ("true", "1")


def _value_or_blank(record: dict[str, Any], columns: list[str], where: str) -> Any:
    value = _cell(record, columns[0])
    return "" if isinstance(value, str) and not value.strip() else _value(record, columns, where)


def _by_column(one: Callable[..., Any], record: dict[str, Any], columns: list[str], where: str) -> dict[str, Any]:
    return {name: one(record, [name], where) for name in columns}


def _check_unique(names: list[str], where: str) -> None:
    for name in names:
        if name and names.count(name) > 1:
            mend = "rename or delete one of the two"
            raise DataError(f"column {shortened(name)!r} stands twice", where=where, mend=mend)


def _check_columns(columns: Columns, there: list[str], where: str, *, header: bool = False) -> None:
    for canonical, names, _, optional in _wanted(columns):
        roots = {name if name in there else name.partition(".")[0] for name in names}
        if not optional and not roots <= set(there):
            raise _missing(canonical, names, there, where, header=header)


def _missing(
    canonical: str, names: list[str], there: Collection[str], where: str, *, header: bool = False
) -> DataError:
    absent = [name for name in names if name not in there]
    # A name with a dot may lead into a column that is there.
    lacking = next((name for name in absent if name.partition(".")[0] not in there), absent[0])
    near = did_you_mean(lacking, there)
    mend = f"{near or ''} map it with `columns`, as in {{{canonical}: ITS_NAME}}"
    if header and any(name.isdigit() or name.count(" ") > 3 for name in there):
        mend = "line 1 looks like data: name the columns with `column_names`, as in [text, label]"
    elif header and not near:
        mend += ", or name the columns with `column_names` if line 1 is data"
    shown = ", ".join(map(shortened, list(there)[:20])) or "none"
    return DataError(f"no column {lacking!r} among {shown}", where=where, mend=mend)


def _kind(value: Any) -> str:
    names = {bool: "a bool", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    name = names.get(type(value), type(value).__name__)
    return "null" if value is None else f"{name} ({shortened(repr(value))})"


def shortened(text: str, most: int = 40) -> str:
    """Return a text on one line and not too long for a message."""
    flat = " ".join(text[: 2 * most].split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
