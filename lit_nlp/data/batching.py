"""Which rows go together: batches of like length, by rows or by tokens, resumable, one share a process."""

import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset

from lit_nlp.errors import ConfigError, require

# Tokens of each row, on each side that is padded by itself: the text's, or source's and target's.
Lengths: TypeAlias = Int[np.ndarray, "rows sides"]
# The numbers of rows that go together: as a list, 32 of them would take four times the memory.
Rows: TypeAlias = Int[np.ndarray, " _"]

# Rows are sorted by length within pools of this many batches: far enough to leave next to no padding,
# near enough that an epoch stays a shuffle.
_POOL_BATCHES = 50
# So many seeds a generator of torch tells apart.
_SEEDS = 2**63


def plan_batches(
    lengths: Lengths,
    *,
    batch_size: int,
    max_tokens: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Rows]:
    """Return the batches of one epoch, as row numbers: every row once, rows of like length together.

    Args:
        lengths: Tokens of each row on each side.
        batch_size: Rows of a batch; with a token budget, at most these many.
        max_tokens: A budget of tokens, padding included, that a batch doesn't exceed; a row that is
            longer than the budget makes a batch of its own.
        generator: Shuffles rows and batches. None: always the same order, the longest batch first, so that a
            lack of memory shows at once, and the others mixed, so that the first few are like the rest.
    """
    if generator is None:
        batches = _fill(np.arange(len(lengths)), lengths, batch_size, max_tokens)
        longest, others = batches[:1], batches[1:]
        mixed = torch.randperm(len(others), generator=torch.Generator().manual_seed(0)).tolist()
        return longest + [others[i] for i in mixed]
    order = torch.randperm(len(lengths), generator=generator).numpy()
    pool = batch_size * _POOL_BATCHES
    batches = []
    for start in range(0, len(order), pool):
        batches.extend(_fill(order[start : start + pool], lengths, batch_size, max_tokens))
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _fill(rows: Rows, lengths: Lengths, batch_size: int, max_tokens: int | None) -> list[Rows]:
    """Sort rows from long to short, all sides together and then by the first, and cut them into batches."""
    rows = rows[np.lexsort((-lengths[rows, 0], -lengths[rows].sum(1)))]
    every = range(0, len(rows), batch_size)
    starts = every if max_tokens is None else _starts_within(max_tokens, lengths[rows], batch_size)
    return [rows[start:stop] for start, stop in pairwise([*starts, len(rows)])]


def _starts_within(max_tokens: int, lengths: Lengths, batch_size: int) -> list[int]:
    """Return where batches begin that take in turn what the budget lets them."""
    starts: list[int] = []
    widest: list[int] = []
    for row, sides in enumerate(lengths.tolist()):
        wider = list(map(max, widest, sides))
        if not starts or row - starts[-1] == batch_size or (row - starts[-1] + 1) * sum(wider) > max_tokens:
            starts.append(row)
            wider = sides
        widest = wider
    return starts


def share(batches: list[Rows], rank: int, world_size: int, *, even: bool) -> list[Rows]:
    """Return the batches of one process among `world_size`.

    Processes wait for each other at every batch, so each should get equally many.

    Args:
        even: Give some batches twice where they don't divide, as training may. Otherwise every row is
            given once, and batches are halved until they divide or hold one row each.

    Raises:
        ConfigError: A process would get no batch.
    """
    missing = -len(batches) % world_size
    whole = [*batches, *islice(cycle(batches), missing)] if even else _halved(batches, len(batches) + missing)
    if len(whole) < world_size:
        problem = f"too few rows ({len(whole)}) for {world_size} processes"
        raise ConfigError(problem, where="data", mend="lower trainer.devices")
    return whole[rank::world_size]


