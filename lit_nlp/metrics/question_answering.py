"""Exact match and F1 of extractive question answering, by the rules of the official SQuAD scripts.

https://rajpurkar.github.io/SQuAD-explorer: evaluate-v1.1.py, and evaluate-v2.0.py where questions may have no answer.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return an answer in lower case, without ASCII punctuation and articles, its words parted by single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str], *, no_answers: bool = False) -> float:
    """Return 1 where the prediction is one of the answers, normalised; else 0.

    Args:
        prediction: The predicted answer, empty for none.
        answers: The given ones, empty for none.
        no_answers: Whether the data set has questions without an answer: the rules of v2.0, by which answers that
            normalise to nothing don't count beside others.
    """
    return max(float(normalise(prediction) == normalise(answer)) for answer in _counted(answers, no_answers))


def f1(prediction: str, answers: Sequence[str], *, no_answers: bool = False) -> float:
    """Return the harmonic mean of precision and recall over the words that the prediction shares with an answer.

    The best over all answers. By the rules of v2.0, nothing agrees with nothing; by those of v1.1 it has no words.

    Args:
        prediction: The predicted answer, empty for none.
        answers: The given ones, empty for none.
        no_answers: Whether the data set has questions without an answer: the rules of v2.0.
    """
    by_version_2 = no_answers or not answers
    return max(_f1(prediction, answer, by_version_2) for answer in _counted(answers, no_answers))


def _counted(answers: Sequence[str], no_answers: bool) -> Sequence[str]:
    return ([answer for answer in answers if normalise(answer)] if no_answers else answers) or [""]


def _f1(prediction: str, answer: str, by_version_2: bool) -> float:
    predicted, given = normalise(prediction).split(), normalise(answer).split()
    if by_version_2 and not (predicted and given):
        return float(predicted == given)
    shared = (Counter(predicted) & Counter(given)).total()
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(given)
    return 2 * precision * recall / (precision + recall)


def _float(device: torch.device) -> torch.dtype:
    """Odds in the precision that they are written in, where the device has it: a threshold among them must tell."""
    return torch.float if device.type == "mps" else torch.double


def best_threshold(
    scores: Float[Tensor, " questions"],
    null_odds: Float[Tensor, " questions"],
    has_answer: Float[Tensor, " questions"],
    answered: Float[Tensor, " questions"],
) -> tuple[float, float]:
    """Return the mean score, in percent, under the best threshold on the null odds, and that threshold.

    `find_best_thresh` of evaluate-v2.0.py: questions whose odds are above the threshold get no answer. Where giving
    none at all is best, the threshold is 0, whatever the odds.

    Args:
        scores: What each prediction scores, as if every question got its answer.
        null_odds: How much more likely no answer is than the predicted one; any scale.
        has_answer: 1 for questions that have one.
        answered: 1 where the prediction isn't empty.
    """
    order = null_odds.argsort(stable=True)
    gains = torch.where(has_answer > 0, scores, -answered)[order]
    totals = (1 - has_answer).sum() + gains.cumsum(0)
    best = float(totals.max())
    if best <= float((1 - has_answer).sum()):
        return 100 * float((1 - has_answer).mean()), 0.0
    return 100 * best / len(scores), float(null_odds[order[int((totals == best).nonzero()[0])]])


class SquadMetric(Metric):
    """Exact match and F1 in percent, as the official SQuAD scripts count them.

    torchmetrics' SQuAD fails on questions without an answer and miscounts ids that come twice. Its state is seven
    floats a question, since the best thresholds need them all, and only the last question may show that some have no
    answer, so that the rules of v2.0 hold for all.

    Args:
        no_answers: Whether the rules of v2.0 hold also where all questions have an answer.

    Example:
        >>> metric = SquadMetric()
        >>> metric.update(["the grey cat"], [0.0], [["grey cat", "cat"]])
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'exact_match': 100.0, 'f1': 100.0}
    """

    full_state_update = False
    scored: list[Tensor] | Tensor

    def __init__(self, *, no_answers: bool = False) -> None:
        super().__init__()
        self.no_answers = no_answers
        self.add_state("scored", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[str], null_odds: Sequence[float], answers: Sequence[Sequence[str]]) -> None:
        """Score questions.

        Args:
            predictions: The answer to each question, empty for none.
            null_odds: How much more likely none is; the thresholds that are called best are among them.
            answers: The given answers, none for a question without one.
        """
        scored = [
            (
                float(bool(given)),
                odds,
                float(bool(prediction)),
                *(
                    rule(prediction, given, no_answers=version)
                    for version in (False, True)
                    for rule in (exact_match, f1)
                ),
            )
            for prediction, odds, given in zip(predictions, null_odds, answers, strict=True)
        ]
        assert isinstance(self.scored, list)
        self.scored.append(torch.tensor(scored, dtype=_float(self.device), device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return `exact_match` and `f1`; where questions had no answer also what v2.0 tells.

        That is `HasAns_exact`, `HasAns_f1`, `HasAns_total`, the same of `NoAns`, and the figures under the best
        threshold, `best_exact` and `best_f1`, with that threshold, `best_exact_thresh` and `best_f1_thresh`. They are
        the best that can be had by taking answers back.
        """
        has_answer, odds, answered, *by_version = dim_zero_cat(self.scored).cpu().double().unbind(1)
        exact, f1_ = by_version[2:] if self.no_answers or not has_answer.all() else by_version[:2]
        told = {"exact_match": 100 * exact.mean(), "f1": 100 * f1_.mean()}
        for name, group in ("HasAns", has_answer > 0), ("NoAns", has_answer == 0):
            if group.any() and not has_answer.all():
                told |= {f"{name}_exact": 100 * exact[group].mean(), f"{name}_f1": 100 * f1_[group].mean()}
                told[f"{name}_total"] = group.sum()
        if not has_answer.all():
            for name, figures in ("exact", exact), ("f1", f1_):
                best, threshold = best_threshold(figures, odds, has_answer, answered)
                told |= {f"best_{name}": torch.tensor(best), f"best_{name}_thresh": torch.tensor(threshold)}
        return {name: figure.to(self.device, torch.float) for name, figure in told.items()}
