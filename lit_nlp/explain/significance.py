"""Whether differences are more than chance, for one method and for several beside each other."""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Name = TypeVar("Name", bound=Hashable)

LEVEL = 0.05
_FLIPS = 9_999
_RESAMPLES = 1_000
_ROOM = 2**20  # numbers that are drawn at once


def sign_flip_test(gains: Float[Tensor, " texts"], *, seed: int = 0) -> float:
    """Return how probable a mean as far from 0 is, if each gain might as well have had the other sign.

    Fisher 1935, "The Design of Experiments", § 21; two-sided. Exact, by all flips, where these are few. Else by drawn
    ones, as (b + 1) / (m + 1), where b of m are as far from 0: Phipson and Smyth 2010, "Permutation P-values Should
    Never Be Zero".

    Args:
        gains: What a method has over another, one number a text, at least one.
        seed: What flips are drawn by.
    """
    texts = len(gains)
    far = abs(gains.sum()) - 1e-12 * gains.abs().sum()  # the same sum in another order counts
    if 2**texts <= _FLIPS:
        flips = torch.arange(2**texts).unsqueeze(1) >> torch.arange(texts) & 1
        return float((abs(_signed(flips, gains)) >= far).double().mean())
    generator = torch.Generator().manual_seed(seed)
    as_far = 0
    for some in _portions(_FLIPS, texts):
        flips = torch.randint(2, (some, texts), generator=generator, dtype=torch.int8)
        as_far += int((abs(_signed(flips, gains)) >= far).sum())
    return (as_far + 1) / (_FLIPS + 1)


def fewest_texts(methods: int) -> int:
    """Return how many texts it takes for one of so many methods to be told from chance at `LEVEL`.

    Of n gains all alike, the two flips that are as far from 0 are 2 / 2ⁿ of all, and Holm's first step asks for
    `LEVEL` over the number of methods.
    """
    return math.ceil(math.log2(2 * max(1, methods) / LEVEL))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Return p-values by name, corrected for their number.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure": where all that are at most `LEVEL` are
    believed, the probability that any of these is mere chance is `LEVEL` at most.
    """
    corrected, highest = dict[Name, float](), 0.0
    for before, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - before) * p_values[name]))
        corrected[name] = highest
    return corrected


def bootstrap_interval(values: Float[Tensor, " texts"], *, seed: int = 0) -> tuple[float, float]:
    """Return between which bounds 95 % of the means lie where as many texts are drawn anew from these.

    Efron 1979, "Bootstrap Methods: Another Look at the Jackknife"; its percentiles. Of few texts it is too narrow: to
    be looked at, and no test.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.cat([
        values[torch.randint(len(values), (some, len(values)), generator=generator)].mean(1)
        for some in _portions(_RESAMPLES, len(values))
    ])  # fmt: skip
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def _signed(flips: Tensor, gains: Float[Tensor, " texts"]) -> Float[Tensor, " flips"]:
    """Return the sum of the gains after each row of flips."""
    return (1 - 2 * flips.to(gains.dtype)) @ gains


def _portions(draws: int, texts: int) -> list[int]:
    """Divide draws of so many texts into portions that fit into little memory."""
    most = max(1, _ROOM // texts)
    return [min(most, draws - done) for done in range(0, draws, most)]
