"""Every way in which a file of texts is known to go wrong, and what the reader says about it."""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from lit_nlp.data.sources import Columns, Row, files, fingerprint, lines, read
from lit_nlp.errors import DataError

TEXT = Columns(("text",))
BOTH = Columns(("text",), value="label")
PAIR = Columns(("text",), optional_text=("text_pair",))
NAMED = Columns(("text",), value="label", names=["text", "label"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> str:
    raw = content if isinstance(content, bytes) else content.encode()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return name


def rows(name: str, content: str | bytes, columns: Columns = BOTH) -> list[Row]:
    return list(read(write(name, content), columns))


def values(name: str, content: str | bytes, columns: Columns = BOTH) -> list[tuple[Any, ...]]:
    return [tuple(row.values.values()) for row in rows(name, content, columns)]


def error(source: Any, columns: Columns = BOTH) -> str:
    with pytest.raises(DataError) as caught:
        list(read(source, columns))
    assert caught.value.mend, "every error has a mend"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(name: str, content: str | bytes, columns: Columns = BOTH) -> str:
    return error(write(name, content), columns)


# What is read


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("r.csv", 'label,text\nx,"a, b"\ny,c\n', ["r.csv, line 2", "r.csv, line 3"]),
        ("r.tsv", "text\tlabel\na, b\tx\nc\ty\n", ["r.tsv, line 2", "r.tsv, line 3"]),
        (
            "r.jsonl",
            '{"text": "a, b", "label": "x"}\n\n {"label": "y", "text": "c"} \n',
            ["r.jsonl, line 1", "r.jsonl, line 3"],
        ),
        (
            "r.ndjson",
            '{"text": "a, b", "label": "x"}\n{"label": "y", "text": "c"}',
            ["r.ndjson, line 1", "r.ndjson, line 2"],
        ),
        (
            "r.json",
            '\n[\n{"text": "a, b",\n "label": "x"}\n,\n{"label": "y", "text": "c"}]\n',
            ["r.json, line 3", "r.json, line 6"],
        ),
        ("R.CSV", 'text,label\n"a, b",x\nc,y', ["R.CSV, line 2", "R.CSV, line 3"]),
    ],
)
def test_each_text_format_gives_the_same_rows_and_their_lines(
    name: str, content: str, where: list[str], ending: str
) -> None:
    read_rows = rows(name + ending, content)
    assert [row.values for row in read_rows] == [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]
    assert [row.where.replace(".gz", "") for row in read_rows] == where
    assert ending in read_rows[0].where


def arrow_table(**columns: Any) -> pa.Table:
    return pa.table({"text": ["a, b", "c"], "label": ["x", "y"], **columns})


