import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_nlp import SentimentModule
from lit_nlp.errors import ConfigError
from tests.contract import plain_trainer, weights
from tests.modules.fitting import Batches, Module, Watcher, loader

# Groups


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_weights_decay_but_biases_and_norms_do_not(
    name: str, request: pytest.FixtureRequest, module: Module, batches: Batches
) -> None:
    fitted = SentimentModule(request.getfixturevalue(name), weight_decay=0.3)
    decays = {by_name: group["weight_decay"] for by_name, group in groups_of(fitted, batches).items()}
    assert decays.keys() == dict(fitted.named_parameters()).keys()
    for by_name, decay in decays.items():
        exempt = by_name.endswith(".bias") or "norm" in by_name.lower()
        assert decay == (0.0 if exempt else 0.3), by_name


# How many times 1/2 each part's rate is taken: two layers, counted from the head downwards.
BERT_DEPTHS = {
    "model.classifier.": 0,
    "model.bert.pooler.": 0,
    "model.bert.encoder.layer.1.": 1,
    "model.bert.encoder.layer.0.": 2,
    "model.bert.embeddings.": 3,
}
LLAMA_DEPTHS = {
    "model.score.": 0,
    "model.model.norm.": 0,
    "model.model.layers.1.": 1,
    "model.model.layers.0.": 2,
    "model.model.embed_tokens.": 3,
}


@pytest.mark.parametrize(("name", "depths"), [("bert", BERT_DEPTHS), ("llama", LLAMA_DEPTHS)])
def test_each_layer_learns_at_a_share_of_the_rate_of_the_one_above(
    name: str, depths: dict[str, int], request: pytest.FixtureRequest, batches: Batches
) -> None:
    fitted = SentimentModule(request.getfixturevalue(name), learning_rate=0.08, layer_decay=0.5)
    rates = {by_name: group["initial_lr"] for by_name, group in groups_of(fitted, batches).items()}
    assert rates.keys() == dict(fitted.named_parameters()).keys()
    for by_name, rate in rates.items():
        (depth,) = (depth for part, depth in depths.items() if by_name.startswith(part))
        assert rate == pytest.approx(0.08 / 2**depth), by_name


def groups_of(fitted: LightningModule, batches: Batches) -> dict[str, dict[str, Any]]:
    """Return the optimizer's group of each parameter that learns, as a Trainer set it up."""
    trainer = plain_trainer()
    trainer.fit(fitted, loader(batches))
    names = {parameter: name for name, parameter in fitted.named_parameters()}
    return {names[each]: group for group in trainer.optimizers[0].param_groups for each in group["params"]}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["embeddings"], ("model.bert.embeddings.",)),
        (["bert"], ("model.bert.",)),
        (["encoder.layer.0", "pooler.dense"], ("model.bert.encoder.layer.0.", "model.bert.pooler.dense.")),
        (["*.layer.[0-1].*"], ("model.bert.encoder.layer.0.", "model.bert.encoder.layer.1.")),
        (["bert.embeddings.LayerNorm.weight"], ("model.bert.embeddings.LayerNorm.weight",)),
    ],
)
def test_what_a_pattern_freezes_does_not_learn(
    patterns: list[str], frozen: tuple[str, ...], module: Module, batches: Batches
) -> None:
    fitted = module(freeze=patterns, warmup=0.0)
    before = weights(fitted)
    learning = groups_of(fitted, batches)
    after = weights(fitted)
    expected = {name for name in before if not name.startswith(frozen)}
    assert learning.keys() == expected
    assert {name for name in before if not torch.equal(before[name], after[name])} == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["embedings"],
            "model.freeze: 'embedings' names no parameter, such as bert.embeddings.word_embeddings.weight;"
            " did you mean 'embeddings'?",
        ),
        (["layer.7"], "model.freeze: 'layer.7' names no parameter"),
        (["*"], "model.freeze: every parameter is frozen; there is nothing to train"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_a_mistake(
    patterns: list[str], message: str, module: Module
) -> None:
    with pytest.raises(ConfigError) as raised:
        module(freeze=patterns)
    assert message in str(raised.value)


# Schedule


def linear(step: int, warm: int, total: int) -> float:
    return step / warm if step < warm else (total - step) / (total - warm)


def cosine(step: int, warm: int, total: int) -> float:
    return step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def constant(step: int, warm: int, total: int) -> float:
    return min(1.0, step / warm) if warm else 1.0


@pytest.mark.parametrize("shape", [linear, cosine, constant])
@pytest.mark.parametrize(("warmup", "warm"), [(0.0, 0), (0.25, 3), (4.0, 4), (1.0, 1)])
def test_the_rate_warms_up_and_then_follows_its_schedule_step_by_step(
    shape: Callable[[int, int, int], float], warmup: float, warm: int, module: Module, batches: Batches
) -> None:
    fitted = module(learning_rate=2e-3, scheduler=shape.__name__, warmup=warmup, layer_decay=0.9)
    rates: list[float] = []
    watcher = Watcher(
        on_before_optimizer_step=lambda module: rates.append(max(g["lr"] for g in module.optimizers().param_groups))
    )
    # 4 epochs of 6 batches, of which 2 make an update
    trainer = plain_trainer(max_epochs=4, accumulate_grad_batches=2, callbacks=[watcher])
    trainer.fit(fitted, loader(batches * 3))
    assert rates == pytest.approx([2e-3 * shape(step, warm, 12) for step in range(12)])


def test_a_schedule_without_an_end_is_a_mistake_unless_it_needs_none(module: Module, batches: Batches) -> None:
    endless = {"max_epochs": -1, "callbacks": [Watcher(on_train_epoch_end=lambda module: stop(module.trainer))]}
    for arguments in ({}, {"scheduler": "constant", "warmup": 0.1}):
        with pytest.raises(ConfigError, match=r"trainer.max_epochs: a schedule needs to know how long .* set it or"):
            plain_trainer(**endless).fit(module(**arguments), loader(batches))
    plain_trainer(**endless).fit(module(scheduler="constant", warmup=0.0), loader(batches))


def stop(trainer: Trainer) -> None:
    trainer.should_stop = True
