import itertools
import json
import math
import warnings
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from transformers import FNetConfig, FNetModel

from lit_nlp import SentimentModule
from lit_nlp.errors import ConfigError, UserError
from lit_nlp.explain.attribution import Attribution, attribute, games
from lit_nlp.explain.batch import Batch, Features, Game
from lit_nlp.explain.comparison import compare_methods
from lit_nlp.explain.methods import METHODS, _by_layer, kernel_shap, shapley_value_sampling
from lit_nlp.explain.options import Options
from lit_nlp.explain.path import FIRST_POINTS
from tests.backbones import CORPUS, VOCABULARY, save_bert
from tests.explain import fakes

TEXTS = [
    "the film is very good .",
    "a dull plot , never warm but not bad at all , and the film was great !",
    "good",
    "",
    "never good , never bad",
]
MODELS = [fakes.bert, fakes.roberta, fakes.llama, fakes.bart, fakes.t5]


def scores(attribution: Attribution) -> list[float]:
    return [word.score for word in attribution.words + attribution.pair_words]


def with_samples(method: str, samples: int) -> dict[str, object]:
    """A method, with so many draws if it draws, and with a layer if it needs one."""
    takes = METHODS[method].takes
    layer = {"layer": "model.bert.encoder.layer.0"} if method == "layer_integrated_gradients" else {}
    return {"method": method} | ({"samples": samples} if "samples" in takes else {}) | layer


def explained_change(module: fakes.FakeModule, text: str, target: str) -> float:
    """The score less the score on the baseline's embeddings, told by another way than the library's."""
    (sequence,) = module.encode([text]).sequences
    ids = torch.tensor([sequence["input_ids"]])
    special = torch.tensor([token in (fakes.CLS, fakes.SEP) for token in sequence["input_ids"]])
    table = module.layers[0].weight
    embeddings = table[ids], table[torch.where(special, ids, fakes.PAD)]
    with torch.no_grad():
        full, empty = (module.model(inputs_embeds=each).logits for each in embeddings)
    return (full - empty)[0, fakes.LABELS.index(target)].item()


def test_on_a_linear_model_a_word_has_the_product_of_its_embedding_and_the_weight():
    module = fakes.bag()
    for attribution in attribute(module, TEXTS, target="positive"):
        weight, table = module.model.head.weight[2], module.model.embedding.weight
        ids = module.tokenizer.convert_tokens_to_ids([word.text for word in attribution.words])
        expected = [((table[i] - table[fakes.PAD]) @ weight).item() for i in ids]
        assert scores(attribution) == pytest.approx(expected, abs=1e-6)
        assert attribution.converged
        rounding = 1e-6 * (1 + sum(map(abs, scores(attribution))))
        assert attribution.convergence_delta == pytest.approx(0, abs=rounding)


def test_a_word_in_two_windows_has_the_mean_of_what_it_has_in_each():
    whole, windowed = fakes.bag(), fakes.bag(max_length=6, stride=2)
    text = "a dull plot but very good !"
    assert windowed.encode([text]).row == [0, 0, 0]
    alone = attribute(whole, [text], target="negative")[0]
    windows = attribute(windowed, ["good", text, "bad"], target="negative")[1]
    counts = [1, 1, 2, 2, 2, 2, 1]  # windows of four tokens, each two further
    expected = [score * count / 3 for score, count in zip(scores(alone), counts, strict=True)]
    assert scores(windows) == pytest.approx(expected, abs=1e-6)
    assert windows.converged


def test_what_is_missing_counts_on_either_side():
    tolerance = 1e-7
    found = attribute(fakes.bert(), TEXTS * 2, max_steps=8, tolerance=tolerance, target="positive")
    missing = [each.convergence_delta for each in found]
    for each, delta in zip(found, missing, strict=True):
        change = sum(scores(each)) + each.special_score - delta
        assert each.converged == (abs(delta) <= tolerance * abs(change))
    assert min(missing) < 0 < max(missing)
    assert not all(each.converged for each in found)


@pytest.mark.parametrize("make", MODELS)
def test_the_words_add_up_to_the_change_of_score(make):
    for found in attribute(make(), TEXTS, tolerance=0.05, max_steps=1024):
        change = sum(scores(found)) - found.convergence_delta
        assert found.converged
        assert abs(found.convergence_delta) <= 0.05 * abs(change) + 1e-9


@pytest.mark.parametrize("make", [fakes.bert, fakes.llama])
def test_the_change_is_that_of_the_embeddings_and_of_nothing_else(make):
    module = make().eval()
    found = attribute(module, [TEXTS[0]], target="negative")[0]
    change = sum(scores(found)) - found.convergence_delta
    assert change == pytest.approx(explained_change(module, TEXTS[0], "negative"), abs=1e-5)