def write_arrow(name: str, table: pa.Table) -> str:
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(table, name, row_group_size=1)
    else:
        new = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
        with new(name, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    return name


ARROW_NAMES = pytest.mark.parametrize("name", ["r.parquet", "file.arrow", "stream.arrow"])


@ARROW_NAMES
def test_parquet_and_arrow_give_rows_counted_from_one(name: str) -> None:
    assert list(read(write_arrow(name, arrow_table()), BOTH)) == [
        Row({"text": "a, b", "label": "x"}, f"{name}, row 1"),
        Row({"text": "c", "label": "y"}, f"{name}, row 2"),
    ]


def test_a_txt_file_is_one_text_a_line_without_the_blank_ones() -> None:
    assert rows("r.txt", "one\n\n  \ntwo \r\n", TEXT) == [
        Row({"text": "one"}, "r.txt, line 1"),
        Row({"text": "two "}, "r.txt, line 4"),
    ]


@pytest.mark.parametrize(
    "text", ["NA", "null", "None", "nan", "007", "1e5", "True", "#N/A", "-", '5" disk', "a\u2028b"]
)
def test_texts_that_look_like_something_else_stay_as_they_are(text: str) -> None:
    assert values("r.csv", f"text,label\n{text},{text}\n") == [(text, text)]
    assert values("r.tsv", f"text\tlabel\n{text}\t{text}\n") == [(text, text)]
    assert values("r.jsonl", json.dumps({"text": text, "label": text}, ensure_ascii=False)) == [(text, text)]
    (row,) = read(write_arrow("r.parquet", pa.table({"text": [text], "label": [text]})), BOTH)
    assert row.values == {"text": text, "label": text}


@pytest.mark.parametrize("label", [1, 1.5, -1, True, "1", ["a", "b"], [], {"text": ["a"], "answer_start": [3]}])
def test_a_label_keeps_its_type_in_json_and_arrow(label: Any) -> None:
    ((_, got),) = values("r.jsonl", json.dumps({"text": "a", "label": label}))
    assert (got, type(got)) == (label, type(label))
    (row,) = read(write_arrow("r.parquet", pa.table({"text": ["a"], "label": [label]})), BOTH)
    assert (row.values["label"], type(row.values["label"])) == (label, type(label))


def test_a_label_of_a_csv_or_tsv_is_always_a_string() -> None:
    assert values("r.csv", "text,label\na,1\n") == values("r.tsv", "text\tlabel\na\t1\n") == [("a", "1")]


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl", "r.json", "r.txt"])
def test_a_byte_order_mark_and_crlf_leave_no_trace(name: str) -> None:
    content = {
        "r.csv": "text\r\ngut\r\n",
        "r.tsv": "text\r\ngut\r\n",
        "r.jsonl": '{"text": "gut"}\r\n\r\n',
        "r.json": '[{"text": "gut"}]\r\n',
        "r.txt": "gut\r\n",
    }[name]
    assert values(name, b"\xef\xbb\xbf" + content.encode(), TEXT) == [("gut",)]


def test_columns_are_mapped_and_joined() -> None:
    columns = Columns(("text",), value="label", mapping={"text": ["title", "body"], "label": "class"})
    assert values("r.csv", "class,title,body\nx,A title,a body\ny,,only\n", columns) == [
        ("A title a body", "x"),
        ("only", "y"),
    ]


def test_a_list_of_value_columns_gives_a_dict() -> None:
    columns = Columns(("text",), value="label", mapping={"label": ["toxic", "rude"]})
    assert values("r.csv", "text,toxic,rude\na,0,1\n", columns) == [("a", {"toxic": "0", "rude": "1"})]


def test_only_what_is_asked_for_is_read() -> None:
    assert rows("r.csv", "text,label,other\na,,x\n", TEXT)[0].values == {"text": "a"}
    assert rows("r.jsonl", '{"text": "a"}\n{"text": "b", "other": 1}', TEXT)[1].values == {"text": "b"}
    assert next(read(write_arrow("r.parquet", arrow_table(other=[1, 2])), TEXT)).values == {"text": "a, b"}


def test_optional_text_is_read_where_the_file_has_it() -> None:
    assert values("r.csv", "text,text_pair\na,b\n", PAIR) == [("a", "b")]
    assert values("r.csv", "text\na\n", PAIR) == [("a",)]
    assert values("r.jsonl", '{"text": "a", "text_pair": "b"}', PAIR) == [("a", "b")]


def test_column_names_stand_for_a_missing_header() -> None:
    assert rows("r.tsv", "a\tx\nb\ty\n", NAMED)[0] == Row({"text": "a", "label": "x"}, "r.tsv, line 1")
    assert values("r.csv", "a,x\n", NAMED) == [("a", "x")]
    assert values("r.csv", "a; b\tc\n", Columns(("text",), names=["text"])) == [("a; b\tc",)]


def test_a_csv_row_with_line_breaks_is_told_by_the_line_where_it_starts() -> None:
    read_rows = rows("r.csv", 'text,label\n"one\n\ntwo ""2"" ",x\nthree,y\n')
    assert [row.values["text"] for row in read_rows] == ['one\n\ntwo "2" ', "three"]
    assert [row.where for row in read_rows] == ["r.csv, line 2", "r.csv, line 5"]


def test_a_field_beyond_the_limit_of_the_csv_module_is_read() -> None:
    previous = csv.field_size_limit(131072)
    try:
        long = "word " * 50_000
        assert values("r.csv", f'text,label\n"{long}",x\n') == [(long, "x")]
    finally:
        csv.field_size_limit(previous)


def test_blank_lines_at_the_end_of_a_table_are_skipped() -> None:
    assert values("r.csv", "text,label\na,x\n\n  \n\n") == values("r.tsv", "text\tlabel\na\tx\n\n \n") == [("a", "x")]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"a quotation"', '"a quotation"'),
        ('"open', '"open'),
        ('say "a" and "b"', 'say "a" and "b"'),
        ('"a" and "b"', '"a" and "b"'),
        ('""a""', '""a""'),
        ('"', '"'),
        ('""', '""'),
        ('"he said ""no"" twice"', 'he said "no" twice'),
        ('"""a quotation"""', '"a quotation"'),
    ],
)
def test_quotes_in_a_tsv_are_plain_unless_all_inside_are_doubled(field: str, text: str) -> None:
    assert values("r.tsv", f"text\tlabel\n{field}\tx\nnext\ty\n") == [(text, "x"), ("next", "y")]


