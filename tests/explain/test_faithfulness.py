import itertools
import json
import math
import statistics
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

from lit_nlp.errors import ConfigError
from lit_nlp.explain.faithfulness import (
    DECISIVE,
    METRICS,
    Curve,
    Faithfulness,
    Plausibility,
    Remembered,
    compare,
    comprehensiveness,
    deletion,
    infidelity,
    insertion,
    log_odds,
    max_sensitivity,
    measure,
    plausibility,
    random_scores,
    rationale_words,
    soft_erasure,
    sufficiency,
    table,
    tau_loo,
)


class Additive:
    """A game whose score is the sum of its words' weights, and whose probability is a base and the sum of others."""

    def __init__(self, weights, shares=None, base=0.1):
        self.weights = torch.tensor(weights, dtype=torch.double)
        self.shares = torch.tensor(shares, dtype=torch.double) if shares else self.weights
        self.words, self.base, self.calls, self.played = len(weights), base, 0, 0

    def score(self, keep):
        self.calls, self.played = self.calls + 1, self.played + len(keep)
        return keep.double() @ self.weights

    def log_probability(self, keep):
        self.calls, self.played = self.calls + 1, self.played + len(keep)
        return (self.base + keep.double() @ self.shares).log()

    def soft_log_probability(self, retain, generator):
        drawn = torch.rand(*retain.shape, 50, generator=generator) < retain.unsqueeze(2)
        return (self.base + drawn.double().mean(2) @ self.shares).log()


class Conjunction(Additive):
    """A game in which words count only together, so that leaving one out says little of each."""

    def score(self, keep):
        return keep.double().prod(1) + super().score(keep)


class Mute(Additive):
    """A module that doesn't read."""

    def __init__(self, words):
        super().__init__([0.0] * words, base=0.4)


def tensor(*values):
    return torch.tensor(values, dtype=torch.double)


TEN = [0.02 * (i + 1) for i in range(10)]  # more than 1 with all words: a closed form needs no real probability


def test_erasing_counts_the_top_words_of_each_bin():
    game = Additive(TEN, base=0.1)
    # 1, 5 and 10 % of ten words are one word, 20 % two, 50 % five.
    lost = [0.2, 0.2, 0.2, 0.38, 0.8]
    assert comprehensiveness(game, game.weights) == pytest.approx(sum(lost) / 5)
    assert sufficiency(game, game.weights) == pytest.approx(sum(1.1 - each for each in lost) / 5)
    changes = [math.log(1.2 - each) - math.log(1.2) for each in lost]
    assert log_odds(game, game.weights) == pytest.approx(sum(changes) / 5)


def test_a_bin_is_rounded_up_to_whole_words():
    game = Additive([0.01] * 25)
    # 1, 5, 10, 20 and 50 % of 25 words.
    assert comprehensiveness(game, game.weights) == pytest.approx(0.01 * (1 + 2 + 3 + 5 + 13) / 5)


def test_words_against_the_target_come_last_and_equals_in_their_order():
    game = Additive([0.1, 0.2, 0.05, 0.3], base=0.2)
    scores = tensor(-9.0, 1.0, 1.0, 0.0)
    # The order is 1, 2, 3, 0.
    assert deletion(game, scores).probabilities == pytest.approx([0.85, 0.65, 0.6, 0.3, 0.2])
    assert insertion(game, scores).probabilities == pytest.approx([0.2, 0.4, 0.45, 0.75, 0.85])


def test_the_area_is_that_of_the_trapezoids():
    game = Additive([0.4, 0.2], base=0.1)
    removed = deletion(game, tensor(2.0, 1.0))
    assert removed.shares == [0.0, 0.5, 1.0]
    assert removed.area == pytest.approx(0.5 * (0.7 + 0.3) / 2 + 0.5 * (0.3 + 0.1) / 2)
    assert insertion(game, tensor(2.0, 1.0)).area == pytest.approx(0.5 * (0.1 + 0.5) / 2 + 0.5 * (0.5 + 0.7) / 2)