def _halved(batches: list[Rows], count: int) -> list[Rows]:
    """Halve the last of the largest batches until there are `count`, or each holds one row."""
    batches = list(batches)
    while len(batches) < count and (most := max(map(len, batches), default=0)) > 1:
        last = max(i for i, batch in enumerate(batches) if len(batch) == most)
        batches[last : last + 1] = [batches[last][: most // 2], batches[last][most // 2 :]]
    return batches


class BatchSampler:
    """The batches of an epoch for one process, the same again for the same seed and epoch.

    With a token budget the batches are drawn once and only their order changes by epoch, so that
    every epoch has as many steps as the schedule counted on.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        batch_size: int,
        max_tokens: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths, self.batch_size, self.max_tokens = lengths, batch_size, max_tokens
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.epoch = 0
        self._planned: tuple[int, list[Rows]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next; Lightning calls it before each."""
        self.epoch = epoch

    def batches(self) -> list[Rows]:
        """Return this process's batches of the current epoch."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = (self.epoch, share(self._plan(), self.rank, self.world_size, even=self.shuffle))
        return self._planned[1]

    @cached_property
    def plan(self) -> str:
        """What changes when an epoch would have other batches."""
        arguments = [self.batch_size, self.max_tokens, self.shuffle, self.seed, self.world_size]
        return f"{arguments} {zlib.crc32(self.lengths.tobytes())}"

    def _plan(self) -> list[Rows]:
        if not self.shuffle:
            return plan_batches(self.lengths, batch_size=self.batch_size, max_tokens=self.max_tokens)
        by_epoch = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % _SEEDS)
        if self.max_tokens is None:
            return plan_batches(self.lengths, batch_size=self.batch_size, generator=by_epoch)
        once = torch.Generator().manual_seed(self.seed % _SEEDS)
        batches = plan_batches(self.lengths, batch_size=self.batch_size, max_tokens=self.max_tokens, generator=once)
        return [batches[i] for i in torch.randperm(len(batches), generator=by_epoch).tolist()]


class Batches:
    """Padded batches of a data set: an iterable that remembers how far it came.

    It is no `DataLoader`, but makes one an epoch: Lightning would take a `DataLoader` with a batch
    sampler apart to shard it, and ours shards itself. `state_dict` and `load_state_dict` let Lightning
    resume inside an epoch at the very next batch.
    """

    # Lightning asks whatever has a `sampler` for this name too.
    batch_sampler: None = None

    def __init__(
        self, dataset: Dataset[Any], sampler: BatchSampler, collate: Callable[[list[Any]], Any], num_workers: int = 0
    ) -> None:
        self.dataset, self.sampler, self.collate, self.num_workers = dataset, sampler, collate, num_workers
        # The epoch, and how many of its batches were given out; the next pass leaves them out after a resume only.
        self._given_out = (0, 0)
        self._resumed = False

    def __len__(self) -> int:
        return len(self.sampler.batches())

    def __iter__(self) -> Iterator[Any]:
        epoch, done = self.sampler.epoch, self.state_dict()["done"] if self._resumed else 0
        self._given_out, self._resumed = (epoch, done), False
        loader = DataLoader(
            self.dataset,
            # Lists: what a data set does with a number, as to keep it with its row, it does with Python's.
            batch_sampler=(batch.tolist() for batch in self.sampler.batches()[done:]),
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: a loader without one draws from the global state, and with it dropout
            # would depend on how often a loader was made.
            generator=torch.Generator(),
        )
        for number, batch in enumerate(loader, start=done + 1):
            self._given_out = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches of it that were given out, whether these were all, and what planned others."""
        epoch, done = self._given_out
        done = done if epoch == self.sampler.epoch else 0
        whole = done == len(self)
        return {
            "epoch": self.sampler.epoch,
            "done": done,
            "whole": whole,
            "plan": self.sampler.plan if done and not whole else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that `state` counts.

        Raises:
            ConfigError: It is of the middle of an epoch that other data or arguments would have planned.
        """
        require(
            state.get("plan") in (None, self.sampler.plan),
            f"the run stopped within epoch {state['epoch']}, whose other batches only the same data and batches tell",
            "data",
            mend="go on with the same data, limit, seed, batch_size, max_tokens and devices",
        )
        self.sampler.set_epoch(state["epoch"])
        # Of an epoch that was whole nothing is left, also where other data now makes more batches of it.
        done = len(self) if state.get("whole") else state["done"]
        self._given_out, self._resumed = (state["epoch"], done), True