@pytest.mark.parametrize("make", MODELS)
def test_a_text_is_explained_the_same_alone_and_in_any_batch(make):
    module = make()
    together = attribute(module, TEXTS, batch_size=3 * FIRST_POINTS, max_steps=64)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = attribute(module, [text], max_steps=64)
        assert scores(found) == pytest.approx(scores(alone), abs=1e-4)
        assert (found.text, found.prediction, found.converged) == (text, alone.prediction, alone.converged)


@pytest.mark.parametrize("make", MODELS)
def test_padding_and_special_tokens_never_receive_attribution(make):
    found = attribute(make(), TEXTS, max_steps=4)
    assert [each.special_score for each in found] == [0.0] * len(TEXTS)
    assert all(all(scores(each)) for each in found)


def test_credit_of_special_tokens_is_told_where_a_method_gives_some():
    module = fakes.bert()
    (found,) = attribute(module, TEXTS[:1], method="input_x_gradient")
    assert found.special_score != 0
    with module.attributing():
        (target,) = module.attribution_targets(TEXTS[:1])
        embedded = module.layers[0](torch.tensor([target.readings[0].inputs["input_ids"]])).detach().requires_grad_()
        logits = module.model(inputs_embeds=embedded).logits
        (gradient,) = torch.autograd.grad(logits[0, fakes.LABELS.index(target.name)], embedded)
    expected = (gradient * embedded).sum(2)[0]
    assert scores(found) == pytest.approx(expected[1:-1].tolist(), abs=1e-5)
    assert found.special_score == pytest.approx((expected[0] + expected[-1]).item(), abs=1e-5)


# Every method, against what is known


EXACT_ON_SUMS = [
    "integrated_gradients",
    "deep_lift",
    "gradient_shap",
    "feature_ablation",
    "shapley_value_sampling",
    "kernel_shap",
    "lime",
]


@pytest.mark.parametrize("method", EXACT_ON_SUMS)
def test_on_a_sum_of_embeddings_every_sound_method_gives_the_same(method: str):
    module = fakes.bag()
    for found in attribute(module, [*TEXTS[:3], TEXTS[4]], target="positive", **with_samples(method, 200)):
        weight, table = module.model.head.weight[2], module.model.embedding.weight
        ids = module.tokenizer.convert_tokens_to_ids([word.text for word in found.words])
        expected = [((table[i] - table[fakes.PAD]) @ weight).item() for i in ids]
        assert scores(found) == pytest.approx(expected, abs=1e-4)


def test_occlusion_is_the_mean_of_the_windows_over_a_word():
    module = fakes.bag()
    (found,) = attribute(module, ["good bad dull"], method="occlusion", target="positive")
    (alone,) = attribute(module, ["good bad dull"], method="feature_ablation", target="positive")
    one, two, three = scores(alone)
    # Captum shares a window's loss among its words, and takes the mean over the windows of each.
    assert scores(found) == pytest.approx([one + two, (one + 2 * two + three) / 2, two + three], abs=1e-5)


def exact_shapley(module: fakes.FakeModule, text: str, target: str) -> list[float]:
    """Each word's mean contribution over all coalitions, enumerated, with the embeddings looked up by hand."""
    (sequence,) = module.encode([text]).sequences
    ids, size = torch.tensor([sequence["input_ids"]]), len(sequence["input_ids"]) - 2

    @torch.no_grad()
    def value(coalition: tuple[int, ...]) -> float:
        kept = [0, *(i + 1 for i in coalition), size + 1]
        absent = torch.ones_like(ids).bool().index_fill(1, torch.tensor(kept), False)
        tokens = ids.masked_fill(absent, fakes.PAD)
        logits = module.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return logits[0, fakes.LABELS.index(target)].item()

    others = [[other for other in range(size) if other != word] for word in range(size)]
    return [
        sum(
            math.factorial(len(some)) * math.factorial(size - len(some) - 1) / math.factorial(size)
            * (value((*some, word)) - value(some))
            for count in range(size)
            for some in itertools.combinations(others[word], count)
        )
        for word in range(size)
    ]  # fmt: skip