@pytest.mark.parametrize(("words", "points"), [(1, 2), (20, 21), (21, 21), (333, 21)])
def test_long_texts_are_removed_in_twenty_steps(words, points):
    curve = deletion(Additive([1 / words] * words), torch.zeros(words))
    assert len(curve.shares) == points
    assert curve.shares == sorted(set(curve.shares))
    assert (curve.shares[0], curve.shares[-1]) == (0.0, 1.0)
    assert curve.probabilities == pytest.approx([1.1 - share for share in curve.shares])


def test_no_order_of_an_additive_text_beats_that_of_its_weights():
    game = Additive([0.2, -0.03, 0.11, 0.07, 0.15])
    best = measure(game, game.weights)
    for order in itertools.permutations(range(5)):
        other = measure(game, torch.tensor(order).double())
        for name in ("comprehensiveness", "sufficiency", "log_odds", "deletion", "insertion", "tau_loo"):
            sign = 1 if METRICS[name].higher else -1
            assert sign * METRICS[name].of(best) >= sign * METRICS[name].of(other) - 1e-12


def test_soft_erasure_shares_out_what_the_blank_text_loses():
    shares, scores = [0.5, 0.2, 0.1], tensor(3.0, 1.0, -1.0)
    found = soft_erasure(Additive(shares), scores, samples=4000)
    # The scaled scores are 1, ½ and 0: the first word stays whole, of the second half.
    assert found.sufficiency == pytest.approx((0.5 + 0.1) / 0.8, abs=0.01)
    assert found.comprehensiveness == pytest.approx((0.5 + 0.1) / 0.8, abs=0.01)
    turned = soft_erasure(Additive(shares), -scores, samples=4000)
    assert turned.sufficiency == pytest.approx((0.1 + 0.1) / 0.8, abs=0.01)


def test_soft_erasure_stays_between_0_and_1():
    # Alone, the first word makes the target more probable than the whole text, the second less than a blank one.
    game = Additive([0.5, -0.4], base=0.45)
    first, second = soft_erasure(game, tensor(1.0, 0.0)), soft_erasure(game, tensor(0.0, 1.0))
    assert (first.sufficiency, first.comprehensiveness) == (1.0, 1.0)
    assert (second.sufficiency, second.comprehensiveness) == (0.0, 0.0)


def test_equal_scores_keep_half_of_each_word():
    found = soft_erasure(Additive([0.5, 0.3]), tensor(7.0, 7.0), samples=4000)
    assert found.sufficiency == pytest.approx(0.5, abs=0.01)
    assert found.comprehensiveness == pytest.approx(0.5, abs=0.01)


def test_nothing_is_shared_out_where_the_blank_text_says_the_same():
    assert soft_erasure(Mute(3), tensor(1.0, 2.0, 3.0)) is None
    assert soft_erasure(Additive([-0.1, -0.2], base=0.5), tensor(1.0, 2.0)) is None


