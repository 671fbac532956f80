"""sacrebleu's corpus metrics, whose states are sums: the same on one process as on many, whatever the corpus's size."""

from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF, TER
from torch import Tensor
from torchmetrics import Metric

_METRICS = {"bleu": BLEU, "chrf": CHRF, "ter": TER}


class SacreMetric(Metric):
    """BLEU (Post 2018), chrF (Popović 2015) or TER (Snover et al. 2006) by sacrebleu, from 0 to 100.

    A segment's statistics are integers, and a corpus's are their sums.

    Args:
        name: bleu, chrf or ter.
        arguments: sacrebleu's, such as BLEU's `tokenize`, or `trg_lang`, which chooses it.
    """

    full_state_update = False
    statistics: Tensor

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        self.sacrebleu = _METRICS[name](**arguments)
        length = len(self.sacrebleu._extract_corpus_statistics(["a"], [["a"]])[0])
        self.add_state("statistics", torch.zeros(length, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add segments, each with its one reference."""
        found = self.sacrebleu._extract_corpus_statistics(list(hypotheses), [list(references)])
        self.statistics += torch.tensor(found, dtype=torch.long, device=self.statistics.device).sum(0)

    def compute(self) -> Tensor:
        """Return the corpus's score."""
        return torch.tensor(self.sacrebleu._compute_score_from_stats(self.statistics.tolist()).score)

    @property
    def signature(self) -> str:
        """What sacrebleu says of how it measured."""
        self.sacrebleu.num_refs = 1
        return str(self.sacrebleu.get_signature())
