"""What every task must pass: subclass `Contract`, say how to build the task's data and module, and run it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_nlp.data.base import TextDataModule
from lit_nlp.explain import attribute
from lit_nlp.modules.base import TransformerModule
from lit_nlp.tokenization import Text, widened
from tests import elsewhere


def plain_trainer(**arguments: Any) -> Trainer:
    """Lightning's own Trainer, silent and writing nothing unless it is told to."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    frugal = {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    return Trainer(**{**quiet, **frugal, **arguments})


def save(module: TransformerModule, path: Path) -> str:
    """Save a module as a Trainer would, without fitting it."""
    trainer = plain_trainer()
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.save_checkpoint(path)
    return str(path)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a JSONL file, and return its name as a source."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Contract:
    """The promises that hold for each task, whatever its backbone."""

    texts: Sequence[Text]

    def data(self, backbone: str, folder: Path) -> TextDataModule:
        """Build a data module over rows of different lengths, written into the folder, for every split."""
        raise NotImplementedError

    def module(self, backbone: str, data: TextDataModule, **arguments: Any) -> TransformerModule:
        """Build the task's module, with what it must know of the data."""
        raise NotImplementedError

    def predict(self, module: Any) -> list[Any]:
        """Ask the module for its predictions of `texts`, without a Trainer."""
        return module.predict_texts(self.texts)

    def explain(self, module: Any) -> None:
        """Explain `texts` as briefly as can be."""
        attribute(module, self.texts, max_steps=8, batch_size=4)

    @pytest.fixture(params=["bert", "roberta", "llama"])
    def backbone(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        """A backbone of one test alone, which may be deleted."""
        return str(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "backbone"))

    @pytest.fixture
    def datamodule(self, backbone: str, tmp_path: Path) -> TextDataModule:
        return self.data(backbone, tmp_path)

    @pytest.fixture
    def task(self, backbone: str, datamodule: TextDataModule) -> TransformerModule:
        return self.module(backbone, datamodule)

    def test_a_plain_trainer_fits_a_step(self, backbone: str, datamodule: TextDataModule) -> None:
        module = self.module(backbone, datamodule, learning_rate=1e-2, warmup=0.0)
        before = weights(module)
        trainer = plain_trainer(limit_train_batches=1)
        trainer.fit(module, datamodule)
        assert trainer.global_step == 1
        assert {name for name, weight in weights(module).items() if torch.equal(weight, before[name])} == set()
        assert {"train/loss", "val/loss", module.monitor[0]} <= set(trainer.callback_metrics)

    @pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
    def test_every_verb_runs_in_half_precision(self, precision: Any, backbone: str, datamodule: TextDataModule) -> None:
        module = self.module(backbone, datamodule)
        limits: dict[str, Any] = {f"limit_{split}_batches": 1 for split in ("train", "val", "test", "predict")}
        for verb in ("fit", "validate", "test", "predict"):
            getattr(plain_trainer(precision=precision, **limits), verb)(module, datamodule)
        assert {weight.dtype for weight in module.parameters()} == {module.dtype} != {torch.float32}

    def test_a_checkpoint_needs_nothing_beside_it(
        self, backbone: str, datamodule: TextDataModule, tmp_path: Path
    ) -> None:
        module = self.module(backbone, datamodule, learning_rate=1e-2)
        trainer = plain_trainer(limit_train_batches=1)
        trainer.fit(module, datamodule)
        trainer.save_checkpoint(tmp_path / "only.ckpt")
        shutil.rmtree(backbone)
        assert torch.load(tmp_path / "only.ckpt", weights_only=True)
        loaded = type(module).load_from_checkpoint(tmp_path / "only.ckpt")

        batch = rows_of(datamodule, [0, 1, 2])
        assert torch.equal(outputs(loaded, batch), outputs(module, batch))
        assert self.predict(loaded) == self.predict(module)
        assert loaded.tokenizer.backend_tokenizer.to_str() == module.tokenizer.backend_tokenizer.to_str()
        assert loaded.tokenizer.special_tokens_map == module.tokenizer.special_tokens_map
        assert loaded.encode(self.texts).sequences == module.encode(self.texts).sequences
        assert dict(loaded.hparams) == dict(module.hparams)
        assert loaded.targets() == module.targets()
        assert loaded.model.config.id2label == module.model.config.id2label

    def test_a_trainer_predicts_the_same_as_the_module_alone(
        self, task: TransformerModule, datamodule: TextDataModule
    ) -> None:
        batches = plain_trainer().predict(task, datamodule)
        assert batches is not None
        by_trainer = sorted((row for batch in batches for row in batch), key=lambda prediction: prediction.row)
        for one, other in zip(by_trainer, self.predict(task), strict=True):
            assert one.label == pytest.approx(other.label, abs=1e-5)
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)

    def test_every_verb_runs_on_another_device_and_predictions_are_the_same(
        self, backbone: str, datamodule: TextDataModule
    ) -> None:
        module = self.module(backbone, datamodule, attn_implementation="eager")
        expected = self.predict(module)
        limits: dict[str, Any] = {f"limit_{split}_batches": 1 for split in ("train", "val", "test", "predict")}
        with elsewhere.pretended():
            assert self.predict(module.to(elsewhere.DEVICE)) == expected
            for verb in ("predict", "validate", "test", "fit"):
                trainer = plain_trainer(strategy=elsewhere.strategy(), accelerator="auto", **limits)
                getattr(trainer, verb)(module.cpu(), datamodule)

    def test_every_parameter_gets_a_gradient(self, task: TransformerModule, datamodule: TextDataModule) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        task.row_losses(task.forward_batch(batch), batch).mean().backward()
        without = [
            name
            for name, weight in task.named_parameters()
            if weight.requires_grad and (weight.grad is None or not weight.grad.abs().sum() > 0)
        ]
        assert without == []

    def test_a_batch_equals_its_single_rows(self, task: TransformerModule, datamodule: TextDataModule) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        assert not batch["attention_mask"].all(), "the rows must differ in length for this to say something"
        together, losses = outputs(task, batch), task.row_losses(outputs(task, batch), batch)
        for row in range(3):
            alone = rows_of(datamodule, [row])
            torch.testing.assert_close(outputs(task, alone)[0], together[row], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(task.row_losses(outputs(task, alone), alone)[0], losses[row])

    def test_a_widened_batch_has_the_same_loss_and_gradient(
        self, task: TransformerModule, datamodule: TextDataModule
    ) -> None:
        datamodule.setup("fit")
        batch = rows_of(datamodule, [len(datamodule.tables["val"]) - 1])
        wider = widened(batch, task.baseline_id, max_length=10_000)
        task.eval().training = True  # as in a training step, but without dropout
        found = []
        for each in (batch, wider):
            task.zero_grad()
            losses = task.row_losses(task.forward_batch(each), each)
            losses.sum().backward()
            found.append((losses, {name: each.grad for name, each in task.named_parameters()}))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

    def test_the_score_is_differentiable_to_the_embeddings(
        self, task: TransformerModule, datamodule: TextDataModule
    ) -> None:
        batch = rows_of(datamodule, [0, 1, 2])
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *call: seen.append(call[-1]) or call[-1].retain_grad())
            for layer in task.embedding_layers()
        ]
        last = len(task.targets()) - 1
        scores = task.eval().score(task.forward_batch(batch), torch.tensor([0, last, 0]))
        assert scores.shape == (3,)
        scores.sum().backward()
        for hook in hooks:
            hook.remove()
        for embeddings in seen:
            assert embeddings.grad is not None
            reached = embeddings.grad.abs().sum(-1) > 0
            assert reached.any(1).all(), "each row's score hangs on its tokens"
            assert not reached[batch["attention_mask"] == 0].any(), "and on no padding"
        assert seen

    @pytest.mark.parametrize("fails_at", [None, 1, 3])
    def test_an_explanation_leaves_no_trace_also_when_it_fails_inside(
        self, task: TransformerModule, fails_at: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task.train()
        task.model.get_input_embeddings().requires_grad_(False)
        before, score, calls = traces(task), task.score, 0

        def failing(*given: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise RuntimeError("out of memory")
            return score(*given)

        monkeypatch.setattr(task, "score", failing)
        if fails_at is None:
            self.explain(task)
        else:
            with pytest.raises(RuntimeError, match="out of memory"):
                self.explain(task)
        assert calls >= (fails_at or 1)
        assert traces(task) == before

    def test_hyperparameters_are_json_primitives(self, task: TransformerModule) -> None:
        hyperparameters = dict(task.hparams)
        assert json.loads(json.dumps(hyperparameters)) == hyperparameters
        assert dict(task.hparams_initial) == hyperparameters

    def test_a_path_as_argument_is_refused(
        self, backbone: str, datamodule: TextDataModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What a user meets, whose Python doesn't check types.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        with pytest.raises(TypeError, match=r"Module\(backbone=…\) takes JSON primitives"):
            self.module(Path(backbone), datamodule)


def rows_of(datamodule: TextDataModule, rows: list[int]) -> dict[str, Tensor]:
    """Return rows of the validation split as a batch."""
    datamodule.setup("fit")
    batches = datamodule.val_dataloader()
    return batches.collate(batches.dataset.__getitems__(rows))


def outputs(module: TransformerModule, batch: Mapping[str, Tensor]) -> Tensor:
    with module.evaluating(), torch.no_grad():
        return module.forward_batch(batch)


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of what is trained: all but tables of positions that are fixed by a formula."""
    return {name: each.detach().clone() for name, each in module.named_parameters() if each.requires_grad}


def traces(module: torch.nn.Module) -> list[object]:
    """Return all that an explanation could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = [(part.training, *(len(getattr(part, name)) for name in hooks)) for part in module.modules()]
    parameters = [
        (weight.requires_grad, weight.grad, weight.detach().numpy().tobytes()) for weight in module.parameters()
    ]
    return [parts, parameters, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