def test_a_tsv_whose_header_is_quoted_is_read_with_quoting() -> None:
    content = '"text"\t"label"\n"one\ttab"\t"x"\n"two\nlines"\t"y"\n'
    assert rows("r.tsv", content) == [
        Row({"text": "one\ttab", "label": "x"}, "r.tsv, line 2"),
        Row({"text": "two\nlines", "label": "y"}, "r.tsv, line 3"),
    ]


# Where it is read from


def test_a_glob_is_sorted_recursive_and_told_by_the_matched_path() -> None:
    for name in ("d/b.csv", "d/a.csv", "d/deep/c.csv"):
        write(name, f"text\n{name}\n")
    (Path("d") / "folder.csv").mkdir()
    assert [row.where for row in read("d/*.csv", TEXT)] == ["d/a.csv, line 2", "d/b.csv, line 2"]
    assert {row.values["text"] for row in read("d/**/*.csv", TEXT)} == {"d/b.csv", "d/a.csv", "d/deep/c.csv"}


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern() -> None:
    assert values("data[1].csv", "text\na\n", TEXT) == [("a",)]


def test_a_list_is_read_in_its_order() -> None:
    sources = [write("b.csv", "text\nb\n"), write("a.txt", "a\n")]
    assert [row.where for row in read(sources, TEXT)] == ["b.csv, line 2", "a.txt, line 1"]


def test_a_package_carries_files_and_keeps_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("carrier/__init__.py", "")
    write("carrier/data/r.csv", "text\na\n")
    monkeypatch.syspath_prepend(here)
    assert next(read("package:carrier/data/r.csv", TEXT)).where == "package:carrier/data/r.csv, line 2"
    assert "did you mean 'r.csv'?" in error("package:carrier/data/t.csv", TEXT)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reviwes.csv", "reviwes.csv: no such file; did you mean 'reviews.csv'?"),
        ("elsewhere/x.csv", "elsewhere/x.csv: no such file; relative paths start from"),
        ("x*.csv", "x*.csv: no file matches; check the pattern; relative paths start from"),
        ("folder/", "folder/: a folder, not a file; name its files, e.g. folder/*.csv"),
        ("https://host/r.csv", "https://host/r.csv: URLs are not read; download it"),
        ("r.xlsx", "r.xlsx: no reader for a file with this ending; use .csv, .tsv, .txt, .jsonl"),
        ("r.parquet.gz", "r.parquet.gz: no reader for a file with this ending"),
        ("reviews", "reviews: no reader for a file with this ending"),
        ([], "the source is empty; name at least one file"),
        ("", "the source is empty; name at least one file"),
    ],
)
def test_a_source_that_is_no_file_is_refused(source: str | list[str], message: str) -> None:
    write("reviews.csv", "text\na\n")
    Path("folder").mkdir()
    assert message in error(source, TEXT)


def test_an_unknown_ending_is_told_before_any_file_is_read() -> None:
    assert "notes.md: no reader" in error([write("r.csv", "text\na\n"), write("notes.md", "x")], TEXT)


def test_a_file_without_permission_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    name = write("r.csv", "text\na\n")
    monkeypatch.setattr("builtins.open", denied)
    assert error(name, TEXT) == "r.csv: can't be read: Permission denied; check the file and its permissions"


def test_a_file_that_disappears_between_listing_and_reading_is_told() -> None:
    write("a.csv", "text\na\n")
    write("b.csv", "text\nb\n")
    stream = read("*.csv", TEXT)
    next(stream)
    os.remove("b.csv")
    with pytest.raises(DataError, match=r"b\.csv: no such file"):
        list(stream)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"text\na\n", lambda raw: raw[:12] + b"\xff" * 40]
)
def test_damaged_gzip_is_told(damage: Any) -> None:
    Path("r.csv.gz").write_bytes(damage(gzip.compress(b"text\n" + os.urandom(900).hex().encode())))
    assert error("r.csv.gz", TEXT).startswith("r.csv.gz: damaged gzip: ")


