import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lit_nlp import SentimentModule
from lit_nlp.modules.first_token import first_token_only

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
CUT = ["bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"]
WHOLE = ["albert", "gpt2", "modernbert", "mpnet"]


def classifier(kind: str) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **SIZES, intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 7, 9, 1, 1]])
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs()).logits.square().sum().backward()
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


def widths(model: PreTrainedModel) -> list[int]:
    """Return how many tokens each normalisation reads, in their order."""
    seen: list[int] = []
    norms = [part for part in model.modules() if type(part).__name__.endswith("LayerNorm")]
    hooks = [part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1])) for part in norms]
    model(**inputs())
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", CUT)
def test_logits_and_gradients_are_those_of_all_tokens(kind: str) -> None:
    model = classifier(kind)
    logits, slopes = model(**inputs()).logits, gradients(model)
    with first_token_only(model):
        spared_logits, spared_slopes = model(**inputs()).logits, gradients(model)
        assert widths(model)[-1] == 1
    torch.testing.assert_close(spared_logits, logits)
    assert spared_slopes.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(spared_slopes[name], slope, msg=name)
    assert min(widths(model)) == 5


@pytest.mark.parametrize("kind", WHOLE)
def test_of_other_architectures_all_tokens_are_run(kind: str) -> None:
    model = classifier(kind)
    with first_token_only(model):
        assert min(widths(model)) == 5


def test_a_module_runs_its_last_layer_so(bert: str) -> None:
    module, seen = SentimentModule(bert), []
    module.model.bert.encoder.layer[-1].output.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    module.predict_texts(["a film", "a film that is long"])
    assert [shape[:2] for shape in seen] == [(2, 1)]


@pytest.mark.parametrize("name", ["base_model", "base_model.encoder", "base_model.encoder.layer.1.intermediate.dense"])
def test_who_looks_on_sees_all_tokens(name: str) -> None:
    model, seen = classifier("bert"), []
    model.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[-1]))
    with first_token_only(model):
        model(**inputs())
    found = seen[0] if isinstance(seen[0], Tensor) else seen[0].last_hidden_state
    assert found.shape[1] == 5


def test_gradient_checkpointing_runs_all_tokens_again() -> None:
    model = classifier("bert").train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    slopes = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    with first_token_only(model):
        loss = model(**inputs()).logits.square().sum()
    model.zero_grad()
    loss.backward()
    for name, part in model.named_parameters():
        if part.grad is not None:
            torch.testing.assert_close(part.grad, slopes[name], msg=name)
