import json
from dataclasses import asdict

import pytest
import torch

from lit_nlp.errors import ConfigError, UserError
from lit_nlp.explain import METHODS, Attribution, attribute
from lit_nlp.explain.batch import Batch
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
        assert attribution.convergence_delta == pytest.approx(0, abs=1e-6)


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
    together = attribute(module, TEXTS, batch_size=3, max_steps=64)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = attribute(module, [text], max_steps=64)
        assert scores(found) == pytest.approx(scores(alone), abs=1e-4)
        assert (found.text, found.prediction, found.converged) == (text, alone.prediction, alone.converged)


def batch_of(module: fakes.FakeModule, texts: list[str]) -> Batch:
    inputs = module.pad(module.encode(texts).sequences)
    kept = torch.isin(inputs["input_ids"], torch.tensor([fakes.CLS, fakes.SEP]))
    baseline = torch.where(kept, inputs["input_ids"], fakes.PAD)
    return Batch(module, inputs, baseline, torch.zeros(len(texts), dtype=torch.long), rows=8)


@pytest.mark.parametrize("make", MODELS)
def test_padding_and_special_tokens_never_receive_attribution(make):
    module = make()
    with module.attributing():
        batch = batch_of(module, TEXTS)
        credit = METHODS["integrated_gradients"](batch, 4)
    special = torch.isin(batch.input_ids, torch.tensor([fakes.PAD, fakes.CLS, fakes.SEP]))
    assert special.any()
    assert not credit[special].any()
    assert credit[~special].all()


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


def test_steps_double_for_the_texts_that_have_not_converged(monkeypatch):
    asked: list[tuple[int, int]] = []

    def good_for_short_texts(batch: Batch, steps: int) -> torch.Tensor:
        asked.append((steps, len(batch.input_ids)))
        exact = METHODS["integrated_gradients"](batch, 1)  # of a linear model
        return exact if batch.input_ids.shape[1] < 6 else 2 * exact

    monkeypatch.setitem(METHODS, "test", good_for_short_texts)
    found = attribute(fakes.bag(), ["good", TEXTS[0], "bad"], method="test", max_steps=40, batch_size=1)
    assert asked == [(16, 1)] * 3 + [(32, 1), (40, 1)]
    assert [each.converged for each in found] == [True, False, True]
    assert found[1].convergence_delta == pytest.approx(sum(scores(found[1])) / 2)


def test_no_more_sequences_run_at_once_than_the_batch_size():
    module = fakes.bert()
    attribute(module, TEXTS, batch_size=2)
    assert module.widest == 2


def test_the_result_names_prediction_target_and_label():
    found = attribute(fakes.bert(), TEXTS[:2], target="neutral", labels=["negative", None])
    assert [(each.target, each.label) for each in found] == [("neutral", "negative"), ("neutral", None)]
    assert found[0].probability == found[0].probabilities[found[0].prediction] == max(found[0].probabilities.values())
    assert attribute(fakes.bert(), TEXTS[:1])[0].target == found[0].prediction
    assert json.loads(json.dumps(asdict(found[0])))["words"][0].keys() == {"text", "start", "end", "score"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"target": "postive"},
            "target: target 'postive' is not one of negative, neutral, positive; did you mean",
        ),
        (
            {"method": "integrated_gradient"},
            "is not one of integrated_gradients; did you mean 'integrated_grad",
        ),
        ({"labels": ["positive"]}, "labels: there are 5 texts but 1 labels"),
        ({"batch_size": 0}, "batch_size: expected a number above 0, got 0"),
        ({"texts": "one text"}, "texts: expected a list of texts, got one text; write [text]"),
    ],
)
def test_a_mistake_is_told(arguments, message):
    with pytest.raises(ConfigError) as raised:
        attribute(fakes.bag(), **{"texts": TEXTS, **arguments})
    assert message in str(raised.value)


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
        attribute(module, TEXTS)
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            attribute(module, TEXTS)
    assert traces(module) == before


def test_bfloat16_weights_are_explained():
    found = attribute(fakes.bert().to(torch.bfloat16), TEXTS[:1], max_steps=16)[0]
    exact = attribute(fakes.bert(), TEXTS[:1], target=found.target)[0]
    assert scores(found) == pytest.approx(scores(exact), abs=0.1)