def kendall_by_pairs(a: list[float], b: list[float]) -> float:
    """The definition: concordant less discordant pairs, over the geometric mean of those without a tie in each."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    sign = [(math.copysign(1, x) if x else 0) for x in (a[i] - a[j] for i, j in pairs)]
    other = [(math.copysign(1, x) if x else 0) for x in (b[i] - b[j] for i, j in pairs)]
    agreed = sum(x * y for x, y in zip(sign, other, strict=True))
    return agreed / math.sqrt(sum(map(abs, sign)) * sum(map(abs, other)))


@pytest.mark.parametrize("seed", range(20))
def test_tau_agrees_with_counting_pairs_also_with_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(-2, 3, (9,), generator=generator).double()
    scores = torch.randint(-2, 3, (9,), generator=generator).double()
    expected = kendall_by_pairs(scores.tolist(), weights.tolist())
    assert tau_loo(Additive(weights.tolist()), scores) == pytest.approx(expected, abs=1e-6)


def test_tau_compares_with_leaving_one_word_out():
    game = Conjunction([0.3, 0.1, 0.2])
    assert tau_loo(game, tensor(3.0, 1.0, 2.0)) == pytest.approx(1.0)
    assert tau_loo(game, tensor(1.0, 3.0, 2.0)) == pytest.approx(-1.0)


def test_no_rank_correlation_where_all_are_alike():
    assert tau_loo(Additive([0.1, 0.2]), tensor(1.0, 1.0)) is None
    assert tau_loo(Mute(3), tensor(1.0, 2.0, 3.0)) is None
    assert tau_loo(Additive([0.1]), tensor(1.0)) is None


def infidelity_by_enumeration(game, scores: torch.Tensor) -> float:
    """The expectation over all subsets, each as likely, at the best scale of at least 0."""
    dropped = torch.tensor(list(itertools.product([0.0, 1.0], repeat=game.words))).double()
    changes = game.score(torch.ones(1, game.words)) - game.score(1 - dropped)
    told = dropped @ scores
    scales = torch.linspace(0, 20, 20001, dtype=torch.double)
    return float((scales[:, None] * told - changes).square().mean(1).min())


@pytest.mark.parametrize("scores", [(1.0, 0.5, 0.2), (0.0, 1.0, 0.0), (-1.0, -2.0, -3.0)])
def test_infidelity_agrees_with_enumerating_all_subsets(scores):
    game = Conjunction([0.3, 0.1, 0.2])
    expected = infidelity_by_enumeration(game, tensor(*scores))
    assert infidelity(game, tensor(*scores), samples=20000) == pytest.approx(expected, rel=0.03)


def test_infidelity_is_0_for_the_true_weights_in_any_unit():
    game = Additive([0.3, -0.1, 0.2])
    assert infidelity(game, game.weights) == pytest.approx(0, abs=1e-12)
    assert infidelity(game, 1000 * game.weights) == pytest.approx(0, abs=1e-9)
    nothing = infidelity(game, torch.zeros(3))
    assert nothing > 0.01
    assert infidelity(game, -game.weights) == pytest.approx(nothing)


def test_rationales_mark_the_words_that_they_touch():
    words = [(0, 3), (4, 8), (8, 9), (10, 14)]
    assert rationale_words(words, [(5, 8), (12, 13)]).tolist() == [False, True, False, True]
    assert rationale_words(words, [(3, 4), (9, 10)]).tolist() == [False] * 4
    assert rationale_words(words, []).tolist() == [False] * 4


def test_plausibility_by_hand():
    marked = torch.tensor([True, True, False, False, True, False])
    # Ranked 0, 3, 1, 4, 2, 5: precision at each marked word is 1, ⅔ and ¾.
    found = plausibility(tensor(9.0, 7.0, 5.0, 8.0, 6.0, 1.0), marked)
    assert found.auprc == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert found.token_f1 == pytest.approx(2 / 3)
    # Chosen are the spans 0–1 and 3, marked 0–1 and 4: one of two on both sides.
    assert found.iou_f1 == pytest.approx(0.5)


def test_a_span_is_found_that_shares_half_of_the_words():
    marked = torch.tensor([True, True, True, False, False])
    assert plausibility(tensor(0.0, 3.0, 2.0, 1.0, -1.0), marked).iou_f1 == 1.0  # 2 of 4 words
    assert plausibility(tensor(0.0, -1.0, 3.0, 2.0, 1.0), marked).iou_f1 == 0.0  # 1 of 5
    both = plausibility(tensor(3.0, 0.0, 2.0, 1.0, -1.0), torch.tensor([True, True, False, True, False]))
    assert both.iou_f1 == 1.0  # 0 of 0–1 and 3 of 2–3


def test_large_scores_are_ranked_as_well_as_small_ones():
    marked, scores = torch.tensor([False, True, False]), tensor(100.0, 300.0, 200.0)
    assert plausibility(scores, marked).auprc == 1.0
    assert plausibility(-scores, marked).auprc == pytest.approx(1 / 3)
    assert plausibility(torch.zeros(3), marked).auprc == pytest.approx(1 / 3)


def test_without_marked_words_there_is_no_plausibility():
    assert plausibility(tensor(1.0, 2.0), torch.tensor([False, False])) is None
    assert measure(Additive([0.1]), tensor(1.0)).plausibility is None


def test_all_figures_are_those_of_their_functions():
    game, scores = Additive([0.3, -0.1, 0.2], shares=[0.2, 0.05, 0.3]), tensor(0.4, 0.1, -0.2)
    marked = torch.tensor([True, False, False])
    softly = soft_erasure(game, scores, samples=5, seed=3)
    assert measure(game, scores, rationale=marked, soft_samples=5, infidelity_samples=7, seed=3) == Faithfulness(
        words=3,
        comprehensiveness=comprehensiveness(game, scores),
        sufficiency=sufficiency(game, scores),
        soft_comprehensiveness=softly.comprehensiveness,
        soft_sufficiency=softly.sufficiency,
        log_odds=log_odds(game, scores),
        deletion=deletion(game, scores),
        insertion=insertion(game, scores),
        tau_loo=tau_loo(game, scores),
        infidelity=infidelity(game, scores, samples=7, seed=3),
        plausibility=plausibility(scores, marked),
    )


def test_the_seed_decides_on_the_draws_and_the_caller_keeps_its_own():
    game, scores = Conjunction([0.3, 0.1, 0.2]), tensor(0.4, 0.1, 0.3)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = measure(game, scores, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert measure(game, scores, seed=1) == first
    assert measure(game, scores, seed=2).infidelity != first.infidelity


def test_a_text_is_played_in_two_calls_and_each_coalition_once():
    game = Additive(TEN)
    known = Remembered(game)
    measure(known, game.weights, infidelity_samples=16)
    # One, ten without a word, at most sixteen at random | none, all, nine top ones and what these leave.
    assert game.calls == 2
    assert game.played <= 1 + 10 + 16 + 20
    before = game.played
    measure(known, game.weights, infidelity_samples=16)
    assert game.played == before


def test_a_remembered_game_answers_as_the_game_does():
    game = Conjunction([0.3, 0.1, 0.2])
    known, keep = Remembered(game), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])
    for _ in range(2):
        assert torch.equal(known.score(keep), game.score(keep))
        assert torch.equal(known.log_probability(keep.flip(0)), game.log_probability(keep.flip(0)))


def finite(found: list[Faithfulness]) -> None:
    json.dumps([asdict(each) for each in found], allow_nan=False)


def test_a_text_of_one_word_has_every_figure_but_ranks():
    found = measure(Additive([0.6]), tensor(-1.0), rationale=torch.tensor([True]))
    assert (found.comprehensiveness, found.sufficiency) == pytest.approx((0.6, 0.0))
    assert found.tau_loo is None
    assert found.plausibility == Plausibility(1.0, 1.0, 1.0)
    finite([found])


def test_a_text_without_words_is_left_out():
    assert measure(Additive([]), torch.zeros(0)) is None
    assert random_scores(0, seed=0).tolist() == []


def test_a_module_that_does_not_read_gives_no_nan():
    found = [measure(Mute(4), scores) for scores in (torch.zeros(4), random_scores(4, 0))]
    finite(found)
    assert {each.comprehensiveness for each in found} == {0.0}


def test_scores_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="a score for each of 2 words, one at least, got 3"):
        comprehensiveness(Additive([0.1, 0.2]), torch.zeros(3))
    with pytest.raises(ValueError, match="finite scores"):
        measure(Additive([0.1, 0.2]), tensor(math.nan, 1.0))


def test_random_scores_are_those_of_their_seed():
    assert torch.equal(random_scores(9, 1), random_scores(9, 1))
    assert not torch.equal(random_scores(9, 1), random_scores(9, 2))


@cache
def results(texts=30, words=12):
    """True weights, the same turned around, and chance, over additive texts."""
    found = {"turned": [], "random": [], "true": []}
    for seed in range(texts):
        weights = random_scores(words, 1000 + seed).abs()
        game = Remembered(Additive((0.8 * weights / weights.sum()).tolist()))
        for name, scores in ("true", weights), ("turned", -weights), ("random", random_scores(words, seed)):
            found[name].append(measure(game, scores))
    return found


def test_the_true_weights_are_trusted():
    found = compare(results())
    assert found.trusted == "true"
    assert found.reason == (
        "Trust true for this model: over 30 texts it has the best mean rank (1.00 of 3) by comprehensiveness,"
        " sufficiency, deletion and insertion among the methods that beat random scores, which it does by 4 of these 4."
    )
    assert found.ranks == {"true": 1.0, "random": 2.0, "turned": 3.0}
    for name in ("comprehensiveness", "sufficiency", "deletion", "insertion", "tau_loo", "infidelity"):
        assert found.figures["true"][name].verdict == "better", name
        assert found.figures["turned"][name].verdict == "worse" or name == "infidelity"
        assert found.figures["random"][name].over_random is None
    assert "auprc" not in found.figures["true"]


def test_no_method_is_trusted_that_does_not_beat_chance():
    given = results()
    found = compare({"turned": given["turned"], "random": given["random"], "again": given["random"]})
    assert found.trusted is None
    assert found.reason.startswith("Trust none of these methods for this model: over 30 texts, none is better")
    again = found.figures["again"]["deletion"]
    assert (again.over_random.mean, again.p_value, again.verdict) == (0.0, 1.0, "open")


def test_methods_that_are_not_told_apart_from_the_best_are_named_with_it():
    given, generator = results(), torch.Generator().manual_seed(0)

    def shaken(by: float) -> list[Faithfulness]:
        noise = (by * torch.randn(len(given["true"]), generator=generator, dtype=torch.double)).tolist()
        return [
            replace(each, comprehensiveness=each.comprehensiveness - abs(by) / 50 + shake)
            for each, shake in zip(given["true"], noise, strict=True)
        ]

    behind = [replace(each, deletion=replace(each.deletion, area=each.deletion.area + 0.01)) for each in given["true"]]
    more = {"shaken": shaken(0.01), "moved": shaken(0.02), "behind": behind}
    reason = compare({**given, **more}).reason
    assert reason.startswith("Trust true for this model")
    assert reason.endswith(" By none of them it beats shaken and moved by more than chance.")
    told = " By none of them it beats moved by more than chance."
    assert compare({**given, "moved": more["moved"]}).reason.endswith(told)


def test_a_model_that_words_hardly_move_is_explained_by_no_method():
    def of(share: float) -> str | None:
        found = {
            name: [
                replace(
                    each,
                    comprehensiveness=share * each.comprehensiveness,
                    sufficiency=share * each.sufficiency,
                    deletion=replace(each.deletion, area=share * each.deletion.area),
                    insertion=replace(each.insertion, area=share * each.insertion.area),
                )
                for each in texts
            ]
            for name, texts in results().items()
        }
        return compare(found).trusted

    # By the third best of what the true weights gain, and half a percent of the probability of whole texts.
    figures, texts = compare(results()).figures["true"], results()["random"]
    gain = sorted(abs(figures[name].over_random.mean) for name in DECISIVE)[1]
    least = 0.005 * sum(each.deletion.probabilities[0] for each in texts) / len(texts)
    assert of(1.0) == of(1.01 * least / gain) == "true"
    assert of(0.99 * least / gain) is None


def test_a_method_needs_three_of_the_four_and_none_against_it():
    given = results()
    floor = given["random"]
    names = ("comprehensiveness", "sufficiency")
    two = [
        replace(chance, **{name: getattr(true, name) for name in names})
        for true, chance in zip(given["true"], floor, strict=True)
    ]
    three = [replace(each, deletion=true.deletion) for each, true in zip(two, given["true"], strict=True)]
    against = [replace(each, insertion=turned.insertion) for each, turned in zip(three, given["turned"], strict=True)]
    assert compare({"random": floor, "method": two}).trusted is None
    assert compare({"random": floor, "method": three}).trusted == "method"
    assert compare({"random": floor, "method": against}).trusted is None


def test_few_texts_prove_nothing():
    found = compare(results(texts=6))
    assert found.trusted is None
    told = "6 texts are too few to tell a method from random scores: comparing 2 of them takes at least 7."
    assert found.reason == told
    assert {figure.verdict for method in found.figures.values() for figure in method.values()} == {"open"}
    assert compare(results(texts=7)).trusted == "true"


def noise(seed: int, methods: int, texts: int) -> dict[str, list[Faithfulness]]:
    """Methods that know nothing, each of whose texts is good or bad by all that decides at once."""
    blank = replace(two_words(), soft_comprehensiveness=None, soft_sufficiency=None, tau_loo=None)
    generator = torch.Generator().manual_seed(seed)
    return {
        method: [
            replace(
                blank,
                comprehensiveness=value,
                sufficiency=-value,
                deletion=replace(blank.deletion, area=-value),
                insertion=replace(blank.insertion, area=value),
            )
            for value in torch.randn(texts, generator=generator, dtype=torch.double).exp().tolist()
        ]
        for method in ("random", *map(str, range(methods)))
    }


def test_of_twelve_methods_that_know_nothing_hardly_ever_one_is_trusted(monkeypatch):
    # Intervals take most of the time, and decide nothing.
    monkeypatch.setattr("lit_nlp.explain.faithfulness.bootstrap_interval", lambda values, seed: (0.0, 0.0))
    trusted = [compare(noise(seed, methods=12, texts=10)).trusted for seed in range(40)]
    assert len(trusted) - trusted.count(None) <= 0.05 * len(trusted)
    # The same texts are enough for one that knows.
    given = noise(0, methods=11, texts=10)
    knowing = [replace(each, comprehensiveness=9.0 + i, sufficiency=-9.0 - i) for i, each in enumerate(given["random"])]
    knowing = [replace(each, insertion=replace(each.insertion, area=9.0)) for each in knowing]
    assert compare({**given, "knowing": knowing}).trusted == "knowing"


@cache
def two_words() -> Faithfulness:
    return measure(Additive([0.1, 0.2]), tensor(1.0, 2.0))


def constant(value: float) -> Faithfulness:
    return replace(two_words(), comprehensiveness=value)


def test_the_interval_is_that_of_the_mean_and_pairs_the_texts():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator).tolist()
    found = compare({"random": [constant(v) for v in values], "method": [constant(v + 0.01) for v in values]})
    value = found.figures["random"]["comprehensiveness"].value
    error = 1.96 * statistics.stdev(values) / math.sqrt(400)
    assert value.mean == pytest.approx(sum(values) / 400)
    assert (value.mean - value.low, value.high - value.mean) == pytest.approx((error, error), rel=0.15)
    # A hundredth is nothing beside the spread of the texts, but it is the same in each of them.
    gain = found.figures["method"]["comprehensiveness"]
    assert (gain.over_random.low, gain.over_random.high) == pytest.approx((0.01, 0.01))
    assert gain.verdict == "better"


def test_equal_means_share_their_ranks():
    texts = [constant(0.1)] * 3
    assert compare({"a": texts, "random": texts, "b": [constant(0.2)] * 3}).ranks == {
        "a": pytest.approx((2.5 + 3 * 2) / 4),
        "random": pytest.approx((2.5 + 3 * 2) / 4),
        "b": pytest.approx((1 + 3 * 2) / 4),
    }


def test_a_text_that_one_method_lacks_is_left_out_of_all():
    good, bad = constant(1.0), constant(0.0)
    found = compare({"random": [bad, bad, None], "method": [good, None, good]})
    assert found.texts == 1
    assert found.figures["method"]["comprehensiveness"].value.texts == 1


def test_an_undefined_figure_is_left_out_of_its_mean():
    defined, undefined = constant(0.5), replace(constant(0.5), tau_loo=None)
    found = compare({"random": [defined, undefined], "method": [defined, defined]}).figures["method"]["tau_loo"]
    assert (found.value.texts, found.over_random.texts) == (2, 1)


def test_mean_curves_and_their_areas_count_a_text_once():
    def falling(shares: list[float], probabilities: list[float], area: float) -> Faithfulness:
        return replace(two_words(), deletion=Curve(shares, probabilities, area))

    # Two tokens of one text, and a text of one token and with steps of its own.
    tokens = [falling([0.0, 0.5, 1.0], [full, 0.0, 0.0], full / 4) for full in (1.0, 0.5)]
    given = [*tokens, falling([0.0, 1.0], [0.25, 0.25], 0.25)]
    found = compare({"random": given, "method": given}, texts=[0, 0, 1])
    curve = found.curves["method"]["deletion"]
    at = dict(zip(curve.shares, curve.probabilities, strict=True))
    assert [at[0.0], at[0.25], at[0.5], at[1.0]] == pytest.approx([0.5, 0.3125, 0.125, 0.125])
    assert curve.area == found.figures["method"]["deletion"].value.mean == pytest.approx((0.1875 + 0.25) / 2)


def test_the_floor_and_the_same_texts_are_asked_for():
    with pytest.raises(ConfigError, match="there are only lime; add 'random'"):
        compare({"lime": []})
    with pytest.raises(ValueError, match=r"the same texts for all methods, got \{'lime': 1, 'random': 0\}"):
        compare({"lime": [constant(1.0)], "random": []})


def test_a_comparison_of_nothing_says_so():
    found = compare({"random": [], "lime": []})
    assert (found.texts, found.trusted) == (0, None)
    assert "0 texts are too few" in table(found)


def test_the_comparison_is_json():
    found = compare(results(texts=7))
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["trusted"] == "true"


def test_the_table_is_markdown_with_the_best_method_first():
    found = compare(results())
    lines = table(found, ["comprehensiveness", "sufficiency", "auprc"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == ["method", "comprehensiveness ↑", "sufficiency ↓"]
    assert [row[0] for row in cells[2:]] == ["true", "random", "turned"]
    value = found.figures["true"]["sufficiency"].value
    assert cells[2][2] == f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] +"
    assert cells[4][2].endswith("] −")
    assert cells[3][2].endswith("]")
    assert lines[-1] == found.reason
    assert len({len(line) for line in lines[:5]}) == 1


def test_the_rank_correlation_of_ablation_is_marked_as_no_merit():
    given = results()
    found = compare({"random": given["random"], "feature_ablation": given["true"]})
    lines = table(found, ["deletion", "tau_loo"]).splitlines()
    assert found.figures["feature_ablation"]["tau_loo"].value.mean == pytest.approx(1)
    assert lines[2].endswith("] = |")
    assert "] + |" in lines[2]
    assert lines[-2].endswith("= is 1 by definition, since feature_ablation is leaving one word out.")


# Sensitivity


def test_scores_that_are_the_embeddings_move_as_far_as_these():
    generator = torch.Generator().manual_seed(0)
    embeddings = (torch.randn(1, 50, 64, generator=generator), 3 * torch.randn(1, 50, 64, generator=generator))

    def themselves(given, call):
        return torch.cat([each.flatten() for each in given])

    # A uniform step within ±r has a root mean square of r / √3, here of r times that of the embeddings.
    assert max_sensitivity(themselves, embeddings, radius=0.3) == pytest.approx(0.3 / math.sqrt(3), rel=0.02)


def test_scores_that_never_move_have_no_sensitivity_and_drawn_ones_much():
    embeddings = (torch.ones(1, 3, 4),)
    assert max_sensitivity(lambda given, call: torch.tensor([1.0, 2.0]), embeddings) == 0
    assert max_sensitivity(lambda given, call: random_scores(200, call).float(), embeddings) > 1.2


def test_the_most_sensitive_draw_counts_and_a_seed_repeats_it():
    moves = []

    def steep(given, call):
        moves.append(float(given[0].sum() - 12))
        return given[0].sum().reshape(1)

    found = [max_sensitivity(steep, (torch.ones(1, 3, 4),), samples=5, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert found[0] == pytest.approx(max(map(abs, moves[1:6])) / 12)