@pytest.mark.parametrize(("method", "samples"), [("shapley_value_sampling", 1500), ("kernel_shap", 3000)])
@pytest.mark.parametrize("make", [fakes.interactions, fakes.bert])
def test_shapley_values_are_those_of_the_enumerated_game(make, method: str, samples: int):
    module, text = make().eval(), "never a very good plot"
    (found,) = attribute(module, [text], method=method, target="positive", samples=samples, batch_size=64)
    expected = exact_shapley(module, text, "positive")
    assert scores(found) == pytest.approx(expected, abs=0.1 * max(map(abs, expected)))
    assert found.converged is None, "their sum is right by construction, and says nothing of them"
    assert found.convergence_delta == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "off"), [("integrated_gradients", 1e-6), ("shapley_value_sampling", 1e-6), ("kernel_shap", 0.03)]
)
def test_a_word_that_changes_nothing_has_nothing(method: str, off: float):
    module = fakes.interactions()
    table = module.model.embedding.weight.data
    table[fakes.VOCABULARY.index("a")] = table[fakes.PAD]
    (found,) = attribute(module, ["never a good plot"], **with_samples(method, 400))
    assert found.words[1].score == pytest.approx(0, abs=off)


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "kernel_shap"])
def test_words_with_the_same_part_in_the_score_have_the_same(method: str):
    module = fakes.bag()
    (found,) = attribute(module, ["good film good"], **with_samples(method, 400))
    assert found.words[0].score == pytest.approx(found.words[2].score, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_alone_and_in_any_batch_and_by_its_seed(method: str):
    module, texts = fakes.bert(), [TEXTS[0], TEXTS[4], "good"]
    torch.manual_seed(3)
    together = attribute(module, texts, **with_samples(method, 32), max_steps=32, seed=7)
    drawn = torch.rand(())
    torch.manual_seed(3)
    assert drawn == torch.rand(()), "and others' random numbers are left alone"
    for text, found in zip(texts, together, strict=True):
        (alone,) = attribute(module, [text], **with_samples(method, 32), max_steps=32, seed=7)
        assert scores(alone) == pytest.approx(scores(found), abs=1e-4)
        assert alone.special_score == pytest.approx(found.special_score, abs=1e-4)
    other = attribute(module, texts, **with_samples(method, 32), max_steps=32, seed=8)
    draws = {"gradient_shap", "shapley_value_sampling", "kernel_shap", "lime", "random"}
    assert (scores(other[0]) != scores(together[0])) == (method in draws)


def test_an_option_that_there_is_not_is_told():
    with pytest.raises(ConfigError, match=r"option: 'sample' is not one of .*did you mean 'samples'"):
        attribute(fakes.bert(), TEXTS[:1], sample=3)


@pytest.mark.parametrize("method", ["lime", "kernel_shap"])
def test_samples_that_are_too_few_are_told(method: str):
    module = fakes.bert()
    with pytest.warns(UserWarning, match=r"samples=8 is too few for texts of 5 words"):
        attribute(module, ["a good film not bad"], method=method, samples=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute(module, ["a good film not bad"], method=method, samples=20)


def test_sampling_gives_stable_results_without_being_told_how_often():
    module = fakes.bert()
    for method in "shapley_value_sampling", "kernel_shap", "lime":
        (one,), (other,) = (attribute(module, TEXTS[:1], method=method, seed=seed) for seed in (0, 1))
        assert torch.corrcoef(torch.tensor([scores(one), scores(other)]))[0, 1] > 0.9


def test_the_draws_of_gradient_shap_lie_more_evenly_than_by_chance():
    def error(samples: int) -> float:
        found = [
            attribute(fakes.bert(), TEXTS[:2], method="gradient_shap", samples=samples, seed=seed) for seed in range(6)
        ]
        return sum(each.convergence_delta**2 for some in found for each in some if each.convergence_delta) ** 0.5

    # Of independent draws the error falls with the root of their number, by 4; of one from each part of the way with
    # the power of 1.5, by 64; with its mirror image, with that of 2.5.
    assert error(4) / error(64) > 100


def test_the_draws_of_gradient_shap_do_not_hang_on_the_batch_size():
    module = fakes.bert()
    found = [
        scores(attribute(module, TEXTS[:1], method="gradient_shap", samples=30, batch_size=size)[0])
        for size in (1, 7, 30, 64)
    ]
    for each in found[1:]:
        assert each == pytest.approx(found[0], abs=1e-5)


class Pairs(Game):
    """A game in which words count alone and two by two."""

    def __init__(self):
        self.words, self.readings = 6, [SimpleNamespace(rows=8)]
        generator = torch.Generator().manual_seed(0)
        self.alone = torch.randn(self.words, generator=generator)
        self.together = torch.randn(self.words, self.words, generator=generator).triu(1)

    def score(self, keep):
        keep = keep.float()
        return keep @ self.alone + ((keep @ self.together) * keep).sum(1)


@pytest.mark.parametrize(("play", "samples"), [(shapley_value_sampling, 2), (kernel_shap, 30)])
def test_what_two_words_do_together_cancels_out_of_a_draw_and_its_reverse(play, samples: int):
    game = Pairs()
    found = play(game, Options(samples=samples))
    halves = (game.together + game.together.T).sum(1) / 2
    torch.testing.assert_close(found, game.alone + halves, atol=1e-3, rtol=1e-3)


def test_a_window_is_played_with_its_own_words_alone():
    whole, windowed = fakes.bag(), fakes.bag(max_length=6, stride=0)
    text = "a dull plot but very good film !"
    for method in "shapley_value_sampling", "feature_ablation", "kernel_shap":
        windowed.rows = whole.rows = 0
        (found,) = attribute(windowed, [text], method=method, target="negative")
        (alone,) = attribute(whole, [text], method=method, target="negative")
        assert scores(found) == pytest.approx([score / 2 for score in scores(alone)], abs=1e-4)
        # Two windows of four words cost what eight words do, but that each looks up its own whole and blank text.
        assert windowed.rows < whole.rows + 10 if method != "kernel_shap" else windowed.rows < 2.1 * whole.rows


def test_a_layer_credits_words_with_what_it_makes_of_them():
    module, layer = fakes.bert(), "model.bert.encoder.layer.0"
    (found,) = attribute(module, TEXTS[:1], method="layer_integrated_gradients", layer=layer, target="positive")
    (sequence,) = module.encode(TEXTS[:1]).sequences
    module.eval()
    method = LayerIntegratedGradients(
        lambda ids: module.model(input_ids=ids).logits[:, 2], module.model.bert.encoder.layer[0]
    )
    ids = torch.tensor([sequence["input_ids"]])
    blank = ids.masked_fill(~torch.isin(ids, torch.tensor([fakes.CLS, fakes.SEP])), fakes.PAD)
    expected = method.attribute(ids, baselines=blank, n_steps=200, method="gausslegendre").sum(2)[0].tolist()
    assert scores(found) == pytest.approx(expected[1:-1], abs=2e-3)
    assert found.special_score == pytest.approx(expected[0] + expected[-1], abs=2e-3)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (fakes.bart, "model.model.encoder.layers.0"),
        (fakes.bart, "model.model.decoder.layers.0"),
        (fakes.t5, "model.transformer.encoder.final_layer_norm"),
    ],
)
def test_behind_an_encoder_a_layer_accounts_for_what_its_outputs_change(make, layer: str):
    module = make().eval()
    (found,) = attribute(
        module, TEXTS[:1], method="layer_integrated_gradients", layer=layer, target="positive", tolerance=0.02
    )
    part, (sequence,) = module.get_submodule(layer), module.encode(TEXTS[:1]).sequences
    ids = torch.tensor([sequence["input_ids"]])
    blank = ids.masked_fill(~torch.isin(ids, torch.tensor([fakes.CLS, fakes.SEP])), fakes.PAD)
    looked_up = [layer(blank) for layer in module.layers]
    given: list[object] = []

    def score(exchanged: dict[torch.nn.Module, object]) -> float:
        hooks = [one.register_forward_hook(lambda *_, output=output: output) for one, output in exchanged.items()]
        hooks.append(part.register_forward_hook(lambda *call: given.append(call[-1])))
        with torch.no_grad():
            found = module.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 2].item()
        for hook in hooks:
            hook.remove()
        return found

    full = score({})
    if "decoder" in layer:  # which reads each token one place further right, the first being the start
        shifted = ids.roll(1, 1)
        shifted[0, 0] = module.model.config.decoder_start_token_id
        inside = torch.isin(shifted, torch.tensor([fakes.CLS, fakes.SEP]))
        inside[0, 0] = True
        looked_up[1] = module.layers[1](shifted.masked_fill(~inside, fakes.PAD))
    score(dict(zip(module.layers, looked_up, strict=True)))
    change = full - score({part: given[1]})
    assert found.converged
    assert sum(scores(found)) + found.special_score == pytest.approx(change, rel=0.03, abs=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        "model.classification_head.dense",
        "model.model.decoder.layers.0.encoder_attn.k_proj",
        "model.model.decoder.embed_positions",
        "model.model.encoder.embed_tokens",
        "model.model.encoder",
    ],
)
def test_a_layer_without_a_vector_for_each_token_is_refused(layer: str):
    module = fakes.bart()
    before = traces(module)
    with pytest.raises(ConfigError, match=f"layer: {layer} doesn't give one vector for each token; name one, such as"):
        attribute(module, TEXTS[:1], method="layer_integrated_gradients", layer=layer)
    assert traces(module) == before


