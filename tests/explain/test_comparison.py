import pytest

from lit_nlp.errors import ConfigError
from lit_nlp.explain import compare_methods
from tests.explain import fakes

TEXTS = [
    "the film is very good .",
    "never warm but not bad at all",
    "a dull plot",
    "good",
    "bad film",
    "was great !",
] * 2


def test_on_a_model_of_sums_ablation_beats_random_scores_and_is_trusted():
    attributions, comparison, shown = compare_methods(fakes.bag(), TEXTS, ["feature_ablation"], target="positive")
    assert [each.method for each in attributions] == ["feature_ablation"] * 12 + ["random"] * 12
    assert [each.row for each in attributions] == [*range(12)] * 2
    assert comparison.trusted == shown["trusted"] == "feature_ablation"
    by_method = shown["methods"]
    assert by_method["feature_ablation"]["tau_loo"]["mean"] == pytest.approx(1)  # it is leaving one out
    assert by_method["feature_ablation"]["comprehensiveness"]["mean"] > by_method["random"]["comprehensiveness"]["high"]


def test_the_curves_that_are_drawn_begin_and_end_with_the_probability_of_all_words_and_of_none():
    module = fakes.bag()
    attributions, _, shown = compare_methods(module, TEXTS[:6], ["saliency"])
    full = sum(each.probability for each in attributions[:6]) / 6
    for curves in shown["curves"].values():
        assert [share for share, _ in curves["deletion"]] == pytest.approx([i / 10 for i in range(11)])
        assert curves["deletion"][0][1] == pytest.approx(full, abs=1e-5)
        assert curves["insertion"][-1][1] == pytest.approx(full, abs=1e-5)
        assert curves["deletion"][-1][1] == pytest.approx(curves["insertion"][0][1], abs=1e-5)


def test_a_method_that_stands_twice_is_refused():
    with pytest.raises(ConfigError, match="methods: a method stands twice in saliency, saliency"):
        compare_methods(fakes.bag(), TEXTS, ["saliency", "saliency"])