# Bytes and encodings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"text\ncaf\xc3\xa9\ncaf\xe9\n",
            "r.csv, line 3: not UTF-8: byte 0xe9 at offset 14; convert it, e.g. with iconv",
        ),
        (b"\xef\xbb\xbftext\n\xe9\n", "r.csv, line 2: not UTF-8: byte 0xe9 at offset 8;"),
        ("text\na\n".encode("utf-16"), "r.csv, line 1: not UTF-8: byte 0xff at offset 0; it is UTF-16: convert it"),
        (
            gzip.compress(b"text", mtime=0),
            "r.csv, line 1: not UTF-8: byte 0x8b at offset 1; it is compressed with gzip: add .gz",
        ),
        (b"text\na\nb\0c\n", "r.csv, line 3: a NUL byte at offset 8; remove it"),
        (b"text\nPAR1 b\0c\n", "r.csv, line 2: a NUL byte at offset 11; remove it"),
        (b"PAR1\x15\0\n", "r.csv, line 1: a NUL byte at offset 5; it is Parquet: end its name in .parquet"),
        (
            b"ARROW1\xff\n",
            "r.csv, line 1: not UTF-8: byte 0xff at offset 6; it is an Arrow file: end its name in .arrow",
        ),
    ],
)
def test_bytes_that_are_no_text_are_told_by_line_and_offset(content: bytes, message: str) -> None:
    assert message in refused("r.csv", content, TEXT)


@pytest.mark.parametrize("name", ["r.tsv", "r.txt", "r.jsonl", "r.json"])
def test_bytes_are_checked_in_every_text_format(name: str) -> None:
    assert f"{name}, line 1: not UTF-8" in refused(name, b"\xff", TEXT)
    assert f"{name}, line 2: a NUL byte" in refused(name, b"\n\0", TEXT)


@pytest.mark.parametrize("name", ["r.csv", "r.tsv"])
def test_carriage_returns_alone_are_told(name: str) -> None:
    assert f"{name}, line 1: a carriage return" in refused(name, "text\ra\rb\r", TEXT)


# Tables


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", "text,label\na,x\nwell, no,x\n", "r.csv, line 3: 3 fields where 2 are expected; quote the field"),
        ("r.csv", "text,label\na\n", "r.csv, line 2: 1 field where 2 are expected; quote the field"),
        ("r.csv", 'text,label\n"a\nb"\n', "r.csv, line 2: 1 field where 2 are expected"),
        ("r.tsv", "text\tlabel\na\tb\tx\n", "r.tsv, line 2: 3 fields where 2 are expected; replace the tabs"),
        (
            "r.csv",
            "text\tlabel\na\tx\n",
            r"r.csv, line 1: the columns are separated by '\t', not ','; rename it to .tsv",
        ),
        ("r.tsv", "text,label\na,x\n", r"r.tsv, line 1: the columns are separated by ',', not '\t'; rename it to .csv"),
        ("r.csv", "text;label\na;x\n", "r.csv, line 1: the columns are separated by ';', not ','; save it with commas"),
        ("r.csv", "text,label,text\na,x,b\n", "r.csv, line 1: column 'text' stands twice; rename or delete one"),
        ("r.csv", "text,label\na,x\n\nb,y\n", "r.csv, line 3: a blank line between the rows; delete it"),
        ("r.tsv", "text\tlabel\na\tx\n \nb\ty\n", "r.tsv, line 3: a blank line between the rows; delete it"),
        ("r.csv", "text,label\na,\n", "r.csv, line 2: no value in column 'label'; fill it in"),
        ("r.csv", "text,label\n  ,x\n", "r.csv, line 2: no text in column 'text'; fill it in"),
        ("r.tsv", "text\tlabel\n\tx\n", "r.tsv, line 2: no text in column 'text'; fill it in"),
    ],
)
def test_a_faulty_table_is_told_by_line_with_a_mend(name: str, content: str, message: str) -> None:
    assert message in refused(name, content)


@pytest.mark.parametrize("content", ["a\tx\n", "a;x\n"])
def test_a_csv_without_header_that_is_none_is_told(content: str) -> None:
    assert "line 1: the columns are separated by" in refused("r.csv", content, NAMED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'text,label\na,x\n"open,x\nb,x\nc,x\n',
            'r.csv, line 3: the quote that opens here stays open: "open,x b,x c,x;',
        ),
        ('text,label\n"a\nb","open\nc,x\n', 'r.csv, line 3: the quote that opens here stays open: "open c,x;'),
        (
            'text,label\n"open,x\nb,x\n"c",x\n',
            'r.csv, line 2: the quote that opens here closes amid text in line 4: "open,x b,x "c",x;',
        ),
        ('text,label\n"say "hi" now",x\n', "r.csv, line 2: the quote that opens here closes amid text in line 2"),
    ],
)
def test_an_unbalanced_quote_is_told_by_the_line_where_it_opened(content: str, message: str) -> None:
    told = refused("r.csv", content)
    assert message in told
    assert told.endswith('close it where the field ends, and double the quotes inside the field ("")')


