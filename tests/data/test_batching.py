"""What an epoch promises: every row once, little padding, the same again, and a way back into its middle."""

import json
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from lit_nlp.data import batching
from lit_nlp.data.batching import Batches, BatchSampler
from lit_nlp.errors import ConfigError

# Lengths as texts have them: many short, few long.
LENGTHS = [min(512, 3 + int(random.Random(row).lognormvariate(3, 0.8))) for row in range(2_000)]
SIDES = np.array(LENGTHS)[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lists(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def plan_batches(sides: np.ndarray, **options: Any) -> list[list[int]]:
    return lists(batching.plan_batches(sides, **options))


def share(batches: list[list[int]], rank: int, world_size: int, **options: Any) -> list[list[int]]:
    return lists(batching.share([np.array(batch) for batch in batches], rank, world_size, **options))


def rows_of(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def padded_tokens(batch: list[int]) -> int:
    return len(batch) * max(LENGTHS[row] for row in batch)


def padding(batches: list[list[int]]) -> int:
    return sum(map(padded_tokens, batches)) - sum(LENGTHS[row] for row in rows_of(batches))


class Numbers(Dataset[dict[str, Any]]):
    """Rows that hold their own number."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        assert {*map(type, rows)} == {int}
        return [{"row": row} for row in rows]


def collate(rows: list[dict[str, Any]]) -> list[int]:
    return [row["row"] for row in rows]


def loader(size: int = 23, *, num_workers: int = 0, shuffle: bool = True, **options: Any) -> Batches:
    sampler = BatchSampler(SIDES[:size], shuffle=shuffle, **{"batch_size": 4, **options})
    return Batches(Numbers(size), sampler, collate, num_workers)


# One epoch


@pytest.mark.parametrize("max_tokens", [None, 300])
def test_a_seed_may_be_any_number(max_tokens: int | None) -> None:
    once, again, other = (loader(seed=seed, max_tokens=max_tokens) for seed in (10**14, 10**14, 10**14 + 1))
    assert list(once) == list(again) != list(other)


@pytest.mark.parametrize("max_tokens", [None, 300])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("size", [1, 7, 8, 2_000])
def test_every_row_comes_exactly_once(size: int, shuffled: bool, max_tokens: int | None) -> None:
    batches = plan_batches(
        SIDES[:size], batch_size=8, max_tokens=max_tokens, generator=generator() if shuffled else None
    )
    assert sorted(rows_of(batches)) == list(range(size))
    assert all(1 <= len(batch) <= 8 for batch in batches)


def test_no_rows_make_no_batches() -> None:
    assert plan_batches(SIDES[:0], batch_size=8) == plan_batches(SIDES[:0], batch_size=8, generator=generator()) == []


def test_batches_are_full_but_for_the_last_of_a_pool() -> None:
    assert len(plan_batches(SIDES, batch_size=32, generator=generator())) == len(LENGTHS) // 32 + 1


def test_padding_is_a_tenth_of_what_random_batches_need() -> None:
    order = torch.randperm(len(LENGTHS), generator=generator()).tolist()
    at_random = [order[start : start + 32] for start in range(0, len(order), 32)]
    assert padding(plan_batches(SIDES, batch_size=32, generator=generator())) < padding(at_random) / 10


def test_long_and_short_batches_come_in_no_order() -> None:
    longest = [
        max(LENGTHS[row] for row in batch) for batch in plan_batches(SIDES, batch_size=32, generator=generator())
    ]
    rises = sum(first < second for first, second in pairwise(longest))
    assert 0.3 < rises / len(longest) < 0.7


def test_evaluation_begins_with_the_longest_rows_and_wastes_the_least_padding() -> None:
    batches = plan_batches(SIDES, batch_size=32)
    longest_first = sorted(batches, key=lambda batch: [-LENGTHS[row] for row in batch])
    assert batches[0] == longest_first[0]
    assert [LENGTHS[row] for row in rows_of(longest_first)] == sorted(LENGTHS, reverse=True)


def test_the_first_few_batches_of_an_evaluation_are_like_the_rest() -> None:
    batches = plan_batches(SIDES, batch_size=32)
    some = [LENGTHS[row] for row in rows_of(batches[1:20])]
    assert sum(some) / len(some) == pytest.approx(sum(LENGTHS) / len(LENGTHS), rel=0.2)


# A budget of tokens


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("budget", [64, 500, 4_096])
def test_a_budget_of_tokens_is_kept_with_padding_but_for_single_rows_beyond_it(budget: int, shuffled: bool) -> None:
    batches = plan_batches(SIDES, batch_size=10_000, max_tokens=budget, generator=generator() if shuffled else None)
    over = [batch for batch in batches if padded_tokens(batch) > budget]
    assert all(len(batch) == 1 for batch in over)
    assert len(over) == sum(length > budget for length in LENGTHS)


def test_a_budget_of_tokens_is_used_up() -> None:
    batches = plan_batches(SIDES, batch_size=10_000, max_tokens=4_096, generator=generator())
    assert sum(map(padded_tokens, batches)) > 0.9 * 4_096 * len(batches)


def test_with_a_budget_the_rows_of_a_batch_are_bounded_too() -> None:
    assert plan_batches(np.ones((4, 1), dtype=int), batch_size=3, max_tokens=100) == [[0, 1, 2], [3]]


def test_with_a_budget_every_epoch_has_as_many_steps() -> None:
    sampler = BatchSampler(SIDES, batch_size=8, max_tokens=200, shuffle=True)
    epochs = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        epochs.append(lists(sampler.batches()))
    assert len({len(batches) for batches in epochs}) == 1
    assert len({tuple(map(tuple, batches)) for batches in epochs}) == 5, "their order differs"


# Seeds and epochs


@pytest.mark.parametrize("max_tokens", [None, 300])
def test_seed_and_epoch_decide_the_batches(max_tokens: int | None) -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = BatchSampler(SIDES, batch_size=8, max_tokens=max_tokens, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return lists(sampler.batches())

    assert batches(1, 2) == batches(1, 2)
    different = {tuple(map(tuple, batches(seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(different) == 9


def test_an_epoch_can_be_chosen_again() -> None:
    sampler = BatchSampler(SIDES, batch_size=8, shuffle=True)
    first = lists(sampler.batches())
    sampler.set_epoch(1)
    assert lists(sampler.batches()) != first
    sampler.set_epoch(0)
    assert lists(sampler.batches()) == first


def test_evaluation_is_the_same_in_every_epoch() -> None:
    sampler = BatchSampler(SIDES, batch_size=8)
    first = lists(sampler.batches())
    sampler.set_epoch(1)
    assert lists(sampler.batches()) == first


# Shares of several processes


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [5, 9, 23, 400])
@pytest.mark.parametrize("max_tokens", [None, 300])
def test_in_evaluation_the_shares_are_disjoint_and_complete(size: int, processes: int, max_tokens: int | None) -> None:
    shares = [
        BatchSampler(SIDES[:size], batch_size=4, max_tokens=max_tokens, rank=rank, world_size=processes).batches()
        for rank in range(processes)
    ]
    assert sorted(row for batches in shares for row in rows_of(batches)) == list(range(size))
    assert all(len(batch) <= 4 for batches in shares for batch in batches)
    assert len({len(batches) for batches in shares}) == 1, "a process that has more would wait for the others"


def test_in_evaluation_single_rows_that_do_not_divide_are_still_given_once() -> None:
    shares = [share([[0], [1], [2]], rank, 2, even=False) for rank in range(2)]
    assert shares == [[[0], [2]], [[1]]]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [1, 5, 9, 23, 400])
def test_in_training_the_shares_are_of_one_size_and_leave_nothing_out(size: int, processes: int) -> None:
    shares = [
        BatchSampler(SIDES[:size], batch_size=4, shuffle=True, rank=rank, world_size=processes).batches()
        for rank in range(processes)
    ]
    assert len({len(batches) for batches in shares}) == 1
    assert {row for batches in shares for row in rows_of(batches)} == set(range(size))
    assert sum(map(len, shares)) < -(-size // 4) + processes, "no more is repeated than needed"


def test_a_process_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data: too few rows \(2\) for 3 processes; lower trainer.devices$"):
        share([[0, 1]], 0, 3, even=False)
    with pytest.raises(ConfigError, match=r"too few rows \(0\) for 1 processes"):
        share([], 0, 1, even=True)


# Passing over batches, and back into the middle


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_batches_come_as_the_sampler_plans_them(shuffle: bool, num_workers: int) -> None:
    batches = loader(num_workers=num_workers, shuffle=shuffle)
    assert list(batches) == lists(batches.sampler.batches())
    assert len(batches) == 6


@pytest.mark.parametrize("max_tokens", [None, 80])
@pytest.mark.parametrize("epoch", [0, 3])
def test_resuming_gives_exactly_the_batches_that_were_left(epoch: int, max_tokens: int | None) -> None:
    unbroken = loader(max_tokens=max_tokens)
    unbroken.sampler.set_epoch(epoch)
    whole = list(unbroken)
    for done in range(len(whole) + 1):
        stopped = loader(max_tokens=max_tokens)
        stopped.sampler.set_epoch(epoch)
        given = list(islice(stopped, done))
        resumed = loader(max_tokens=max_tokens)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert given + list(resumed) == whole
        for following in (epoch + 1, epoch + 2):
            resumed.sampler.set_epoch(following)
            unbroken.sampler.set_epoch(following)
            assert list(resumed) == list(unbroken)


def test_after_a_resume_that_went_to_the_end_the_same_epoch_is_whole_again() -> None:
    batches = loader()
    batches.load_state_dict({"epoch": 0, "done": 4})
    assert len(list(batches)) == 2
    assert len(list(batches)) == 6


def test_a_state_of_a_finished_epoch_does_not_shorten_the_next() -> None:
    finished = loader()
    list(finished)
    resumed = loader()
    resumed.load_state_dict(finished.state_dict())
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == 6


def counted(batches: Batches) -> tuple[int, int]:
    state = batches.state_dict()
    return state["epoch"], state["done"]


def test_the_state_counts_only_batches_of_its_own_epoch() -> None:
    batches = loader()
    batches.load_state_dict({"epoch": 2, "done": 3})
    assert counted(batches) == (2, 3)
    next(iter(batches))
    assert counted(batches) == (2, 4)
    batches.sampler.set_epoch(3)
    assert counted(batches) == (3, 0)


def test_the_state_counts_batches_given_out_not_those_that_workers_prepared() -> None:
    batches = loader(num_workers=2)
    passing = iter(batches)
    next(passing)
    assert counted(batches) == (0, 1)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch_size": 3}, {"max_tokens": 30}, {"world_size": 2}])
def test_an_epoch_goes_on_with_its_own_batches_or_not_at_all(changes: dict[str, int]) -> None:
    stopped = loader()
    loader(**changes).load_state_dict(stopped.state_dict())  # of which none was given out
    next(iter(stopped))
    with pytest.raises(ConfigError, match=r"^data: the run stopped within epoch 0, whose other batches only the same"):
        loader(**changes).load_state_dict(stopped.state_dict())
    list(stopped)
    other = loader(**changes)
    other.load_state_dict(stopped.state_dict())
    assert not list(other), "of the epoch that was whole"
    other.sampler.set_epoch(1)
    assert list(other) == lists(other.sampler.batches())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_passing_over_batches_draws_nothing_from_the_global_generators(num_workers: int) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(loader(num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


# Under Lightning


class Recorder(LightningModule):
    """Learns nothing, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(batches: Batches, folder: Path, **options: Any) -> list[list[int]]:
    module = Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(max_epochs=3, callbacks=[every_step], **quiet)
    trainer.fit(module, batches, weights_only=True, **options)
    return module.seen


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_trainer_shuffles_anew_each_epoch_and_resumes_at_the_next_batch(tmp_path: Path) -> None:
    unbroken = fit(loader(), tmp_path)
    assert len({tuple(map(tuple, unbroken[start : start + 6])) for start in (0, 6, 12)}) == 3
    for step in (1, 5, 6, 7, 17):
        resumed = fit(loader(), tmp_path / f"from_{step}", ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert resumed == unbroken[step:]


def test_a_budget_counts_the_padding_of_each_side() -> None:
    sides = np.array([[9, 1], [1, 9], [5, 5], [2, 2], [2, 2]])
    for seed in range(5):
        batches = plan_batches(sides, batch_size=10, max_tokens=30, generator=generator(seed))
        assert sorted(rows_of(batches)) == list(range(5))
        for batch in batches:
            assert len(batch) * sides[batch].max(0).sum() <= 30
