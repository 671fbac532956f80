"""How near fitting comes to what the machine can do."""

import csv
import tempfile
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from tests.benchmarks.fitting import fit, sentiment
from tests.benchmarks.harness import DEVICE, PRECISION, Clock, Line, Setting, rates, threads

# Rows, columns and depth of products as they come in an encoder, and of one that fits the caches well.
SHAPES = {
    "cpu": ((704, 1536, 384), (704, 384, 1536), (704, 384, 384), (1024, 1024, 1024), (2048, 3072, 768)),
    "cuda": ((8192, 3072, 768), (16384, 768, 3072), (8192, 8192, 8192)),
}
ROWS, _REPEATS = 960, 8


def matrix_share(setting: Setting) -> list[Line]:
    """MiniLM on SST-2: 6 operations a parameter and token, beside the best rate of matrix products."""
    with setting.file("sst2", "train.tsv").open(newline="") as file:
        rows = list(islice(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), ROWS))

    def ours(clock: Clock) -> None:
        with tempfile.TemporaryDirectory() as folder:
            module, data = sentiment(rows, folder)
            fit(module, data, clock, _Operations(clock))

    return rates(
        f"fit, MiniLM-L6, SST-2, useful matrix work, {threads()}",
        ours,
        {f"matrix products in {'bf16' if PRECISION == 'bf16-mixed' else 'fp32'}": (0.55, products)},
        unit="GFLOP",
        turns=setting.turns,
    )


class _Operations(Callback):
    """Counts the operations of a forward and a backward pass, in thousands of millions: no padding, no embeddings."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.done += 6 * multiplied(module.model) * int(batch["attention_mask"].sum()) / 1e9


def multiplied(model: Any) -> int:
    """Return how many parameters are multiplied by: those that are looked up only if they make logits, too."""
    looked_up = {each for part in model.modules() if isinstance(part, nn.Embedding) for each in part.parameters()}
    head = model.get_output_embeddings()
    makes_logits = set() if head is None else {*head.parameters()}
    return sum(each.numel() for each in {*model.parameters()} - looked_up | makes_logits)


def products(clock: Clock) -> None:
    """Put the product of the highest rate on the clock, in thousands of millions of operations."""
    given: dict[str, Any] = {"dtype": torch.bfloat16 if PRECISION == "bf16-mixed" else torch.float32, "device": DEVICE}
    for rows, columns, depth in SHAPES[DEVICE.type]:
        one, other = torch.randn(rows, depth, **given), torch.randn(columns, depth, **given)
        one @ other.T
        timed = Clock(done=_REPEATS * 2 * rows * columns * depth / 1e9)
        with torch.inference_mode(), timed.running():
            for _ in range(_REPEATS):
                one @ other.T
        if not clock.seconds or timed.done / timed.seconds > clock.done / clock.seconds:
            clock.done, clock.seconds = timed.done, timed.seconds