def test_a_quote_that_swallows_a_long_file_is_told_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    previous = csv.field_size_limit(1000)
    monkeypatch.setattr("lit_nlp.data.sources._MAX_FIELD_CHARS", 1000)
    try:
        source = write("r.csv", 'text,label\na,x\n"open,x\n' + "b,x\n" * 1000)
        assert 'r.csv, line 3: the quote that opens here stays open: "open,x' in error(source)
    finally:
        csv.field_size_limit(previous)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,lable\na,x\n",
            "r.csv: no column 'label' among text, lable; did you mean 'lable'? map it with `columns`, as in {label: ",
        ),
        (
            "text,class\na,x\n",
            "map it with `columns`, as in {label: ITS_NAME}, or name the columns with `column_names` if line 1 is data",
        ),
        (
            "a fine film in every way,1\nbad,0\n",
            "line 1 looks like data: name the columns with `column_names`, as in [text, label]",
        ),
        ("fine,1,1\nbad,0,0\n", "line 1 looks like data: name the columns with `column_names`"),
        ("lable,text", "no column 'label' among lable, text"),
    ],
)
def test_a_missing_column_lists_those_there_and_the_mend(content: str, message: str) -> None:
    assert message in refused("r.csv", content)


def test_a_missing_column_is_told_in_every_format() -> None:
    assert "r.txt: no column 'label' among text" in refused("r.txt", "a\n")
    assert "r.jsonl, line 2: no column 'label' among text, lable; did you mean 'lable'?" in refused(
        "r.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "lable": 1}\n'
    )
    assert "r.json, line 1: no column 'label' among text" in refused("r.json", '[{"text": "a"}]')
    assert "r.parquet: no column 'label' among text" in error(write_arrow("r.parquet", pa.table({"text": ["a"]})))


def test_a_mapped_column_must_be_there_even_if_optional() -> None:
    columns = Columns(("text",), optional_text=("text_pair",), mapping={"text_pair": "second"})
    assert "no column 'second' among text" in refused("r.csv", "text\na\n", columns)
    nested = Columns(("text",), mapping={"text": ["text.first", "second"]})
    assert "no column 'second' among text" in refused("r.jsonl", '{"text": {"first": "a"}}', nested)


def test_rows_must_agree_on_optional_columns() -> None:
    content = '{"text": "a", "text_pair": "b"}\n{"text": "c"}\n'
    assert "r.jsonl, line 2: only one of this row and the first (r.jsonl, line 1) has text_pair" in refused(
        "r.jsonl", content, PAIR
    )
    sources = [write("a.csv", "text\na\n"), write("b.csv", "text,text_pair\na,b\n")]
    assert "b.csv, line 2: only one of this row and the first (a.csv, line 2) has text_pair" in error(sources, PAIR)


def test_column_names_must_fit_the_rows() -> None:
    assert "r.tsv, line 1: 3 fields, but 2 in `column_names`; name each column" in refused("r.tsv", "a\tb\tx\n", NAMED)
    assert "r.tsv, line 2: 1 field where 2 are expected" in refused("r.tsv", "a\tb\nc\n", NAMED)
    assert "the file has a header already; leave `column_names` out" in refused("r.tsv", "text\tlabel\na\tx\n", NAMED)


