import pytest
from scipy.stats import kendalltau

from lit_nlp.errors import ConfigError
from lit_nlp.explain import Rationale, compare_methods
from lit_nlp.explain.attribution import explanation
from lit_nlp.explain.methods import METHODS
from lit_nlp.explain.options import Options
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
    attributions, comparison = compare_methods(fakes.bag(), TEXTS, ["feature_ablation"], target="positive")
    assert [each.method for each in attributions] == ["feature_ablation"] * 12 + ["random"] * 12
    assert [each.row for each in attributions] == [*range(12)] * 2
    assert comparison.trusted == "feature_ablation"
    ablation, chance = (comparison.figures[name]["comprehensiveness"].value for name in ("feature_ablation", "random"))
    assert ablation.mean > chance.high


def test_tau_is_that_with_the_changes_told_by_the_weights():
    module = fakes.bag()
    texts = ["the film is very good .", "a dull plot", "bad film", "was great !"]
    attributions, comparison = compare_methods(module, texts, ["saliency"], target="positive")
    table, weight = module.model.embedding.weight.detach(), module.model.head.weight[2].detach()
    changes = dict(zip(fakes.VOCABULARY, ((table - table[fakes.PAD]) @ weight).tolist(), strict=True))
    taus = [
        kendalltau([word.score for word in each.words], [changes[word.text] for word in each.words]).statistic
        for each in attributions
        if each.method == "random"
    ]
    assert comparison.figures["random"]["tau_loo"].value.mean == pytest.approx(sum(taus) / len(taus), abs=1e-6)


def test_words_that_are_not_read_do_not_count():
    long, short = "good bad dull warm film plot never !", "good bad dull warm"
    found = [
        compare_methods(fakes.bag(max_length=6), [text], ["saliency"], rationales=[Rationale([(5, 8)])])[1]
        for text in (long, short)
    ]
    figures = [each.figures["saliency"] for each in found]
    assert {name: figure.value for name, figure in figures[0].items()} == {
        name: figure.value for name, figure in figures[1].items()
    }


def test_the_mean_curves_begin_and_end_with_the_probability_of_all_words_and_of_none():
    attributions, comparison = compare_methods(fakes.bag(), TEXTS[:6], ["saliency"])
    full = sum(each.probability for each in attributions[:6]) / 6
    for curves in comparison.curves.values():
        assert curves["deletion"].probabilities[0] == pytest.approx(full, abs=1e-5)
        assert curves["insertion"].probabilities[-1] == pytest.approx(full, abs=1e-5)
        assert curves["deletion"].probabilities[-1] == pytest.approx(curves["insertion"].probabilities[0], abs=1e-5)


def test_a_method_that_stands_twice_is_refused():
    with pytest.raises(ConfigError, match="methods: a method stands twice in saliency, saliency"):
        compare_methods(fakes.bag(), TEXTS, ["saliency", "saliency"])


@pytest.mark.parametrize("methods", [[], ["random"]])
def test_there_must_be_methods_to_compare(methods: list[str]):
    with pytest.raises(ConfigError, match="methods: there are no methods to compare; name one"):
        compare_methods(fakes.bag(), TEXTS, methods)


def test_a_method_by_itself_beside_those_that_are_compared_is_refused():
    with pytest.raises(ConfigError, match="method: no single method where methods are compared; name it among them"):
        compare_methods(fakes.bag(), TEXTS, ["saliency"], method="lime")


def test_sensitivity_is_measured_where_it_is_asked_for_and_random_scores_have_much():
    methods = ["integrated_gradients", "saliency", "attention_rollout"]
    _, comparison = compare_methods(fakes.bert(), TEXTS[:2], methods, sensitivity=True)
    means = {method: figures["max_sensitivity"].value.mean for method, figures in comparison.figures.items()}
    assert all(0 < mean < means["random"] for method, mean in means.items() if method != "random")
    assert means["random"] > 1
    _, comparison = compare_methods(fakes.bert(), TEXTS[:2], methods[1:2])
    assert "max_sensitivity" not in comparison.figures["saliency"]


@pytest.mark.parametrize("method", ["feature_ablation", "integrated_gradients"])
def test_on_a_sum_the_sensitivity_is_that_of_the_products(method):
    module = fakes.bag()
    (target,) = module.attribution_targets(["good bad film"], target="positive")
    with module.attributing():
        explain, (embeddings,) = explanation(module, target, METHODS[method], Options(method=method))
        moved = embeddings + 0.1
        found = explain((moved,), 0)
    blank = module.model.embedding.weight[fakes.PAD]
    expected = (moved[0, 1:-1] - blank) @ module.model.head.weight[2]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