def test_as_many_numbers_as_there_are_tokens_are_no_vector_for_each():
    text = "the film is very good . the film is very good . a film"  # 16 tokens, as many as the pooled vector is wide
    with pytest.raises(ConfigError, match=r"model\.bert\.pooler doesn't give one vector for each token"):
        attribute(fakes.bert(), [text], method="layer_integrated_gradients", layer="model.bert.pooler")


def test_a_layer_that_is_called_more_than_once_is_refused():
    layer = "model.albert.encoder.albert_layer_groups.0.albert_layers.0"
    with pytest.raises(ConfigError, match="is called 2 times in a pass; name one that is called once"):
        attribute(fakes.albert(), TEXTS[:1], method="layer_integrated_gradients", layer=layer)


@pytest.mark.parametrize(
    ("make", "layer"),
    [(fakes.bert, "model.bert.encoder.layer.0"), (fakes.bart, "model.model.decoder.layers.0.encoder_attn")],
)
def test_a_layer_is_known_to_fit_by_the_passes_that_find_the_ends_of_its_way(make, layer: str):
    module = make()
    with module.attributing():
        (target,) = module.attribution_targets(TEXTS[:1])
        batch = Batch(module, target.readings, [Features.of(target)], absence=fakes.PAD, rows=8)
        assert (len(batch.embeddings), len(batch.baselines)) == (len(module.layers),) * 2
        module.rows = 0
        way, half = _by_layer(batch, layer)
    assert module.rows == 3  # two that go as far as the layer, and one that counts its calls
    assert half == len(module.layers) - 1
    assert not torch.equal(way.begin[0], way.end[0])