# JSON


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "a"}\n\n{"text": b}\n',
            "r.jsonl, line 3, column 10: broken JSON: Expecting value; write one whole object",
        ),
        ('{"text": \n', "r.jsonl, line 1, column 9: broken JSON: "),
        ('{\n"text": "a"\n}\n', "r.jsonl, line 1, column 2: broken JSON: "),
        ('{"text": "a"} {"text": "b"}', "r.jsonl, line 1, column 14: broken JSON: more follows the first value"),
        (
            '[{"text": "a"}]',
            "line 1: expected an object, got a list ([{'text': 'a'}]); write one whole object on each line, or name",
        ),
        ('{"text": "a"}\n"b"\n', "r.jsonl, line 2: expected an object, got a string ('b')"),
        (
            '{"text": "a", "text": "b"}',
            "r.jsonl, line 1, column 1: broken JSON: key 'text' stands twice; correct the object",
        ),
        (
            '{"text": "a\\ud800"}',
            "r.jsonl, line 1: a lone surrogate, half of a character; write the whole character",
        ),
        ("[" * 100_000, "r.jsonl, line 1, column 1: broken JSON: maximum recursion depth exceeded"),
        ('{"text": "a"}\n{"text": null}', "r.jsonl, line 2: column 'text' holds null, not text; write it as a string"),
        ('{"text": "a"}\n{"text": 7}', "r.jsonl, line 2: column 'text' holds a number (7), not text"),
        ('{"text": true}', "r.jsonl, line 1: column 'text' holds a bool (True), not text"),
        ('{"text": ["a"]}', "r.jsonl, line 1: column 'text' holds a list (['a']), not text"),
        ('{"text": " \\n"}', "r.jsonl, line 1: no text in column 'text'"),
        ('{"text": "a"}\n{"txt": "b"}', "r.jsonl, line 2: no column 'text' among txt; did you mean 'txt'?"),
    ],
)
def test_a_faulty_jsonl_line_is_told_by_line_and_column(content: str, message: str) -> None:
    assert message in refused("r.jsonl", content, TEXT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n{"text" "b"}]', "r.json, line 2, column 9: broken JSON: Expecting ':' delimiter"),
        ('[{"text": "a"}\n{"text": "b"}]', "r.json, line 2, column 1: broken JSON: expected ',' or ']'"),
        ('[{"text": "a"},\n', "r.json, line 2, column 1: broken JSON: Expecting value"),
        ('[{"text": "a"},\n]', "r.json, line 2, column 1: broken JSON: "),
        ('[{"text": "a"}]\n]', "r.json, line 2, column 1: broken JSON: more follows the list"),
        ('[{"text": "a"},\n"b"]', "r.json, line 2: expected an object, got a string ('b')"),
        (
            '[{"text": "a"},\n\n{"text": "\\udc00"}]',
            "r.json, line 3: a lone surrogate, half of a character; write the whole character",
        ),
        (
            '{"rows": []}',
            "r.json: expected a list of objects, got an object ({'rows': []}); give one list of objects, or name",
        ),
        ("{]", "r.json, line 1, column 2: broken JSON: Expecting property name"),
        ('{"text": "a"}\n{"text": "b"}', "or name a file with one object on each line .jsonl"),
        ('{"version": "1.1", "data": []}', "r.json: this is SQuAD JSON; let question_answering read it"),
        ('{"data": [{"paragraphs": []}]}', "r.json: this is SQuAD JSON; let question_answering read it"),
    ],
)
def test_a_faulty_json_file_is_told_by_line_and_column(content: str, message: str) -> None:
    assert message in refused("r.json", content, TEXT)


SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Tea", "paragraphs": []},
        {
            "title": "Żur",
            "paragraphs": [
                {"context": "unread", "qas": []},
                {
                    "context": "Żur is a soup.",
                    "qas": [
                        {"id": "a7", "question": "What?", "answers": [{"text": "a soup", "answer_start": 7}]},
                        {"id": 8, "question": "Who?", "is_impossible": True, "plausible_answers": []},
                    ],
                },
            ],
        },
    ],
}
QUESTIONS = Columns(("question", "context"), optional_text=("title",), value="answers", key="id")


def squad(**changes: Any) -> str:
    """SQuAD JSON whose last question but one is changed; a key that becomes None is left out."""
    whole = json.loads(json.dumps(SQUAD))
    asked = whole["data"][1]["paragraphs"][1]["qas"][0]
    asked.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del asked[key]
    return json.dumps(whole)


@pytest.mark.parametrize("name", ["r.json", "r.json.gz"])
def test_squad_json_becomes_a_row_for_each_question(name: str) -> None:
    one, other = rows(name, json.dumps(SQUAD, indent=1), QUESTIONS)
    context = {"context": "Żur is a soup.", "title": "Żur"}
    assert one.values == {
        "id": "a7", "question": "What?", "answers": [{"text": "a soup", "answer_start": 7}], **context
    }  # fmt: skip
    assert other.values == {"id": "8", "question": "Who?", "answers": [], **context}
    assert one.where == f"{name}, article 2, paragraph 2, question a7"
    assert other.where == f"{name}, article 2, paragraph 2, question 8"


