"""Is an explanation true of the model? Words are blanked by their scores, and the model is asked again.

All figures share one limit: a text with blanks is no text that the model was trained on, so that they favour
methods that blank words themselves. They compare methods on one model; they don't compare models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import fmean
from typing import Literal, Protocol, runtime_checkable

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.functional.regression import kendall_rank_corrcoef

from lit_nlp.errors import ConfigError
from lit_nlp.explain.significance import LEVEL, bootstrap_interval, fewest_texts, holm, sign_flip_test

Scores = Float[Tensor, " words"]

RANDOM = "random"
PERCENTS = (1, 5, 10, 20, 50)
_STEPS = 20
_SHARES = torch.linspace(0, 1, _STEPS + 1, dtype=torch.double)  # at which a mean curve is drawn
_IOU = 0.5


@runtime_checkable
class Game(Protocol):
    """One text as a game of its words: what the module says where some of them are blanked.

    `keep` is 1 where a word stays and 0 where it is replaced by the baseline.
    """

    words: int

    def score(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the scalar that is explained."""

    def log_probability(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the log probability of the target, in nats."""

    def soft_log_probability(
        self, retain: Float[Tensor, "samples words"], generator: torch.Generator
    ) -> Float[Tensor, " samples"]:
        """Return the same where each element of a word's embeddings is kept with the word's probability."""


class Remembered:
    """A game that plays each coalition once, however often it is asked.

    The methods that explain one text share many coalitions: give them all the same one.
    """

    def __init__(self, game: Game) -> None:
        self.words, self._game = game.words, game
        self._scores: dict[bytes, float] = {}
        self._log_probabilities: dict[bytes, float] = {}

    def score(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the scalar that is explained."""
        return _recalled(self._game.score, self._scores, keep)

    def log_probability(self, keep: Float[Tensor, "coalitions words"]) -> Float[Tensor, " coalitions"]:
        """Return the log probability of the target, in nats."""
        return _recalled(self._game.log_probability, self._log_probabilities, keep)

    def soft_log_probability(
        self, retain: Float[Tensor, "samples words"], generator: torch.Generator
    ) -> Float[Tensor, " samples"]:
        """Play anew: these are draws."""
        return self._game.soft_log_probability(retain, generator)


@dataclass(frozen=True)
class Curve:
    """The target's probability as ever more words are removed or inserted.

    Attributes:
        shares: The shares of the words, from 0 to 1.
        probabilities: Of the target, at each.
        area: Under the curve, by the trapezoid rule; between 0 and 1. Of a mean curve, the mean of the areas.
    """

    shares: list[float]
    probabilities: list[float]
    area: float


@dataclass(frozen=True)
class Plausibility:
    """How far the scores agree with the words that people marked; it says nothing of the model. Higher is better.

    Attributes:
        auprc: The average precision of the ranking.
        token_f1: The F1 of as many top words as were marked.
        iou_f1: The F1 of their spans, which agree where they share half of their words.
    """

    auprc: float
    token_f1: float
    iou_f1: float


@dataclass(frozen=True)
class Faithfulness:
    """What one text's scores are worth; each figure is defined by the function of its name.

    None where a figure isn't defined, as the rank correlation of one word isn't.
    """

    words: int
    comprehensiveness: float
    sufficiency: float
    soft_comprehensiveness: float | None
    soft_sufficiency: float | None
    log_odds: float
    deletion: Curve
    insertion: Curve
    tau_loo: float | None
    infidelity: float
    max_sensitivity: float | None = None
    plausibility: Plausibility | None = None


def measure(
    game: Game,
    scores: Scores,
    *,
    rationale: Bool[Tensor, " words"] | None = None,
    soft_samples: int = 16,
    infidelity_samples: int = 64,
    seed: int = 0,
) -> Faithfulness | None:
    """Measure one text's scores by all figures; None where the text has no words.

    The figures come from classifiers. For other tasks, `compare_methods` adapts them:

    - of an answer, the probability is that of its span, fixed, in the window that gave it;
    - of what is written, each token is a text by itself, and its probability is that given the source and the tokens
      before it, as they were written (teacher forcing); the tokens of one text count once, by their mean;
    - the words are those that the model reads: of the answer's window, or of the source and what is written before.

    Args:
        game: The text; a `Remembered` one, where several methods explain it.
        scores: Of its words; positive ones speak for the target.
        rationale: The words that people marked, as `rationale_words` finds them.
        soft_samples: Draws of the soft figures.
        infidelity_samples: Draws of infidelity.
        seed: What draws begin with; the same for all methods of a text, so that they meet the same draws.

    Raises:
        ValueError: As many scores as words were expected, all finite.
    """
    if game.words == 0:
        return None
    game = game if isinstance(game, Remembered) else Remembered(game)
    dropped = _dropped(game.words, infidelity_samples, seed)
    game.score(torch.cat([_full(game), 1 - torch.eye(game.words, dtype=torch.double), 1 - dropped]))
    top = _top(game, scores, [*_bins(game.words), *_steps(game.words)])
    game.log_probability(torch.cat([top, 1 - top]))
    softly = soft_erasure(game, scores, samples=soft_samples, seed=seed)
    return Faithfulness(
        words=game.words,
        comprehensiveness=comprehensiveness(game, scores),
        sufficiency=sufficiency(game, scores),
        soft_comprehensiveness=softly.comprehensiveness if softly else None,
        soft_sufficiency=softly.sufficiency if softly else None,
        log_odds=log_odds(game, scores),
        deletion=deletion(game, scores),
        insertion=insertion(game, scores),
        tau_loo=tau_loo(game, scores),
        infidelity=infidelity(game, scores, samples=infidelity_samples, seed=seed),
        plausibility=None if rationale is None else plausibility(scores, rationale),
    )


def random_scores(words: int, seed: int) -> Scores:
    """Return scores drawn at random: the floor under every method. Give each text a seed of its own."""
    return torch.randn(words, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# What the top words do


def comprehensiveness(game: Game, scores: Scores) -> float:
    """Return the probability that the target loses without the top k % of the words. Higher is better.

    DeYoung et al. 2020, "ERASER": p(all) − p(all but the top k %), the mean over k = 1, 5, 10, 20 and 50, as their
    code takes it (AOPC). Words that speak for the target most come first; k % are rounded up to whole words.
    """
    erased = game.log_probability(1 - _top(game, scores, _bins(game.words))).exp()
    return float((_all(game).exp() - erased).mean())


def sufficiency(game: Game, scores: Scores) -> float:
    """Return the probability that the target loses where only the top k % of the words stay. Lower is better.

    DeYoung et al. 2020: p(all) − p(only the top k %), over the same k.
    """
    kept = game.log_probability(_top(game, scores, _bins(game.words))).exp()
    return float((_all(game).exp() - kept).mean())


def log_odds(game: Game, scores: Scores) -> float:
    """Return the change of the target's log probability, in nats, without the top k % of the words. Lower is better.

    Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences", in the form of
    Chen et al. 2019, "L-Shapley and C-Shapley": log p(all but the top k %) − log p(all), the mean over the same k.
    """
    erased = game.log_probability(1 - _top(game, scores, _bins(game.words)))
    return float((erased - _all(game)).mean())


def deletion(game: Game, scores: Scores) -> Curve:
    """Return the target's probability as words are removed, the top ones first. A lower area is better.

    Petsiuk et al. 2018, "RISE"; one word at a time, in texts of more than 20 words in 20 steps.
    """
    return _curve(game, 1 - _top(game, scores, _steps(game.words)))


def insertion(game: Game, scores: Scores) -> Curve:
    """Return the target's probability as words are put into a blank text, the top ones first. A higher area is better.

    Petsiuk et al. 2018, in the steps of `deletion`.
    """
    return _curve(game, _top(game, scores, _steps(game.words)))


# What all scores do


@dataclass(frozen=True)
class SoftErasure:
    """Shares, from 0 to 1, of what the target loses with all words. Of both, higher is better."""

    sufficiency: float
    comprehensiveness: float


def soft_erasure(game: Game, scores: Scores, *, samples: int = 16, seed: int = 0) -> SoftErasure | None:
    """Return soft sufficiency and soft comprehensiveness, normalised.

    Zhao and Aletras 2023, "Incorporating Attribution Importance for Improving Faithfulness Metrics": with the scores
    scaled to 0 … 1, each element of a word's embeddings stays with the word's probability a (sufficiency), or 1 − a
    (comprehensiveness). With S = 1 − max(0, p(all) − p(X′)) and S₀ the same of the blank text,

        Soft-NS = max(0, S − S₀) / (1 − S₀),    Soft-NC = max(0, p(all) − p(X″)) / (1 − S₀),

    each cut off at 1 as in the code of Chrysostomou and Aletras, and averaged over the draws. Elements that go take
    the baseline's value, where the paper has 0. Equal scores keep half of each word.

    Returns:
        None where the target is no less probable in the blank text: there is nothing to share out.
    """
    _check(game, scores)
    full, empty = game.log_probability(torch.cat([_full(game), 1 - _full(game)])).exp()
    loss = full - empty
    if loss <= 0:
        return None
    low, high = scores.double().aminmax()
    share = (scores.double() - low) / (high - low) if high > low else torch.full_like(scores, 0.5).double()
    retain = torch.stack([share, 1 - share]).repeat_interleave(samples, dim=0)
    played = game.soft_log_probability(retain, torch.Generator().manual_seed(seed)).exp()
    lost_with_top, lost_without = (full - played).clamp(min=0).div(loss).clamp(max=1).split(samples)
    return SoftErasure(sufficiency=float(1 - lost_with_top.mean()), comprehensiveness=float(lost_without.mean()))


def tau_loo(game: Game, scores: Scores) -> float | None:
    """Return Kendall's τ-b between the scores and what the score loses without each word alone. Higher is better.

    Kendall 1945, "The Treatment of Ties in Ranking Problems"; Jain and Wallace 2019, "Attention is not Explanation".

    Returns:
        From −1 to 1; None where the words, or their changes, are all alike.
    """
    _check(game, scores)
    played = game.score(torch.cat([_full(game), 1 - torch.eye(game.words, dtype=torch.double)])).double()
    changes = played[0] - played[1:]
    if len(scores.unique()) < 2 or len(changes.unique()) < 2:
        return None
    tau = kendall_rank_corrcoef(scores.double(), changes)
    assert isinstance(tau, Tensor)  # a pair only with a t-test
    return float(tau)


def infidelity(game: Game, scores: Scores, *, samples: int = 64, seed: int = 0) -> float:
    """Return how far the scores of random words are from what the score loses without them. Lower is better.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations": E[(β I·φ − (f(x) − f(x − I)))²], where I
    drops each word with probability ½, in squared units of the score. Scores of different methods have no unit in
    common: so, as in the paper's experiments, β is the scale that fits best, here at least 0, since scores that
    point the wrong way are not faithful.
    """
    _check(game, scores)
    dropped = _dropped(game.words, samples, seed)
    played = game.score(torch.cat([_full(game), 1 - dropped])).double()
    changes, credited = played[0] - played[1:], dropped @ scores.double()
    size = credited.square().sum()
    scale = ((credited * changes).sum() / size).clamp(min=0) if size > 0 else size
    found = captum_infidelity(
        game.score,
        lambda keep: (dropped, keep - dropped),
        _full(game),
        scale * scores.double().unsqueeze(0),
        n_perturb_samples=samples,
    )
    return float(found)


# What a small step changes

Explanation = Callable[[tuple[Float[Tensor, "1 tokens hidden"], ...], int], Float[Tensor, " words"]]


def max_sensitivity(
    explain: Explanation,
    embeddings: tuple[Float[Tensor, "1 tokens hidden"], ...],
    *,
    radius: float = 0.1,
    samples: int = 10,
    seed: int = 0,
) -> float:
    """Return how far the scores of a text move at most where its embeddings move a little. Lower is better.

    Yeh et al. 2019: max over y of ‖Φ(y) − Φ(x)‖ / ‖Φ(x)‖, where y lies around x, by draws. It tells whether an
    explanation is stable, and nothing of its truth: scores that are always the same have 0.

    Args:
        explain: What gives scores for embeddings, and the number of the call; whatever it draws, it draws anew, so
            that the noise of a method that samples counts, too.
        embeddings: Of the text.
        radius: How far each element moves at most, as a share of the embeddings' root mean square.
        samples: How many y.
        seed: What they are drawn by.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = count()

    def moved(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        steps = [2 * torch.rand(each.shape, generator=generator).to(each) - 1 for each in given]
        return tuple(
            each + radius * each.square().mean().sqrt() * step for each, step in zip(given, steps, strict=True)
        )

    found = captum_sensitivity(
        # Captum takes a bare tensor's rows apart.
        lambda given: (explain(given, next(calls)).unsqueeze(0),),
        embeddings,
        perturb_func=moved,
        n_perturb_samples=samples,
        max_examples_per_batch=1,
    )
    return float(found)


# What people say


def rationale_words(words: Sequence[tuple[int, int]], rationales: Sequence[tuple[int, int]]) -> Bool[Tensor, " words"]:
    """Return which words lie, with one character at least, in a span that people marked.

    Args:
        words: The characters `(start, end)` of each word, as `find_words` tells them.
        rationales: Those of each span.
    """
    marked = [any(start < b and a < end for a, b in rationales) for start, end in words]
    return torch.tensor(marked, dtype=torch.bool)


def plausibility(scores: Scores, rationale: Bool[Tensor, " words"]) -> Plausibility | None:
    """Return how far the scores agree with the marked words; None where there are none.

    DeYoung et al. 2020, with as many top words as were marked. A span is a run of neighbouring words. It counts as
    found where its intersection with one of the other side is half of their union at least.
    """
    marked = int(rationale.sum())
    if marked == 0:
        return None
    # Ranks, since torchmetrics puts scores outside of 0 … 1 through a sigmoid, which makes large ones equal.
    ranks = scores.unique(return_inverse=True)[1].double()
    chosen = torch.zeros_like(rationale)
    chosen[_ranked(scores)[:marked]] = True
    told, gold = _runs(chosen), _runs(rationale)
    precision = sum(any(_iou(a, b) >= _IOU for b in gold) for a in told) / len(told)
    recall = sum(any(_iou(a, b) >= _IOU for b in told) for a in gold) / len(gold)
    return Plausibility(
        auprc=float(binary_average_precision(ranks / ranks.max().clamp(min=1), rationale.long())),
        token_f1=int((chosen & rationale).sum()) / marked,
        iou_f1=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
    )


# Many texts, many methods


@dataclass(frozen=True)
class Metric:
    """A figure of `Faithfulness`, which way better lies, and what it tells, for readers."""

    of: Callable[[Faithfulness], float | None]
    higher: bool
    about: str


METRICS: dict[str, Metric] = {
    "comprehensiveness": Metric(
        lambda text: text.comprehensiveness,
        higher=True,
        about="what the answer's probability loses without the strongest words",
    ),
    "sufficiency": Metric(
        lambda text: text.sufficiency, higher=False, about="what it loses with the strongest words alone"
    ),
    "deletion": Metric(
        lambda text: text.deletion.area,
        higher=False,
        about="how much of it stays, on average, while words go, the strongest first",
    ),
    "insertion": Metric(
        lambda text: text.insertion.area,
        higher=True,
        about="how much of it is there, on average, while words come, the strongest first",
    ),
    "soft_comprehensiveness": Metric(
        lambda text: text.soft_comprehensiveness,
        higher=True,
        about="as comprehensiveness, with every word weakened by its score",
    ),
    "soft_sufficiency": Metric(
        lambda text: text.soft_sufficiency, higher=True, about="as sufficiency, with every word kept by its score"
    ),
    "log_odds": Metric(
        lambda text: text.log_odds, higher=False, about="as comprehensiveness, in the logarithm of the probability"
    ),
    "tau_loo": Metric(
        lambda text: text.tau_loo,
        higher=True,
        about="whether words rank as by what is lost without each alone, from −1 to 1",
    ),
    "infidelity": Metric(
        lambda text: text.infidelity, higher=False, about="how far scores are from what is lost without random words"
    ),
    "max_sensitivity": Metric(
        lambda text: text.max_sensitivity, higher=False, about="how far scores move where the text hardly does"
    ),
    "auprc": Metric(
        lambda text: text.plausibility.auprc if text.plausibility else None,
        higher=True,
        about="whether the words that people marked have the highest scores",
    ),
    "token_f1": Metric(
        lambda text: text.plausibility.token_f1 if text.plausibility else None,
        higher=True,
        about="the share of the marked words among as many of the strongest",
    ),
    "iou_f1": Metric(
        lambda text: text.plausibility.iou_f1 if text.plausibility else None,
        higher=True,
        about="the same for marked passages",
    ),
}
# A method by a metric that is 1 whatever the model: both are what is lost with one word alone.
BY_DEFINITION = ("feature_ablation", "tau_loo")
DECISIVE = ("comprehensiveness", "sufficiency", "deletion", "insertion")
CURVES: dict[str, Callable[[Faithfulness], Curve]] = {
    "deletion": lambda text: text.deletion,
    "insertion": lambda text: text.insertion,
}
_ENOUGH = 3
# Of the target's probability, with all words or with none: a model that words move by less, as one that has hardly
# learnt, is explained by none of them.
_NOTICEABLE = 0.005


@dataclass(frozen=True)
class Estimate:
    """A mean over texts, with the 95 % interval of the percentile bootstrap: to be looked at, and no test."""

    mean: float
    low: float
    high: float
    texts: int


@dataclass(frozen=True)
class Figure:
    """A method by a metric.

    Attributes:
        value: The mean.
        over_random: The mean of the differences, text by text, to the method `random`; None for itself.
        p_value: Of these differences by `sign_flip_test`, corrected for the number of methods by `holm`.
        verdict: `better` or `worse` than random where that is at most `LEVEL`, else `open`.
    """

    value: Estimate
    over_random: Estimate | None
    p_value: float | None
    verdict: Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Comparison:
    """Methods beside each other, on the same model and texts.

    Attributes:
        texts: How many texts were compared.
        figures: By method and metric; a metric that isn't defined for any text is left out.
        curves: By method, and by the names `deletion` and `insertion`, the mean over texts.
        ranks: Of each method, from 1 (the best), by its means: the average over `DECISIVE`.
        trusted: The method to trust for this model, or None.
        reason: Why, in one sentence.
    """

    texts: int
    figures: dict[str, dict[str, Figure]]
    curves: dict[str, dict[str, Curve]]
    ranks: dict[str, float]
    trusted: str | None
    reason: str

    @property
    def methods(self) -> list[str]:
        """The methods, the best-ranked first."""
        return sorted(self.figures, key=lambda method: self.ranks.get(method, math.inf))

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics for which there is a figure, by name."""
        return {name: metric for name, metric in METRICS.items() if any(name in each for each in self.figures.values())}


def compare(
    results: Mapping[str, Sequence[Faithfulness | None]], *, texts: Sequence[int] | None = None, seed: int = 0
) -> Comparison:
    """Compare methods by what `measure` found of the same texts, in the same order.

    A method is trusted that ranks best by its means over comprehensiveness, sufficiency, deletion and insertion among
    those that are better than random scores by three of these four at least, each time by half a percent of the
    target's probability or more, and worse by none. Those of them that it isn't better than, but for chance, are named
    with it.

    Args:
        results: By method; with one called `random`. A text that has None in one of them is left out of all.
        texts: The number of each result's text, where several are of one, as the tokens of a written text are:
            they count once, with their mean. None: each is a text of its own.
        seed: What tests and intervals draw by.

    Raises:
        ConfigError: There is no method `random`.
        ValueError: The methods have different numbers of texts.
    """
    if RANDOM not in results:
        raise ConfigError(
            f"methods are compared with random scores, but there are only {', '.join(results) or 'none'}",
            where="methods",
            mend=f"add {RANDOM!r}",
        )
    counts = {method: len(texts) for method, texts in results.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected the same texts for all methods, got {counts}")
    numbers = range(max(counts.values())) if texts is None else texts
    rows = [(row, number) for *row, number in zip(*results.values(), numbers, strict=True) if None not in row]
    columns = zip(*(row for row, _ in rows), strict=True) if rows else ((),) * len(results)
    by_method = dict(zip(results, columns, strict=True))
    kept = [number for _, number in rows]
    figures = _figures(by_method, kept, seed)
    curves = {
        method: {name: _mean_curve([of(each) for each in found], kept) for name, of in CURVES.items() if found}
        for method, found in by_method.items()
    }
    ranks = _ranks(figures) if rows else {}
    least = _NOTICEABLE * max(curves[RANDOM]["deletion"].probabilities, default=0.0) if rows else 0.0
    trusted, reason = _trusted(figures, ranks, len(set(kept)), least, partial(_gains, by_method, kept), seed)
    return Comparison(len(set(kept)), figures, curves, ranks, trusted, reason)


def table(comparison: Comparison, metrics: Sequence[str] = tuple(METRICS)) -> str:
    """Return a Markdown table, the best-ranked method first, and under it which method to trust.

    Args:
        comparison: What to show.
        metrics: Its columns; those without a figure are left out.
    """
    shown = {metric: comparison.metrics[metric] for metric in metrics if metric in comparison.metrics}
    head = ["method", *(f"{name} {'↑' if metric.higher else '↓'}" for name, metric in shown.items())]
    rows = [
        [method, *(_cell(comparison.figures[method].get(name), (method, name) == BY_DEFINITION) for name in shown)]
        for method in comparison.methods
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    drawn = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    legend = (
        "Means [95 % bootstrap intervals]; + better and − worse than random scores by a paired sign-flip test at"
        f" {100 * LEVEL:.0f} %, corrected for the number of methods (Holm); = is 1 by definition, since"
        " feature_ablation is leaving one word out."
    )
    return "\n".join([*drawn, "", legend, comparison.reason, ""])


def _cell(figure: Figure | None, by_definition: bool) -> str:
    if figure is None:
        return ""
    mark = " =" if by_definition else {"better": " +", "worse": " −", "open": ""}[figure.verdict]
    return f"{figure.value.mean:.3f} [{figure.value.low:.3f}, {figure.value.high:.3f}]{mark}"


def _figures(
    found: Mapping[str, Sequence[Faithfulness]], texts: Sequence[int], seed: int
) -> dict[str, dict[str, Figure]]:
    figures: dict[str, dict[str, Figure]] = {method: {} for method in found}
    for name, metric in METRICS.items():
        values = {method: [metric.of(each) for each in some] for method, some in found.items()}
        gains = {method: _gains(found, texts, name, method, RANDOM) for method in values if method != RANDOM}
        p_values = holm({method: sign_flip_test(some, seed=seed) for method, some in gains.items() if len(some)})
        for method, some in values.items():
            if defined := _by_text(some, texts):
                over_random = _estimate(gains[method], seed) if method in p_values else None
                p_value = p_values.get(method)
                verdict = _verdict(over_random, p_value, higher=metric.higher)
                figures[method][name] = Figure(_estimate(_tensor(defined), seed), over_random, p_value, verdict)
    return figures


def _mean_curve(curves: Sequence[Curve], texts: Sequence[int]) -> Curve:
    """Return the mean of curves with steps of their own, at common shares of the words."""
    at_shares = zip(*(_interpolated(curve).tolist() for curve in curves), strict=True)
    return Curve(
        _SHARES.tolist(),
        [fmean(_by_text(probabilities, texts)) for probabilities in at_shares],
        fmean(_by_text([curve.area for curve in curves], texts)),
    )


def _interpolated(curve: Curve) -> Float[Tensor, " shares"]:
    x, y = _tensor(curve.shares), _tensor(curve.probabilities)
    right = torch.searchsorted(x, _SHARES).clamp(1, len(x) - 1)
    weight = (_SHARES - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], weight)


def _gains(
    found: Mapping[str, Sequence[Faithfulness]], texts: Sequence[int], metric: str, method: str, than: str
) -> Float[Tensor, " texts"]:
    """Return what a method has over another by a metric, a number a text, of those where it is defined for both."""
    pairs = ((METRICS[metric].of(a), METRICS[metric].of(b)) for a, b in zip(found[method], found[than], strict=True))
    return _tensor(_by_text([None if a is None or b is None else a - b for a, b in pairs], texts))


def _tensor(values: Sequence[float]) -> Float[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.double)


def _by_text(values: Sequence[float | None], texts: Sequence[int]) -> list[float]:
    """Return the mean of each text's figures, of those that are defined."""
    grouped: dict[int, list[float]] = {}
    for value, text in zip(values, texts, strict=True):
        if value is not None:
            grouped.setdefault(text, []).append(value)
    return [fmean(some) for some in grouped.values()]


def _verdict(
    over_random: Estimate | None, p_value: float | None, *, higher: bool
) -> Literal["better", "worse", "open"]:
    if over_random is None or p_value is None or p_value > LEVEL:
        return "open"
    return "better" if (over_random.mean > 0) == higher else "worse"


def _estimate(values: Float[Tensor, " texts"], seed: int) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_interval(values, seed=seed), len(values))


def _ranks(figures: dict[str, dict[str, Figure]]) -> dict[str, float]:
    total = dict.fromkeys(figures, 0.0)
    for name in DECISIVE:
        sign = -1 if METRICS[name].higher else 1
        means = {method: sign * found[name].value.mean for method, found in figures.items()}
        for method, mean in means.items():
            ahead, alike = (sum(test) for test in zip(*((m < mean, m == mean) for m in means.values()), strict=True))
            total[method] += 1 + ahead + (alike - 1) / 2
    return {method: rank / len(DECISIVE) for method, rank in total.items()}


def _trusted(
    figures: dict[str, dict[str, Figure]],
    ranks: dict[str, float],
    texts: int,
    least: float,
    gains: Callable[[str, str, str], Float[Tensor, " texts"]],
    seed: int,
) -> tuple[str | None, str]:
    """Return the method to trust, and why.

    Args:
        figures: By method and metric.
        ranks: By method.
        texts: How many were compared.
        least: By how much a method must be better than random scores.
        gains: What a method has over another, by the names of a metric and of both.
        seed: What tests draw by.
    """
    methods = len(figures) - 1
    if texts < (needed := fewest_texts(methods)):
        return None, (
            f"{texts} text{' is' if texts == 1 else 's are'} too few to tell a method from random scores: comparing"
            f" {methods} of them takes at least {needed}."
        )
    better = {method: sum(_is_better(found[name], least) for name in DECISIVE) for method, found in figures.items()}
    worse = {method for method, found in figures.items() if "worse" in (found[name].verdict for name in DECISIVE)}
    proven = [method for method in figures if better[method] >= _ENOUGH and method not in worse]
    measures = ", ".join(DECISIVE[:-1]) + f" and {DECISIVE[-1]}"
    if not proven:
        return None, (
            f"Trust none of these methods for this model: over {texts} texts, none is better than random scores by"
            f" at least {_ENOUGH} of {measures}, by {least:.2g} of probability or more, and worse by none."
        )
    best = min(proven, key=lambda method: ranks[method])
    alike = _not_beaten(best, [method for method in proven if method != best], gains, seed)
    beside = " and ".join(filter(None, [", ".join(alike[:-1]), *alike[-1:]]))
    return best, (
        f"Trust {best} for this model: over {texts} texts it has the best mean rank ({ranks[best]:.2f} of"
        f" {len(figures)}) by {measures} among the methods that beat random scores, which it does by {better[best]} of"
        f" these {len(DECISIVE)}." + (f" By none of them it beats {beside} by more than chance." if alike else "")
    )


def _is_better(figure: Figure, least: float) -> bool:
    """Whether a method is better than random scores, and by so much at least."""
    return figure.verdict == "better" and figure.over_random is not None and abs(figure.over_random.mean) >= least


def _not_beaten(
    best: str, others: Sequence[str], gains: Callable[[str, str, str], Float[Tensor, " texts"]], seed: int
) -> list[str]:
    """Return the methods over which the best has nothing but chance, by any decisive metric."""
    ahead = {(other, name): gains(name, best, other) for other in others for name in DECISIVE}
    p_values = holm({which: sign_flip_test(each, seed=seed) for which, each in ahead.items()})
    told_apart = {
        other
        for (other, name), p_value in p_values.items()
        if p_value <= LEVEL and (ahead[other, name].mean() > 0) == METRICS[name].higher
    }
    return [other for other in others if other not in told_apart]


# Coalitions


def _check(game: Game, scores: Scores) -> None:
    if len(scores) != game.words or game.words == 0:
        raise ValueError(f"expected a score for each of {game.words} words, one at least, got {len(scores)}")
    if not scores.isfinite().all():
        raise ValueError("expected finite scores, got NaN or infinity")


def _ranked(scores: Scores) -> Tensor:
    """Return the words, those that speak for the target most first, equals in their order."""
    return scores.argsort(descending=True, stable=True)


def _top(game: Game, scores: Scores, counts: Sequence[int]) -> Float[Tensor, "coalitions words"]:
    """Return a coalition of the top words for each count."""
    _check(game, scores)
    place = _ranked(scores).argsort()
    return (place < torch.tensor(counts).unsqueeze(1)).double()


def _bins(words: int) -> list[int]:
    return [math.ceil(words * percent / 100) for percent in PERCENTS]


def _steps(words: int) -> list[int]:
    steps = min(words, _STEPS)
    return [(2 * step * words + steps) // (2 * steps) for step in range(steps + 1)]


def _full(game: Game) -> Float[Tensor, "1 words"]:
    return torch.ones(1, game.words, dtype=torch.double)


def _all(game: Game) -> Float[Tensor, ""]:
    return game.log_probability(_full(game))[0]


def _dropped(words: int, samples: int, seed: int) -> Float[Tensor, "samples words"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (samples, words), generator=generator).double()


def _curve(game: Game, keep: Float[Tensor, "steps words"]) -> Curve:
    probabilities = game.log_probability(keep).exp().double()
    shares = torch.tensor(_steps(game.words), dtype=torch.double) / game.words
    return Curve(shares.tolist(), probabilities.tolist(), float(torch.trapezoid(probabilities, shares)))


def _recalled(
    play: Callable[[Tensor], Tensor], known: dict[bytes, float], keep: Float[Tensor, "coalitions words"]
) -> Float[Tensor, " coalitions"]:
    keys = [row.tobytes() for row in keep.double().cpu().numpy()]
    new = {key: row for row, key in enumerate(keys) if key not in known}
    if new:
        known.update(zip(new, play(keep[list(new.values())]).tolist(), strict=True))
    return torch.tensor([known[key] for key in keys], dtype=torch.double)


def _runs(chosen: Bool[Tensor, " words"]) -> list[tuple[int, int]]:
    """Return the words `(start, end)` of each run."""
    edges = torch.cat([chosen, chosen.new_zeros(1)]).int().diff(prepend=torch.zeros(1, dtype=torch.int))
    return list(zip((edges > 0).nonzero()[:, 0].tolist(), (edges < 0).nonzero()[:, 0].tolist(), strict=True))


def _iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    shared = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)