def test_a_model_without_attention_has_no_mask_to_be_read_by(tmp_path):
    config = FNetConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=64
    )
    FNetModel(config).save_pretrained(save_bert(tmp_path))
    (found,) = attribute(SentimentModule(str(tmp_path)), CORPUS[:1])
    assert found.converged


def test_attention_is_rolled_out_over_the_layers_to_where_the_class_is_read():
    module = fakes.bert().eval()
    (found,) = attribute(module, TEXTS[:1], method="attention_rollout")
    (sequence,) = module.encode(TEXTS[:1]).sequences
    module.model.set_attn_implementation("eager")
    layers = module.model(input_ids=torch.tensor([sequence["input_ids"]]), output_attentions=True).attentions
    rolled = torch.eye(len(sequence["input_ids"]))
    for attention in layers:
        rolled = (0.5 * attention[0].mean(0) + 0.5 * torch.eye(len(rolled))) @ rolled
    assert scores(found) == pytest.approx(rolled[0, 1:-1].tolist(), abs=1e-5)  # BERT's class is read at [CLS]
    assert found.special_score == pytest.approx((rolled[0, 0] + rolled[0, -1]).item(), abs=1e-5)


def test_attention_leaves_the_models_implementation_as_it_was():
    module = fakes.llama()
    before = module.model.config._attn_implementation
    (found,) = attribute(module, TEXTS[:1], method="attention_rollout")
    assert module.model.config._attn_implementation == before
    assert sum(scores(found)) + found.special_score == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match="method: FakeModule holds no model of transformers"):
        attribute(fakes.bag(), TEXTS[:1], method="attention_rollout")


def shown(module: fakes.FakeModule, text: str):
    """What transformers itself tells of a text's attentions, and the ids."""
    (sequence,) = module.encode([text]).sequences
    module.eval().model.set_attn_implementation("eager")
    ids = torch.tensor([sequence["input_ids"]])
    with torch.no_grad():
        return module.model(input_ids=ids, output_attentions=True), ids[0]


@pytest.mark.parametrize("make", [fakes.bart, fakes.t5])
def test_behind_an_encoder_attention_is_rolled_out_over_both_halves(make):
    module = make()
    (found,) = attribute(module, TEXTS[:1], method="attention_rollout")
    outputs, ids = shown(module, TEXTS[0])
    encoded = torch.eye(len(ids))
    for weights in outputs.encoder_attentions:
        encoded = 0.5 * encoded + 0.5 * weights[0].mean(0) @ encoded
    own, source = torch.eye(len(ids)), torch.zeros(len(ids), len(ids))
    for weights, across in zip(outputs.decoder_attentions, outputs.cross_attentions, strict=True):
        step = 0.5 * torch.eye(len(ids)) + 0.5 * weights[0].mean(0)
        own, source = step @ own, step @ source
        own, source = 0.5 * own, 0.5 * source + 0.5 * across[0].mean(0) @ encoded
    place = (ids == fakes.SEP).nonzero()[-1, 0]  # where these models read the class
    # The decoder reads each token one place further right.
    expected = source[place, 1:-1] + own[place, 2:]
    assert scores(found) == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(scores(found)) + found.special_score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("layer", "head"), [(None, 1), ("model.bert.encoder.layer.1", None)])