def test_squad_json_without_answers_can_be_predicted_and_not_trained_on() -> None:
    content = squad(answers=None, id=None)
    unanswered = Columns(("question", "context"))
    assert [row.where for row in rows("r.json", content, unanswered)] == [
        "r.json, article 2, paragraph 2, question 1",
        "r.json, article 2, paragraph 2, question 8",
    ]
    assert "r.json, article 2, paragraph 2, question 1: no column 'answers' among question, context, title" in refused(
        "r.json", content, Columns(("question", "context"), value="answers")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            squad(question=None),
            "article 2, paragraph 2, question a7: expected text under 'question', got nothing; write it as SQuAD does",
        ),
        (squad(question=7), "question a7: expected text under 'question', got a number (7)"),
        (squad(question=" "), "question a7: no text in column 'question'"),
        (squad(id=""), "question : column 'id' holds a string (''), which names no row"),
        (squad(id=True), "question True: column 'id' holds a bool (True), which names no row"),
        (squad(question="a \ud83d"), "question a7: a lone surrogate, half of a character"),
        ('{"version": "1", "data": [7]}', "r.json, article 1: expected a list under 'paragraphs', got nothing"),
        ('{"version": "1", "data": [{"paragraphs": [{}]}]}', "article 1, paragraph 1: expected text under 'context'"),
        (
            '{"version": "1", "data": [{"paragraphs": [{"context": "a", "qas": {}}]}]}',
            "r.json, article 1, paragraph 1: expected a list under 'qas', got an object ({})",
        ),
        ('{"version": "1", "data": [{"paragraphs": [{"context": "a", "qas": [7]}]}]}', "paragraph 1, question 1: exp"),
        ('{"version": "1", "data": []}', "r.json: no rows; name a file that holds data"),
        ('{"version": "1", "data": [}', "r.json, line 1, column 27: broken JSON"),
        ('{"rows": [], "data": 3}', "r.json: expected a list of objects, got an object"),
    ],
)
def test_faulty_squad_json_is_told_by_article_paragraph_and_question(content: str, message: str) -> None:
    assert message in refused("r.json", content, QUESTIONS)


@pytest.mark.parametrize("label", ["null", "NaN", '""', '" "'])
def test_a_row_without_a_value_is_told(label: str) -> None:
    content = f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {label}}}\n'
    assert "r.jsonl, line 2: no value in column 'label'; fill it in, or delete the row" in refused("r.jsonl", content)


# No rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", ""),
        ("r.csv", "text\n"),
        ("r.csv.gz", ""),
        ("r.tsv", ""),
        ("r.tsv", "text\n"),
        ("r.jsonl", "\n"),
        ("r.json", ""),
        ("r.json", " [ ]"),
        ("r.txt", "\n"),
    ],
)
def test_a_file_without_rows_is_told(name: str, content: str) -> None:
    assert refused(name, content, TEXT) == f"{name}: no rows; name a file that holds data"


@ARROW_NAMES
def test_an_arrow_file_without_rows_is_told(name: str) -> None:
    assert error(write_arrow(name, arrow_table().slice(0, 0))) == f"{name}: no rows; name a file that holds data"


# Parquet and Arrow


@ARROW_NAMES
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None]}, "row 2: column 'text' holds null, not text"),
        ({"text": [1, 2]}, "row 1: column 'text' holds a number (1), not text"),
        ({"text": [b"a", b"b"]}, "row 1: column 'text' holds bytes (b'a'), not text"),
        ({"text": ["a", ""]}, "row 2: no text in column 'text'"),
        ({"label": ["a", None]}, "row 2: no value in column 'label'"),
        ({"label": [b"a", b"b"]}, "row 1: column 'label' holds bytes (b'a'); write it as a string"),
    ],
)
def test_a_faulty_arrow_row_is_told(name: str, columns: dict[str, Any], message: str) -> None:
    assert f"{name}, {message}" in error(write_arrow(name, arrow_table(**columns)))


@ARROW_NAMES
def test_a_damaged_arrow_file_is_told(name: str) -> None:
    write_arrow(name, arrow_table())
    Path(name).write_bytes(Path(name).read_bytes()[:60])
    assert error(name).startswith(f"{name}: not a sound .{name.split('.')[1]} file: ")


@ARROW_NAMES
def test_text_that_is_not_utf8_is_told_in_arrow_files(name: str) -> None:
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    assert f"{name}: not a sound" in error(write_arrow(name, arrow_table(text=text)))


def test_a_column_that_stands_twice_in_parquet_is_told() -> None:
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    assert "r.parquet: column 'text' stands twice" in error(write_arrow("r.parquet", table), TEXT)


