"""p-values are held to enumeration and to their level, corrections to a worked case, intervals to theory."""

import itertools
import math

import pytest
import torch

from lit_nlp.explain import significance
from lit_nlp.explain.significance import LEVEL, bootstrap_interval, fewest_texts, holm, sign_flip_test


def drawn(texts: int, seed: int) -> torch.Tensor:
    """Gains of no method over another: symmetrical about 0, with long tails."""
    first, second = torch.randn(2, texts, generator=torch.Generator().manual_seed(seed), dtype=torch.double).exp()
    return first - second


def share_as_far(gains: list[float]) -> float:
    """The definition: over all flips, how many sums are as far from 0."""
    sums = [
        math.fsum(sign * gain for sign, gain in zip(signs, gains, strict=True))
        for signs in itertools.product((1, -1), repeat=len(gains))
    ]
    return sum(abs(each) >= abs(math.fsum(gains)) - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize("texts", [1, 2, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_of_few_texts_the_p_value_is_that_of_all_flips(texts, seed):
    gains = drawn(texts, seed)
    assert sign_flip_test(gains) == share_as_far(gains.tolist())
    ties = gains.round(decimals=1)
    assert sign_flip_test(ties) == share_as_far(ties.tolist())


def test_of_many_texts_flips_are_drawn_by_the_seed():
    gains = drawn(15, 3) + 0.5
    exact = share_as_far(gains.tolist())
    found = [sign_flip_test(gains, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[::2] == pytest.approx([exact, exact], abs=4 * math.sqrt(exact / 9_999))
    # None of the drawn ones is as far, but that of the gains themselves is.
    assert sign_flip_test(torch.ones(100, dtype=torch.double)) == 1 / 10_000


def test_no_gain_is_no_evidence_and_neither_sign_nor_unit_matters():
    assert sign_flip_test(torch.zeros(8, dtype=torch.double)) == 1.0
    gains = drawn(9, 0)
    assert sign_flip_test(gains) == sign_flip_test(-gains) == sign_flip_test(1000 * gains)


@pytest.mark.parametrize("texts", [7, 20])
def test_chance_is_taken_for_more_no_oftener_than_the_level_says(texts):
    found = [sign_flip_test(drawn(texts, seed)) <= LEVEL for seed in range(400)]
    assert sum(found) / 400 <= LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 400)


@pytest.mark.parametrize(("methods", "texts"), [(1, 6), (2, 7), (4, 8), (12, 9)])
def test_so_many_texts_are_just_enough(methods, texts):
    def corrected(count: int) -> float:
        best = sign_flip_test(torch.ones(count, dtype=torch.double))
        return holm({str(i): 1.0 for i in range(methods - 1)} | {"best": best})["best"]

    assert fewest_texts(methods) == texts
    assert corrected(texts) <= LEVEL < corrected(texts - 1)


def test_holm_by_hand():
    # In order: 4 × 0.01; 3 × 0.02; 2 × 0.025 would be less than the one before; 0.9.
    given = {"c": 0.025, "a": 0.01, "d": 0.9, "b": 0.02}
    assert holm(given) == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.9})
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_interval_is_that_of_the_mean_in_any_portions(monkeypatch):
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    error = 1.96 * float(values.std()) / 20
    for room in (2**20, 1000):
        monkeypatch.setattr(significance, "_ROOM", room)
        low, high = bootstrap_interval(values)
        assert (values.mean() - low, high - values.mean()) == pytest.approx((error, error), rel=0.15)
