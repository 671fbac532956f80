"""How fast lit_nlp is beside its peers: one table, each line measured in turns within one run.

    python -m tests.benchmarks.speed --data FOLDER [--checkpoints checkpoints] [--json FILE] [LINE …]

FOLDER holds `sst2/{train,dev}.tsv`, `ag_news/dev.csv`, `multi30k_en_de/{train,val}.{en,de}` and
`xquad_en/dev.json`. Time is the processor's, of all threads. Needs the extra `bench`.
"""

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import transformers

from tests.benchmarks.harness import PRECISION, Line, Missing, Setting

LINES = {
    "fit_sentiment": "fitting",
    "fit_translation": "fitting",
    "fit_causal": "fitting",
    "test_question_answering": "evaluating",
    "test_translation": "evaluating",
    "predict": "evaluating",
    "explain": "explaining",
    "tokenise": "loading",
    "start": "loading",
    "memory": "loading",
    "load": "loading",
    "matrix_share": "limits",
    "gpu_bert_128": "on_gpu",
    "gpu_bert_512": "on_gpu",
    "gpu_t5": "on_gpu",
    "gpu_smollm2": "on_gpu",
}


def main() -> None:
    """Measure lines, print each as it comes, and write all of them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", choices=[*LINES, []], help=f"of {', '.join(LINES)}")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="what lit-nlp fit wrote")
    parser.add_argument("--turns", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"), help="where the figures go")
    given = parser.parse_args()
    # As the command `lit-nlp` does; both sides of a line get it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    setting = Setting(given.data.resolve(), given.checkpoints.resolve(), given.turns)
    rows: list[Line] = []
    print(
        "| what | against | ratio (lowest to highest) | aim | lit_nlp | other |\n|---|---|---|---|---|---|", flush=True
    )
    # Each in a process of its own, so that none finds the memory or the threads that another left.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for name in given.lines or LINES:
            try:
                found = pool.submit(measured, name, setting).result()
            except Missing as reason:
                print(f"{name} is left out: {reason}", file=sys.stderr)
                continue
            rows += found
            print("\n".join(map(as_row, found)), flush=True)
    figures = [asdict(line) | {"ratio": line.ratio, "holds": line.holds} for line in rows]
    given.json.write_text(json.dumps({"machine": machine(), "lines": figures}, indent=1) + "\n")


def measured(name: str, setting: Setting) -> list[Line]:
    """Return the rows of one line."""
    transformers.utils.logging.disable_progress_bar()
    found: list[Line] = getattr(import_module(f"tests.benchmarks.{LINES[name]}"), name)(setting)
    return found


def as_row(line: Line) -> str:
    """Return a row of the table."""
    ratio = f"{'**' * line.holds}{line.ratio:.2f}{'**' * line.holds} ({min(line.ratios):.2f} to {max(line.ratios):.2f})"
    aim = f"{'≥' if line.better == 'more' else '≤'} {line.aim:g}"
    told = "".join(f"; {name} {value}" for name, value in line.also.items())
    return (
        f"| {line.what} | {line.against} | {ratio} | {aim} |"
        f" {line.ours:.3g} {line.unit}{told} | {line.theirs:.3g} {line.unit} |"
    )


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    packages = ("torch", "transformers", "lightning", "captum")
    return {
        "date": date.today().isoformat(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": PRECISION,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