def test_class_labels_in_a_local_parquet_become_their_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet("r.parquet")
    assert [row.values["label"] for row in read("r.parquet", BOTH)] == ["pos", "neg"]


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answer each load with a small data set, and list what was asked for."""
    asked: list[Any] = []
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label, "tags": datasets.List(label)})

    def load_dataset(path: str, name: str | None, *, revision: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, revision, split))
        labels = [1, -1] if split == "test" else [1, 0]
        content = {"sentence": ["a", "b"], "label": labels, "tags": [[0, 1], []]}
        return datasets.Dataset.from_dict(content, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


HUB = Columns(("text",), value="label", mapping={"text": "sentence"})


def test_a_hub_data_set_gives_rows_with_the_names_of_its_classes(hub: list[Any]) -> None:
    assert list(read("hub:stanfordnlp/sst2", HUB)) == [
        Row({"text": "a", "label": "pos"}, "hub:stanfordnlp/sst2, row 1"),
        Row({"text": "b", "label": "neg"}, "hub:stanfordnlp/sst2, row 2"),
    ]
    tags = Columns((), value="label", mapping={"label": "tags"})
    assert [row.values["label"] for row in read("hub:stanfordnlp/sst2", tags)] == [["neg", "pos"], []]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hub:imdb", ("imdb", None, None, "train")),
        ("hub:nyu-mll/glue/sst2", ("nyu-mll/glue", "sst2", None, "train")),
        ("hub:a/b@refs/convert/parquet#validation", ("a/b", None, "refs/convert/parquet", "validation")),
        ("hub:a/b/c.d@v1#train[:10%]", ("a/b", "c.d", "v1", "train[:10%]")),
    ],
)
def test_a_hub_name_may_have_config_revision_and_split(hub: list[Any], source: str, asked: tuple[Any, ...]) -> None:
    list(read(source, HUB))
    assert hub == [asked]


def test_a_hub_row_without_a_label_is_told(hub: list[Any]) -> None:
    assert "hub:a/b#test, row 2: class -1 is none of 0 to 1; -1 stands for no label" in error("hub:a/b#test", HUB)


def test_a_hub_column_that_is_missing_is_told(hub: list[Any]) -> None:
    assert "hub:a/b: no column 'text' among sentence, label, tags; map it with" in error("hub:a/b")


@pytest.mark.parametrize("source", ["hub:", "hub:a/b/c/d", "hub:a b"])
def test_a_malformed_hub_name_is_told(source: str) -> None:
    assert "not the name of a data set; write hub:owner/name[/config][@revision][#split]" in error(source)


def test_a_local_folder_is_not_read_in_place_of_the_hub(hub: list[Any]) -> None:
    Path("a/b").mkdir(parents=True)
    assert "hub:a/b: `datasets` would read the local a/b in its place" in error("hub:a/b", HUB)


def test_a_hub_that_is_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'a/b'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert "hub:a/b: can't be loaded: ConnectionError: Couldn't reach 'a/b' on the Hub; check name, config" in error(
        "hub:a/b"
    )
    with pytest.raises(DataError, match="can't be loaded"):
        fingerprint("hub:a/b")


# Fingerprints, and the parts that other readers use


def test_a_fingerprint_changes_with_the_content_and_survives_json() -> None:
    name = write("r.csv", "text\na\n")
    before = fingerprint(name)
    assert before == fingerprint([name]) == json.loads(json.dumps(before))
    assert before[0] == os.path.abspath(name)
    os.utime(name, ns=(0, 0))
    touched = fingerprint("*.csv")
    assert touched != before
    write(name, "text\nab\n")
    os.utime(name, ns=(0, 0))
    assert fingerprint(name) != touched
    with pytest.raises(DataError, match=r"x\.csv: no such file"):
        fingerprint("x.csv")


def test_a_hub_fingerprint_is_that_of_the_data_set(hub: list[Any]) -> None:
    assert fingerprint("hub:a/b") != fingerprint("hub:a/b#test")


def test_lines_are_decoded_and_keep_their_ends() -> None:
    (file,) = files(write("train.de.gz", "\ufeffeins\nzwei\r\n\ndrei"))
    assert list(lines(file)) == ["eins\n", "zwei\r\n", "\n", "drei"]


def test_reading_stops_early_without_reading_on() -> None:
    stream = read(write("r.csv", "text,label\na,x\nb\n"), BOTH)
    assert next(stream).values == {"text": "a", "label": "x"}


def test_importing_the_module_loads_neither_datasets_nor_pyarrow() -> None:
    import subprocess
    import sys

    code = "import sys, lit_nlp.data.sources; print([m for m in ('datasets', 'pyarrow', 'torch') if m in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"
