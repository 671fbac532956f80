"""Explanations on a device beside the CPU, how seldom a step waits for it, and the pretended device itself."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_nlp import (
    LanguageModelingDataModule,
    LanguageModelingModule,
    QuestionAnsweringModule,
    SentimentDataModule,
    SentimentModule,
    TranslationModule,
    attribute,
)
from lit_nlp.explain import METHODS, compare_methods
from tests import elsewhere
from tests.backbones import CORPUS
from tests.contract import plain_trainer, write_rows
from tests.modules.fitting import Watcher
from tests.translators import save_marian

EAGER: Any = {"attn_implementation": "eager"}


# The device itself


def test_tensors_elsewhere_compute_and_can_be_written_to() -> None:
    with elsewhere.pretended():
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=elsewhere.DEVICE)
        x[[1]] = 7.0
        x[0].mul_(2)
        assert x.tolist() == [[2.0, 4.0], [7.0, 7.0]]
        assert x.device == elsewhere.DEVICE
        assert x[torch.tensor([0])].cpu().numpy().tolist() == [[2.0, 4.0]]


def test_tensors_elsewhere_do_not_mix_with_those_of_the_cpu() -> None:
    with elsewhere.pretended():
        x = torch.ones(2).to(elsewhere.DEVICE)
        assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0], "a number's place doesn't matter"
        for mixes in (
            lambda: x + torch.ones(2),
            lambda: torch.cat([torch.ones(2), x]),
            lambda: torch.ones(2)[x.long()],
        ):
            with pytest.raises(RuntimeError, match="on two devices"):
                mixes()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


def test_it_is_counted_how_often_the_cpu_waits() -> None:
    with elsewhere.pretended() as waits:
        x = torch.tensor([1.0, 0.0], device=elsewhere.DEVICE)
        assert x.sum() == 1
        assert x[x > 0].shape == (1,)
        x[torch.tensor([0])] += 2 * x[1]
        assert waits == {"_local_scalar_dense": 1, "index": 1}
        x.tolist()
        assert waits["_to_copy"] == 1


# Explanations


def explained(module: Any, texts: Any, method: str = "integrated_gradients", **options: Any) -> list[Any]:
    found = attribute(module.eval(), texts, method=method, max_steps=16, seed=1, **options)
    return [score for each in found for score in (word.score for word in each.words)]


def same(scores: list[float], expected: list[float]) -> bool:
    """Whether scores differ by rounding alone."""
    return scores == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_is_explained_on_another_device_as_on_the_cpu(method: str, bert: str) -> None:
    module = SentimentModule(bert, **EAGER)
    options = {"layer": "model.bert.encoder.layer.0"} if method.startswith("layer") else {}
    expected = explained(module, CORPUS[:2], method, **options)
    with elsewhere.pretended():
        assert same(explained(module.to(elsewhere.DEVICE), CORPUS[:2], method, **options), expected)


def test_points_of_many_texts_fill_the_passes_of_another_device(bert: str) -> None:
    module, passes = SentimentModule(bert, **EAGER), list[int]()
    module.model.register_forward_hook(lambda model, given, output: passes.append(len(output.logits)))
    options: dict[str, Any] = {"tolerance": 1e-6, "batch_size": 8}
    expected, on_cpu = explained(module, CORPUS, **options), len(passes)
    passes.clear()
    with elsewhere.pretended():
        assert same(explained(module.to(elsewhere.DEVICE), CORPUS, **options), expected)
    assert max(passes) == 8
    assert len(passes) < 0.8 * on_cpu


@pytest.mark.parametrize("kind", ["question_answering", "translation"])
def test_what_is_said_and_written_is_explained_on_another_device_as_on_the_cpu(
    kind: str, bert: str, tmp_path: Path
) -> None:
    if kind == "translation":
        module: Any = TranslationModule(save_marian(tmp_path), max_new_tokens=4, **EAGER)
        texts: list[Any] = CORPUS[:2]
    else:
        module, texts = QuestionAnsweringModule(bert, **EAGER), [("what is it", CORPUS[0]), ("why", CORPUS[1])]
    expected = explained(module, texts)
    with elsewhere.pretended():
        assert same(explained(module.to(elsewhere.DEVICE), texts), expected)


def test_methods_are_compared_on_another_device_as_on_the_cpu(bert: str) -> None:
    def measured(module: SentimentModule) -> list[float]:
        figures = compare_methods(module.eval(), CORPUS[:3], ["saliency"], sensitivity=True, seed=1)[1].figures
        return [figure.value.mean for figure in figures["saliency"].values()]

    module = SentimentModule(bert, **EAGER)
    expected = measured(module)
    with elsewhere.pretended():
        assert measured(module.to(elsewhere.DEVICE)) == pytest.approx(expected, rel=1e-2, abs=1e-4)


# How seldom a training step waits


def waits_of_steps(module: Any, data: Any, steps: int) -> list[Counter[str]]:
    """Fit, and return what each step but the first waited for."""
    seen: list[Counter[str]] = []
    with elsewhere.pretended() as waits:
        keep = Watcher(on_train_batch_start=lambda _: seen.append(waits.copy()))
        arguments: Any = {"max_steps": steps, "gradient_clip_val": 1.0, "limit_val_batches": 0, "callbacks": [keep]}
        trainer = plain_trainer(strategy=elsewhere.strategy(), accelerator="auto", max_epochs=-1, **arguments)
        trainer.fit(module, data)
    return [later - sooner for sooner, later in pairwise(seen[1:])]


def test_a_step_waits_for_whether_the_last_was_finite_and_where_transformers_looks_at_its_mask(
    bert: str, tmp_path: Path
) -> None:
    rows = [{"text": text, "label": ["negative", "positive"][i % 2]} for i, text in enumerate(CORPUS * 4)]
    data = SentimentDataModule(bert, train=write_rows(tmp_path / "train.jsonl", rows), batch_size=2, val_fraction=0.2)
    module = SentimentModule(bert, **EAGER)
    steps = waits_of_steps(module, data, 6)
    assert steps
    for waited in steps:
        assert waited == {"_local_scalar_dense": 2}


def test_a_step_of_a_decoders_pretraining_waits_as_seldom(llama: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{text}\n" for text in CORPUS * 3))
    data = LanguageModelingDataModule(
        llama, objective="causal", train=str(tmp_path / "train.txt"), val_fraction=0.2, max_length=16, batch_size=2
    )
    steps = waits_of_steps(LanguageModelingModule(llama, objective="causal", **EAGER), data, 6)
    assert steps
    for waited in steps:
        assert waited == {"_local_scalar_dense": 2}


def test_a_model_is_trained_on_few_widths(bert: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": ["negative", "positive"][i % 2]} for i, text in enumerate(CORPUS)]
    data = SentimentDataModule(bert, train=write_rows(tmp_path / "train.jsonl", rows), batch_size=2, val_fraction=0.2)
    module, widths = SentimentModule(bert, **EAGER), set[tuple[bool, int]]()
    module.model.register_forward_pre_hook(
        lambda model, _, given: widths.add((model.training, given["input_ids"].shape[1])), with_kwargs=True
    )
    with elsewhere.pretended():
        plain_trainer(strategy=elsewhere.strategy(), accelerator="auto").fit(module, data)
    assert all(width % 8 == 0 for training, width in widths if training)
    assert any(width % 8 for training, width in widths if not training), "it must be widened for this to say something"
