import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lit_nlp import SentimentModule
from lit_nlp.modules.first_token import first_token_only

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
CUT = ["bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"]
ABSORBED = [kind for kind in CUT if not kind.startswith("deberta")]
WHOLE = ["albert", "gpt2", "modernbert", "mpnet"]


def classifier(kind: str) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **SIZES, intermediate_size=24, pad_token_id=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, part in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(part)
    return model


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


def operations(model: PreTrainedModel) -> int:
    """Return how many multiplications and additions the model's matrix products take."""
    with FlopCounterMode(display=False) as counted:
        model(**inputs())
    return counted.get_total_flops()


def saved(model: PreTrainedModel) -> int:
    """Return how many of them the first token alone saves."""
    whole = operations(model)
    with first_token_only(model):
        return whole - operations(model)


@pytest.mark.parametrize("kind", ABSORBED)
def test_no_keys_and_values_are_made_of_other_tokens(kind: str) -> None:
    model = classifier(kind)
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    rows, width = inputs()["input_ids"].shape
    # Queries, keys and values; DistilBERT's attention also holds what follows.
    projections = (4 if kind == "distilbert" else 3) * 2 * hidden**2
    compared = 2 * heads * width * 2 * hidden + 2 * hidden
    attending = rows * width * projections - rows * (projections + compared)
    eager = classifier(kind)
    eager.set_attn_implementation("eager")
    assert saved(model) - saved(eager) == attending > 0


def test_with_dropout_logits_are_spread_as_those_of_all_tokens() -> None:
    model = classifier("bert").train()
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5 if name.endswith("attention.self.dropout") else 0.0
    many = {name: each[:1].repeat(20_000, 1) for name, each in inputs().items()}
    with torch.no_grad():
        logits = model(**many).logits
        with first_token_only(model):
            spared = model(**many).logits
    error = float(logits.std(0).max()) / len(logits) ** 0.5
    torch.testing.assert_close(spared.mean(0), logits.mean(0), rtol=0, atol=6 * error)
    torch.testing.assert_close(spared.std(0), logits.std(0), rtol=0.05, atol=0)


def test_weights_that_a_hook_makes_are_those_that_count() -> None:
    model = classifier("bert")
    key = model.bert.encoder.layer[-1].attention.self.key
    prune.custom_from_mask(key, "weight", torch.zeros_like(key.weight).fill_diagonal_(1))
    torch.nn.init.ones_(key.weight_orig)
    logits = model(**inputs()).logits
    with first_token_only(model):
        torch.testing.assert_close(model(**inputs()).logits, logits)


def test_a_backward_hook_is_called() -> None:
    model, seen = classifier("bert"), []
    model.bert.encoder.layer[-1].attention.self.key.register_full_backward_hook(lambda *call: seen.append(call))
    with first_token_only(model):
        gradients(model)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_what_attends_to_earlier_tokens_alone_does_so(kind: str) -> None:
    config = classifier(kind).config
    config.is_decoder = True
    torch.manual_seed(0)
    model, ids = AutoModelForSequenceClassification.from_config(config).eval(), inputs()["input_ids"][:1]
    logits = model(ids).logits
    with first_token_only(model):
        torch.testing.assert_close(model(ids).logits, logits)


def test_projections_without_a_bias_do_without() -> None:
    model = classifier("bert")
    model.bert.encoder.layer[-1].attention.self.key.bias = None
    logits = model(**inputs()).logits
    with first_token_only(model):
        torch.testing.assert_close(model(**inputs()).logits, logits)


def masks() -> dict[str, Tensor]:
    shown = inputs()["attention_mask"].bool()[:, None, None].expand(2, 1, 5, 5)
    by_head = torch.stack([shown[:, 0], torch.ones(2, 5, 5, dtype=torch.bool).tril()], dim=1)
    return {"shown": shown, "by head": by_head, "added": torch.zeros(2, 1, 5, 5).masked_fill(~shown, -1e4)}


@pytest.mark.parametrize("mask", masks())
def test_masks_of_each_pair_of_tokens_count(mask: str) -> None:
    model, ids = classifier("bert"), inputs()["input_ids"]
    logits = model(ids, attention_mask=masks()[mask]).logits
    with first_token_only(model):
        torch.testing.assert_close(model(ids, attention_mask=masks()[mask]).logits, logits)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.005)]
)
def test_of_each_type_logits_are_as_exact(dtype: torch.dtype, error: float) -> None:
    exact = classifier("bert").double()(**inputs()).logits
    model = classifier("bert").to(dtype)
    with first_token_only(model):
        logits = model(**inputs()).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=error)


@pytest.mark.parametrize("kind", ABSORBED)
def test_under_autocast_logits_are_as_exact(kind: str) -> None:
    model = classifier(kind)
    exact = model(**inputs()).logits
    with torch.autocast("cpu", torch.bfloat16):
        of_all = model(**inputs()).logits
        with first_token_only(model):
            spared = model(**inputs()).logits
            slopes = gradients(model)
    assert (spared - exact).abs().max() < 2 * (of_all - exact).abs().max()
    assert slopes.keys() == gradients(model).keys()


def test_one_within_another_changes_nothing() -> None:
    model = classifier("bert")
    logits = model(**inputs()).logits
    with first_token_only(model):
        with first_token_only(model):
            pass
        torch.testing.assert_close(model(**inputs()).logits, logits)
    assert min(widths(model)) == 5


def test_without_a_mask_all_tokens_count() -> None:
    model, ids = classifier("bert"), inputs()["input_ids"][:1]
    logits = model(ids).logits
    with first_token_only(model):
        torch.testing.assert_close(model(ids).logits, logits)


def test_attention_is_as_it_was_behind_an_error() -> None:
    model = classifier("bert")
    with pytest.raises(RuntimeError), first_token_only(model):
        raise RuntimeError("something fails inside")
    assert min(widths(model)) == 5
    assert "forward" not in vars(model.bert.encoder.layer[-1].attention.self)


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