def test_a_head_of_the_last_layer_is_shown_as_it_looks_from_the_class(layer, head):
    module = fakes.bert()
    (found,) = attribute(module, TEXTS[:1], method="attention", layer=layer, head=head)
    outputs, _ = shown(module, TEXTS[0])
    weights = outputs.attentions[-1][0]
    expected = (weights.mean(0) if head is None else weights[head])[0, 1:-1]
    assert scores(found) == pytest.approx(expected.tolist(), abs=1e-5)


def test_of_an_encoder_decoder_the_last_attention_is_over_the_source():
    module = fakes.bart()
    (found,) = attribute(module, TEXTS[:1], method="attention", head=0)
    outputs, ids = shown(module, TEXTS[0])
    place = (ids == fakes.SEP).nonzero()[-1, 0]
    assert scores(found) == pytest.approx(outputs.cross_attentions[-1][0, 0, place, 1:-1].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": 9}, "head: expected a head from 0 to 1, got 9"),
        ({"layer": "model.bert.pooler"}, "layer: there is no attention in a layer 'model.bert.pooler'"),
    ],
)
def test_a_head_must_be_one_of_the_models(arguments, message):
    with pytest.raises(ConfigError, match=message):
        attribute(fakes.bert(), TEXTS[:1], method="attention", **arguments)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, "layer: layer_integrated_gradients needs a layer; name one, such as "),
        ("model.bert.encoder.layer.9", "layer: the model has no layer 'model.bert.encoder.layer.9'; did you mean"),
    ],
)
def test_a_layer_must_be_one_of_the_models(layer, message):
    with pytest.raises(ConfigError) as raised:
        attribute(fakes.bert(), TEXTS[:1], method="layer_integrated_gradients", layer=layer)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "saliency"])
def test_a_contrast_is_the_difference_of_two_classes(method: str):
    module = fakes.bag()
    (found,) = attribute(module, TEXTS[:1], method=method, target="positive", contrast="negative")
    one, other = (attribute(module, TEXTS[:1], method=method, target=name)[0] for name in ("positive", "negative"))
    if method == "saliency":
        weight = module.model.head.weight
        expected = [(weight[2] - weight[0]).abs().sum().item()] * len(found.words)
    else:
        expected = [a - b for a, b in zip(scores(one), scores(other), strict=True)]
    assert scores(found) == pytest.approx(expected, abs=1e-5)


def test_the_baseline_is_the_token_that_was_asked_for():
    module = fakes.bag()
    (found,) = attribute(module, ["good"], target="positive", baseline="unk")
    table, weight = module.model.embedding.weight, module.model.head.weight[2]
    expected = (table[fakes.VOCABULARY.index("good")] - table[fakes.UNK]) @ weight
    assert scores(found) == pytest.approx([expected.item()], abs=1e-6)


def test_both_texts_of_a_pair_receive_attribution():
    (found,) = attribute(fakes.bert(), [("the film is good", "the plot is bad")])
    assert [word.text for word in found.words] == ["the", "film", "is", "good"]
    assert [word.text for word in found.pair_words] == ["the", "plot", "is", "bad"]
    assert all(scores(found))
    assert found.converged


def test_a_text_without_words_has_nothing_to_explain():
    (found,) = attribute(fakes.bert(), [""])
    assert (found.words, found.convergence_delta, found.converged) == ([], 0.0, True)
    assert attribute(fakes.bert(), []) == []


def test_a_game_is_the_score_of_what_is_kept():
    module = fakes.bag()
    weight, table = module.model.head.weight, module.model.embedding.weight
    with module.attributing():
        (game,) = games(module, module.attribution_targets(["good bad"], target="positive"), Options())
        keep = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.0]])
        found, logs = game.score(keep), game.log_probability(keep)
    ids = torch.tensor([fakes.CLS, fakes.VOCABULARY.index("good"), fakes.VOCABULARY.index("bad"), fakes.SEP])
    for (first, second), score, log in zip(keep.tolist(), found.tolist(), logs.tolist(), strict=True):
        shares = torch.tensor([1.0, first, second, 1.0])[:, None]
        embedded = shares * table[ids] + (1 - shares) * table[fakes.PAD]
        logits = weight @ embedded.sum(0) + module.model.head.bias
        assert score == pytest.approx(logits[2].item(), abs=1e-5)
        assert log == pytest.approx(logits.log_softmax(0)[2].item(), abs=1e-5)


