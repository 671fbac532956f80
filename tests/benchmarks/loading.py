"""What comes before the first batch: tokenising, starting up, and the memory that all of it takes."""

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

from lit_nlp import TextClassificationDataModule
from tests.benchmarks.harness import MINILM, PRECISION, Clock, Line, Setting, alone, costs, rates, threads

# The size of the files that `load` reads, and the most memory that it may take.
LOADED_MIB, LOADED_WITHIN_MIB = 1024, 500
_ROWS_AT_ONCE = 1_000
_SENTENCE = "the film is a quiet study of people who mean well and of what becomes of them when nobody listens"
_INTERPRETER = [sys.executable, "-c", "pass"]


def tokenise(setting: Setting) -> list[Line]:
    """AG News, read, checked, tokenised and cached, beside the bare tokenizer."""
    file = setting.file("ag_news", "train.csv")
    with file.open(newline="") as lines:
        texts = [f"{row['title']} {row['description']}" for row in csv.DictReader(lines)]
    told: dict[str, int] = {}

    def data_module() -> TextClassificationDataModule:
        return TextClassificationDataModule(MINILM, train=str(file), columns={"text": ["title", "description"]})

    def ours(clock: Clock) -> None:
        with _fresh_cache():
            data = data_module()
            with clock.running():
                data.prepare_data()
            again = data_module()
            with patch.object(again, "tokenise", wraps=again.tokenise) as calls:
                again.prepare_data()
        clock.done = len(texts)
        told["calls of tokenise at the second start"] = calls.call_count

    def theirs(method: str, clock: Clock) -> None:
        data = data_module()
        tokenizer = data.tokenizer.backend_tokenizer
        tokenizer.enable_truncation(data.max_length)
        with clock.running():
            for first in range(0, len(texts), _ROWS_AT_ONCE):
                getattr(tokenizer, method)(texts[first : first + _ROWS_AT_ONCE])
        clock.done = len(texts)

    return rates(
        "prepare_data, MiniLM-L6, AG News",
        ours,
        {
            f"tokenizers alone, {how}, {_ROWS_AT_ONCE:,} texts at once": (0.8, partial(theirs, method))
            for method, how in (
                ("encode_batch", "as transformers calls it"),
                ("encode_batch_fast", "without the places of tokens"),
            )
        },
        unit="texts",
        turns=setting.turns,
        also=told,
    )


def start(setting: Setting) -> list[Line]:
    """What the processor does before anything is done for a user, in processes that start and end."""
    lit_nlp = [sys.executable, "-m", "lit_nlp"]
    empty = "an empty interpreter"
    return [
        line
        for what, ours, against, aim, theirs in (
            ("lit-nlp --help", [*lit_nlp, "--help"], empty, 5.0, _INTERPRETER),
            ("import lit_nlp", [sys.executable, "-c", "import lit_nlp"], empty, 1.2, _INTERPRETER),
            (
                "lit-nlp fit --help",
                [*lit_nlp, "fit", "--help"],
                "import lightning.pytorch.cli",
                1.2,
                [sys.executable, "-c", "import lightning.pytorch.cli"],
            ),
        )
        for line in costs(
            what,
            lambda command=ours: _cpu_seconds(command),
            {against: (aim, lambda command=theirs: _cpu_seconds(command))},
            unit="CPU s",
            turns=setting.turns,
        )
    ]


def memory(setting: Setting) -> list[Line]:
    """The most memory that fitting and testing MiniLM on SST-2 take, each in a process of its own."""
    train, dev = setting.file("sst2", "train.tsv"), setting.file("sst2", "dev.tsv")
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder, "some.tsv")
        with train.open() as lines:
            some.write_text("".join(islice(lines, 640)))
        found = []
        for verb, file in (("fit", some), ("test", dev)):
            found += costs(
                f"peak memory, {verb}, MiniLM-L6, SST-2, {threads()}",
                lambda verb=verb, file=file: alone(f"{verb}_ours", file, PRECISION)["peak_mib"],
                {"Trainer": (1.0, lambda verb=verb, file=file: alone(f"{verb}_trainer", file, PRECISION)["peak_mib"])},
                unit="MiB",
                turns=1,
            )
    tested = [alone("test_rows", rows)["peak_mib"] for rows in (1_000, 10_000, 100_000)]
    grown = Line(
        "peak memory, test of 100,000 rows, a tiny model",
        "of 1,000 rows",
        [tested[-1] / tested[0]],
        aim=1.05,
        ours=tested[-1],
        theirs=tested[0],
        unit="MiB",
        better="less",
        also={"of 10,000 rows": f"{tested[1]:.0f} MiB"},
    )
    return [*found, grown]


def load(setting: Setting) -> list[Line]:
    """Files that are far larger than the memory they may take, from the disk to the first batch."""
    return [_loaded(kind) for kind in ("jsonl", "csv")]


def _loaded(kind: str) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        half, whole = (
            alone("load", _written(Path(folder, f"{mib}.{kind}"), mib)) for mib in (LOADED_MIB / 2, LOADED_MIB)
        )
    taken = whole["peak_mib"] - whole["before_mib"]
    return Line(
        f"memory beyond imports, {LOADED_MIB} MiB of {kind.upper()}",
        "what it may take",
        [taken / LOADED_WITHIN_MIB],
        1.0,
        taken,
        LOADED_WITHIN_MIB,
        "MiB",
        "less",
        {"seconds of a half and of the whole": f"{half['seconds']:.0f} and {whole['seconds']:.0f}"},
    )


def _written(file: Path, mib: float) -> Path:
    """Write rows of about 1,000 characters until a file has its size."""
    turning = cycle(_SENTENCE.split())
    with file.open("w", newline="") as lines:
        table = csv.writer(lines)
        if file.suffix == ".csv":
            table.writerow(["text", "label"])
        for row in range(int(mib * 2**20 / 1000)):
            text = f"{row}, " + " ".join(islice(turning, 190 + row % 17))
            if file.suffix == ".csv":
                table.writerow([text, row % 2])
            else:
                lines.write(json.dumps({"text": text, "label": row % 2}) + "\n")
    return file


def _cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds that a command takes, of all its threads and processes."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


@contextmanager
def _fresh_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, LIT_NLP_CACHE=folder):
        yield