def test_a_game_is_played_with_the_words_that_are_read():
    cut = fakes.bag(max_length=5)
    with cut.attributing():
        (game,) = games(cut, cut.attribution_targets(["good bad dull film plot"], target="positive"), Options())
    assert (game.words, game.played) == (3, [0, 1, 2])


def test_the_probability_of_a_text_in_windows_is_that_of_the_mean_of_their_logits():
    module = fakes.bert(max_length=6, stride=0).eval()
    with module.attributing():
        (target,) = module.attribution_targets(["a dull plot but very good film !"])
        (game,) = games(module, [target], Options())
        assert len(target.readings) == 2
        assert game.log_probability(torch.ones(1, 8)).exp().item() == pytest.approx(target.probability, abs=1e-6)


def test_all_targets_of_a_text_stand_together():
    found = attribute(fakes.bag(), TEXTS[:2], target="all", labels=["negative", "positive"])
    assert [(each.row, each.target) for each in found] == [(row, name) for row in (0, 1) for name in fakes.LABELS]
    assert [each.label for each in found] == ["negative"] * 3 + ["positive"] * 3
    some = attribute(fakes.bag(), TEXTS[:1], target=["positive", "negative"])
    assert [scores(each) for each in some] == [scores(found[2]), scores(found[0])]
    with pytest.raises(ConfigError, match="contrast: all targets come with their own contrasts"):
        attribute(fakes.bag(), TEXTS[:1], target="all", contrast="negative")


def test_random_scores_are_drawn_for_each_target_alone():
    first, second = (
        attribute(fakes.bag(), ["good film"], method="random", target=name)[0] for name in fakes.LABELS[:2]
    )
    assert scores(first) != scores(second)
    assert scores(attribute(fakes.bag(), ["bad", "good film"], method="random", target="negative")[1]) == scores(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": 3}, "head: integrated_gradients has no use for head; leave it out, or choose attention"),
        ({"method": "saliency", "layer": "x"}, "layer: saliency has no use for layer; "),
        ({"samples": 10}, "samples: integrated_gradients has no use for samples; "),
        ({"method": "lime", "samples": 1}, "samples: samples must be at least 2, got 1"),
        ({"method": "attention", "head": -1}, "head: heads are counted from 0, got -1"),
        ({"tolerance": 0.0}, "tolerance: expected a number above 0, got 0.0"),
    ],
)
def test_an_option_without_a_use_or_out_of_range_is_told(options, message):
    with pytest.raises(ConfigError) as raised:
        attribute(fakes.bag(), TEXTS[:1], **options)
    assert str(raised.value).startswith(message)


def test_softly_kept_words_lose_elements_of_their_embeddings_by_chance():
    module = fakes.bag()
    with module.attributing():
        (game,) = games(module, module.attribution_targets(["good bad"], target="positive"), Options())
        generator = torch.Generator().manual_seed(0)
        full, empty = game.log_probability(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        retain = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
        kept, blank, one, other = game.soft_log_probability(retain, generator)
    assert (kept, blank) == (full, empty)
    assert one != other


@pytest.mark.parametrize("method", METHODS)
def test_no_more_sequences_run_at_once_than_the_batch_size(method: str):
    module = fakes.bert()
    attribute(module, TEXTS, **with_samples(method, 10), batch_size=4)
    assert module.widest <= 4


def test_the_result_names_prediction_target_and_label():
    found = attribute(fakes.bert(), TEXTS[:2], target="neutral", labels=["negative", None])
    assert [(each.target, each.label) for each in found] == [("neutral", "negative"), ("neutral", None)]
    assert found[0].probability == found[0].probabilities[found[0].prediction] == max(found[0].probabilities.values())
    assert attribute(fakes.bert(), TEXTS[:1])[0].target == found[0].prediction
    assert json.loads(json.dumps(asdict(found[0])))["words"][0].keys() == {"text", "start", "end", "score", "unknown"}


@pytest.mark.parametrize("method", ["saliency", "feature_ablation", "random"])
def test_words_that_the_tokenizer_does_not_know_are_marked(method: str):
    module = fakes.bert(max_length=8, stride=2)
    found = attribute(module, [("the qux film is good", "a zap"), ("good", "bad")], method=method)
    assert [word.text for each in found for word in each.words + each.pair_words if word.unknown] == ["qux", "zap"]


def test_a_tokenizer_without_an_unknown_token_knows_all_words():
    module = fakes.bert()

    def absence_id(baseline):
        if baseline == "unk":
            raise ConfigError("there is none")
        return fakes.PAD

    module.absence_id = absence_id
    (found,) = attribute(module, ["the qux film"], method="saliency")
    assert not any(word.unknown for word in found.words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "integrated_gradient"},
            "; did you mean 'integrated_gradients'?",
        ),
        ({"labels": ["positive"]}, "labels: there are 5 texts but 1 labels"),
        ({"batch_size": 0}, "batch_size: expected a number above 0, got 0"),
    ],
)
def test_a_mistake_is_told(arguments, message):
    with pytest.raises(ConfigError) as raised:
        attribute(fakes.bag(), **{"texts": TEXTS, **arguments})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, "texts: expected a list of texts, got one text; write [text]"),
        ({"texts": None}, "texts: expected a list of texts, got NoneType; write [text]"),
        ({"texts": 1}, "texts: expected a list of texts, got int"),
        ({"texts": iter(["good"])}, "texts: expected a list of texts, got list_iterator"),
        ({"texts": {"good"}}, "texts: expected a list of texts, got set"),
        ({"texts": ["good", 1]}, "text 1 (counted from 0): expected a text, or a tuple of two, got 1; write text or ("),
        ({"texts": [["good", "bad"]]}, "expected a text, or a tuple of two, got ['good', 'bad']; write text or ("),
        ({"texts": [("good", "bad", "dull")]}, "expected a text, or a tuple of two, got ('good', 'bad', 'dull')"),
        ({"texts": [("good", None)]}, "expected a text, or a tuple of two, got ('good', None)"),
        ({"labels": "films"}, "labels: expected a list of labels, got one label; write [label]"),
        ({"labels": 1}, "labels: expected a list of labels, got int"),
        ({"module": None}, "module: expected a module of lit_nlp, got NoneType; load one, as by SentimentModule.load"),
        ({"module": "a/backbone"}, "module: expected a module of lit_nlp, got str"),
        ({"module": fakes.FakeModule}, "module: expected a module of lit_nlp, got the class FakeModule; load one"),
    ],
)
@pytest.mark.parametrize("entry", [attribute, partial(compare_methods, methods=["saliency"])])
def test_what_is_no_module_or_no_list_is_told_before_any_work(arguments, message, entry, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    module = fakes.bag()
    with pytest.raises(ConfigError) as raised:
        entry(**{"module": module, "texts": TEXTS, **arguments})
    assert message in str(raised.value)
    assert module.rows == 0, "nothing was done before"


def test_one_method_is_no_list_of_methods():
    with pytest.raises(ConfigError, match=r"methods: expected a list of methods, got one method; write \[method\]"):
        compare_methods(fakes.bag(), TEXTS, "saliency")


def test_a_model_that_has_diverged_is_not_explained():
    module = fakes.bert()
    module.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"text 0 .* is not a finite number"):
        attribute(module, ["good"])


def test_a_layer_that_reads_other_tokens_is_refused():
    module = fakes.bert()
    module.layers = [module.model.bert.embeddings.position_embeddings]
    with pytest.raises(ValueError, match="read other tokens"):
        attribute(module, ["good"])


def traces(module: fakes.FakeModule) -> list[object]:
    """All that an explanation could leave behind."""
    parts = [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    weights = [(weight.requires_grad, weight.grad, weight.detach().clone()) for weight in module.parameters()]
    return [parts, [each[:2] for each in weights], [each[2].numpy().tobytes() for each in weights]]


@pytest.mark.parametrize("fails_at", [None, 1, 3, 4, 6])
def test_the_module_is_left_as_it_was_also_when_something_fails_inside(fails_at):
    module, calls = fakes.bart().train(), 0
    module.model.model.shared.requires_grad_(False)
    before, score = traces(module), module.score

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise RuntimeError("out of memory")
        return score(*arguments)

    module.score = failing
    if fails_at is None:
        attribute(module, TEXTS, batch_size=4)
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            attribute(module, TEXTS, batch_size=4)
    assert traces(module) == before


def test_bfloat16_weights_are_explained():
    found = attribute(fakes.bert().to(torch.bfloat16), TEXTS[:1], max_steps=16)[0]
    exact = attribute(fakes.bert(), TEXTS[:1], target=found.target)[0]
    assert scores(found) == pytest.approx(scores(exact), abs=0.1)
