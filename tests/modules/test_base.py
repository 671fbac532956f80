import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_nlp import SentimentModule
from lit_nlp.callbacks.checkpointing import LastCheckpoint
from lit_nlp.errors import CheckpointError, ConfigError, NonFiniteError
from lit_nlp.modules.recording import _Recorder
from tests.contract import plain_trainer, save, weights
from tests.modules.fitting import Batches, Data, Module, Watcher, loader, same

# Dropout


def test_dropout_is_on_while_fitting_whatever_the_module_was_used_for_before(module: Module, batches: Batches) -> None:
    fitted = module().eval()
    seen = []

    def passes(module: SentimentModule) -> None:
        first, second = (module.forward_batch(batches[0]) for _ in range(2))
        seen.append((all(part.training for part in module.modules()), torch.equal(first, second)))

    trainer = plain_trainer(max_epochs=2, callbacks=[Watcher(on_train_batch_start=passes)])
    trainer.fit(fitted, loader(batches), loader(batches))
    assert seen == [(True, False)] * 4


def test_a_new_module_and_one_from_a_checkpoint_are_ready_to_train(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    trainer = plain_trainer()
    trainer.fit(fitted := module(), loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    for ready in (module(), SentimentModule.load_from_checkpoint(tmp_path / "x.ckpt")):
        assert all(part.training for part in ready.modules())
    assert fitted.training


def test_evaluating_gives_each_part_its_mode_back(module: Module) -> None:
    used = module().train()
    used.model.bert.embeddings.eval()
    modes = [part.training for part in used.modules()]
    with used.evaluating():
        assert not any(part.training for part in used.modules())
    assert [part.training for part in used.modules()] == modes
    with pytest.raises(RuntimeError), used.evaluating():
        raise RuntimeError("something fails inside")
    assert [part.training for part in used.modules()] == modes


@pytest.mark.parametrize(
    "convert", [torch.nn.Module.half, lambda part: part.to(torch.bfloat16), torch.nn.Module.double]
)
def test_metrics_stay_in_their_types_when_the_module_is_converted(convert: Any, module: Module) -> None:
    def types(converted: SentimentModule) -> list[torch.dtype]:
        metrics = converted.metrics_of("test").values()
        return [each.dtype for metric in metrics for each in metric._defaults.values() if isinstance(each, Tensor)]

    before = types(module())
    assert types(converted := convert(module())) == before
    assert converted.model.dtype not in before


def test_metrics_are_moved_and_shared_as_the_module_is(module: Module) -> None:
    metric = next(iter(module().to("meta").to_empty(device="cpu").share_memory().metrics_of("test").values()))
    assert all(each.device.type == "cpu" and each.is_shared() for each in metric.metric_state.values())


# Gradients


class Gradients(Callback):
    """Keeps the gradient of the last step as it came, before anything clips it."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.raw = [cast_grad(parameter).clone() for parameter in pl_module.parameters()]


def cast_grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def kept_when_clipped(fitted: LightningModule, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that the gradients which a step takes come into: behind the step there are none any more."""
    clip, clipped = fitted.configure_gradient_clipping, list[Tensor]()

    def clip_and_keep(*arguments: Any, **named: Any) -> None:
        clip(*arguments, **named)
        clipped.extend(cast_grad(parameter).clone() for parameter in fitted.parameters())

    monkeypatch.setattr(fitted, "configure_gradient_clipping", clip_and_keep)
    return clipped


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_torchs_own(
    algorithm: Any, precision: Any, module: Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, gradients = module(), Gradients()
    clipped = kept_when_clipped(fitted, monkeypatch)
    trainer = plain_trainer(
        max_steps=1,
        precision=precision,
        gradient_clip_val=1e-3,
        gradient_clip_algorithm=algorithm,
        callbacks=[gradients],
    )
    trainer.fit(fitted, loader(batches))
    copies = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients.raw]
    for copy, gradient in zip(copies, gradients.raw, strict=True):
        copy.grad = gradient.clone()
    if algorithm == "norm":
        # In the order of the optimizer's groups: a sum in another rounds otherwise.
        of = dict(zip(fitted.parameters(), copies, strict=True))
        groups = trainer.optimizers[0].param_groups
        torch.nn.utils.clip_grad_norm_([of[each] for group in groups for each in group["params"]], 1e-3)
    else:
        torch.nn.utils.clip_grad_value_(copies, 1e-3)
    for ours, theirs in zip(clipped, copies, strict=True):
        assert torch.equal(ours, cast_grad(theirs))
    assert any(not torch.equal(ours, raw) for ours, raw in zip(clipped, gradients.raw, strict=True))


def test_what_a_subclass_adds_is_trained(bert: str, batches: Batches) -> None:
    class Scaled(SentimentModule):
        def __init__(self, backbone: str) -> None:
            super().__init__(backbone, warmup=0.0)
            self.added = torch.nn.Linear(2, 2)
            self.head_bias = self.model.classifier.bias

        def forward_batch(self, batch: Any) -> Tensor:
            return self.added(super().forward_batch(batch))

    fitted = Scaled(bert)
    before = {name: each.clone() for name, each in fitted.added.state_dict().items()}
    trainer = plain_trainer(max_steps=1)
    trainer.fit(fitted, loader(batches))
    assert not any(torch.equal(before[name], each) for name, each in fitted.added.state_dict().items())
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == len(list(fitted.parameters()))
    decays = {each: group["weight_decay"] for group in trainer.optimizers[0].param_groups for each in group["params"]}
    assert (decays[fitted.added.weight], decays[fitted.added.bias]) == (0.01, 0.0)


def test_gradients_are_there_for_who_looks_before_they_go(module: Module, batches: Batches) -> None:
    class Looks(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            seen.append(sum(each.grad is not None for each in pl_module.parameters()))

    seen: list[int] = []
    fitted = module()
    plain_trainer(max_steps=3, callbacks=[Looks()]).fit(fitted, loader(batches))
    assert seen[0] == 0
    assert set(seen[1:]) == {len(list(fitted.parameters()))}


def test_a_hook_that_comes_late_sees_the_gradient_of_all_words(module: Module, batches: Batches) -> None:
    class Hooks(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.model.get_input_embeddings().weight.register_hook(lambda each: seen.append(each.is_sparse))

    seen: list[bool] = []
    plain_trainer(max_steps=2, callbacks=[Hooks()]).fit(module(), loader(batches))
    assert seen == [False, False]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_bound_that_is_not_above_zero_clips_nothing(algorithm: Any, module: Module, batches: Batches) -> None:
    ends = []
    for bound in (None, -1.0):
        torch.manual_seed(0)
        fitted = module()
        trainer = plain_trainer(max_steps=2, gradient_clip_val=bound, gradient_clip_algorithm=algorithm)
        trainer.fit(fitted, loader(batches))
        ends.append(fitted.state_dict())
    assert same(*ends)


def test_what_the_optimizer_does_not_hold_is_neither_clipped_nor_part_of_the_norm(
    module: Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, gradients = module(), Gradients()
    held = [name for name, _ in fitted.named_parameters() if "classifier" in name]
    optimizer = torch.optim.AdamW([fitted.get_parameter(name) for name in held])
    monkeypatch.setattr(fitted, "configure_optimizers", lambda: optimizer)
    clipped = kept_when_clipped(fitted, monkeypatch)
    plain_trainer(max_steps=1, gradient_clip_val=1e-3, callbacks=[gradients]).fit(fitted, loader(batches))
    found = {name: each for (name, _), each in zip(fitted.named_parameters(), clipped, strict=True)}
    assert float(torch.nn.utils.get_total_norm([found[name] for name in held])) == pytest.approx(1e-3, rel=1e-2)
    for (name, _), raw in zip(fitted.named_parameters(), gradients.raw, strict=True):
        assert name in held or torch.equal(found[name], raw)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_no_gradient_of_an_earlier_step_lies_beside_the_activations(
    accumulated: int, module: Module, batches: Batches
) -> None:
    held: list[bool] = []

    class Beside(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            held.append(any(parameter.grad is not None for parameter in pl_module.parameters()))

    trainer = plain_trainer(max_epochs=2, max_steps=2, accumulate_grad_batches=accumulated, callbacks=[Beside()])
    trainer.fit(module(), loader(batches))
    assert held == [batch % accumulated > 0 for batch in range(2 * accumulated)]


def test_without_a_limit_gradients_stay_as_they_are(
    module: Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, gradients = module(), Gradients()
    taken = kept_when_clipped(fitted, monkeypatch)
    plain_trainer(max_steps=1, callbacks=[gradients]).fit(fitted, loader(batches))
    for gradient, raw in zip(taken, gradients.raw, strict=True):
        assert torch.equal(gradient, raw)


def test_gradient_checkpointing_runs_layers_twice_and_gives_the_same_gradients(
    module: Module, batches: Batches
) -> None:
    found = []
    for checkpointing, runs in ((False, 1), (True, 2)):
        used = module(gradient_checkpointing=checkpointing)
        calls: list[object] = []
        # Of the last layer, so that it isn't spared any tokens, and draws as many numbers both times.
        used.model.bert.encoder.layer[-1].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)  # dropout is on, and must drop the same in both runs of a layer
        used.training_step(batches[0], 0).backward()
        assert len(calls) == runs
        found.append([cast_grad(parameter) for parameter in used.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.slow
def test_a_compiled_fit_learns_the_same_and_leaves_a_plain_checkpoint(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    results = []
    for compiled in (False, True):
        fitted = module(compile=compiled, warmup=0.0)
        for part in fitted.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # a compiled layer draws its zeros in another order
        trainer = plain_trainer()
        trainer.fit(fitted, loader(batches))
        assert (fitted.model._compiled_call_impl is not None) == compiled
        trainer.save_checkpoint(tmp_path / f"{compiled}.ckpt")
        results.append(torch.load(tmp_path / f"{compiled}.ckpt", weights_only=True)["state_dict"])
    plain, compiled_state = results
    assert plain.keys() == compiled_state.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled_state[name], rtol=1e-3, atol=1e-4)
    with fitted.attributing():
        assert fitted.model._compiled_call_impl is None
    assert fitted.model._compiled_call_impl is not None


def test_the_model_is_compiled_for_training_and_validated_as_it_is(
    module: Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, modes = module(compile=True), list[bool]()

    def compile(**_: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            modes.append(fitted.model.training)
            return fitted.model._call_impl(*args, **kwargs)

        fitted.model._compiled_call_impl = call

    monkeypatch.setattr(fitted.model, "compile", compile)
    plain_trainer(max_epochs=2).fit(fitted, loader(batches), loader(batches))
    assert modes == [True] * 2 * len(loader(batches))


@pytest.mark.parametrize(
    ("arguments", "records"),
    [({}, True), ({"cuda_graphs": False}, False), ({"gradient_checkpointing": True}, False)],
)
def test_graphs_are_recorded_where_one_gpu_sees_few_shapes_and_has_memory(
    arguments: dict[str, Any], records: bool, module: Module
) -> None:
    used = module(**arguments)
    used.trainer = SimpleNamespace(strategy=SingleDeviceStrategy("cuda:0"))
    assert used._records_passes() == records
    used.doc_stride = 8
    assert not used._records_passes()
    used.doc_stride = None
    used.trainer.strategy = SingleDeviceStrategy("cpu")
    assert not used._records_passes()


def test_passes_are_recorded_in_fits_alone_and_no_longer_than_they_run(
    module: Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, seen = module(), list[bool]()

    class Looking(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(isinstance(fitted.model._compiled_call_impl, _Recorder))
            if len(seen) == 2:
                raise KeyError("breaks off")

        def on_test_batch_end(self, *_: Any) -> None:
            seen.append(isinstance(fitted.model._compiled_call_impl, _Recorder))

    for records in (True, False):
        monkeypatch.setattr(type(fitted), "_records_passes", lambda _, records=records: records)
        with pytest.raises(KeyError) if records else nullcontext():
            plain_trainer(callbacks=[Looking()]).fit(fitted, loader(batches))
    plain_trainer(callbacks=[Looking()]).test(fitted, loader(batches), verbose=False)
    assert set(seen[:2]) == {True}
    assert set(seen[2:]) == {False}
    assert len(seen) > 4


# Numbers that are not finite


class Diverging(SentimentModule):
    """Has a loss that isn't finite for rows 2 and 5."""

    value = math.nan

    def row_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        losses = super().row_losses(outputs, batch)
        return torch.where(torch.isin(batch["row"], torch.tensor([2, 5])), self.value, losses)


def numbered(batches: Batches, rows: list[list[int]]) -> Batches:
    return [{**batches[0], "row": torch.tensor(each)} for each in rows]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_its_rows(
    value: float, accumulate: int, module: Module, batches: Batches, tmp_path: Path
) -> None:
    diverging = module(Diverging, warmup=0.0)
    diverging.value = value
    some = numbered(batches, [[0, 1, 3, 4], [6, 7, 8, 9], [10, 11, 12, 13], [14, 5, 2, 15]])
    with stopping_before_the_update(diverging, some, tmp_path, accumulate_grad_batches=accumulate) as error:
        pass
    assert error.rows == [5, 2]
    step = 3 // accumulate
    assert f"the loss is not finite at step {step}; training stopped before the update; look at these rows" in str(
        error
    )


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_its_rows(
    accumulate: int, clip: float | None, module: Module, batches: Batches, tmp_path: Path
) -> None:
    diverging = module(warmup=0.0)
    some = numbered(batches, [[0, 1, 3, 4], [6, 7, 8, 9], [10, 11, 12, 13], [14, 5, 2, 15]])
    calls: list[Tensor] = []

    def explode(gradient: Tensor) -> Tensor:
        calls.append(gradient)
        return gradient * math.inf if len(calls) == 3 else gradient

    diverging.model.bert.pooler.dense.weight.register_hook(explode)
    arguments = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    with stopping_before_the_update(diverging, some, tmp_path, **arguments) as error:
        pass
    assert error.rows == ([10, 11, 12, 13] if accumulate == 1 else [10, 11, 12, 13, 14, 5, 2, 15])
    assert "the gradient is not finite at step" in str(error)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_the_last_update_of_an_epoch_is_asked_for_too_and_left_out_by_any_optimizer(
    optimizer: Any, module: Module, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = module(Diverging, warmup=0.0)
    some = numbered(batches, [[0, 1, 3, 4], [14, 5, 2, 15]])
    if optimizer is torch.optim.SGD:
        monkeypatch.setattr(diverging, "configure_optimizers", lambda: optimizer(diverging.parameters(), 0.1))
    with stopping_before_the_update(diverging, some, tmp_path) as error:
        pass
    assert error.rows == [5, 2]
    assert "the loss is not finite at step 1;" in str(error)


def test_what_an_optimizer_remembers_is_left_alone_by_an_update_that_is_not_finite(
    module: Module, batches: Batches
) -> None:
    states = []

    def keep(module: SentimentModule) -> None:
        packed = module.optimizers().state_dict()["state"]
        states.append([each.clone() for state in packed.values() for each in state.values()])

    diverging = module(Diverging, warmup=0.0)
    trainer = plain_trainer(callbacks=[Watcher(on_train_batch_end=keep)])
    with pytest.raises(NonFiniteError):
        trainer.fit(diverging, loader(numbered(batches, [[0, 1, 3, 4], [14, 5, 2, 15]])))
    assert len(states) == 2
    assert states[0]
    assert all(map(torch.equal, *states))


def test_a_fit_that_broke_off_leaves_nothing_to_the_next(module: Module, batches: Batches) -> None:
    diverging = module(Diverging, warmup=0.0)
    some = numbered(batches, [[0, 1, 3, 4], [14, 5, 2, 15]])
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            plain_trainer().fit(diverging, loader(some))
    plain_trainer().fit(diverging, loader(some[:1]))


def test_no_checkpoint_is_written_behind_an_update_that_was_left_out(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    diverging = module(Diverging, warmup=0.0)

    def save(module: SentimentModule) -> None:
        module.trainer.save_checkpoint(tmp_path / f"{module.global_step}.ckpt")

    some = numbered(batches, [[0, 1, 3, 4], [14, 5, 2, 15], [6, 7, 8, 9]])
    with pytest.raises(NonFiniteError):
        plain_trainer(callbacks=[Watcher(on_train_batch_end=save)]).fit(diverging, loader(some))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["1.ckpt"]


def test_a_validation_gives_each_part_its_mode_back(module: Module, batches: Batches) -> None:
    used, seen = module(), list[bool]()
    hooks = Watcher(
        on_train_start=lambda module: module.model.bert.embeddings.eval(),
        on_train_batch_start=lambda module: seen.append(module.model.bert.embeddings.training),
    )
    plain_trainer(max_epochs=2, callbacks=[hooks]).fit(used, loader(batches), loader(batches))
    assert not any(seen)
    plain_trainer().validate(used.eval(), loader(batches), verbose=False)
    assert not used.training


def test_the_progress_bar_shows_the_loss_that_is_logged(module: Module, batches: Batches) -> None:
    trainer = plain_trainer(max_steps=1)
    trainer.fit(module(), loader(batches))
    assert trainer.progress_bar_metrics["loss"] == pytest.approx(float(trainer.callback_metrics["train/loss"]))


@contextmanager
def stopping_before_the_update(
    diverging: SentimentModule, numbered: Batches, folder: Path, **arguments: Any
) -> Iterator[NonFiniteError]:
    """Fit until it stops; check that the weights are those of the last good step, and so is the checkpoint."""
    after_each_step = [weights(diverging)]
    keeper = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    watcher = Watcher(on_train_batch_end=lambda module: after_each_step.append(weights(module)))
    trainer = plain_trainer(callbacks=[keeper, watcher], enable_checkpointing=True, **arguments)
    with pytest.raises(NonFiniteError) as raised:
        trainer.fit(diverging, loader(numbered))
    assert trainer.global_step >= 1
    assert not same(after_each_step[0], weights(diverging)), "steps before were made"
    assert same(after_each_step[-1], weights(diverging))
    kept = (
        SentimentModule.load_from_checkpoint if type(diverging) is SentimentModule else Diverging.load_from_checkpoint
    )
    newest = max(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    assert same(weights(kept(newest)), weights(diverging))
    yield raised.value


# Resuming


class Crash(Exception):
    pass


class CrashAfter(Callback):
    """Ends a run after so many batches, as a killed process would."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


# 18 rows in batches of 4 make 5 steps an epoch; 2 epochs 10. Of 96 tokens a batch, 6 and 12.
@pytest.mark.parametrize(
    ("saved_at", "data_arguments", "trainer_arguments"),
    [
        pytest.param(1, {}, {}, id="after the first batch"),
        pytest.param(3, {}, {}, id="in the middle of an epoch"),
        pytest.param(3, {}, {"val_check_interval": 2}, id="between validations"),
        pytest.param(4, {}, {"val_check_interval": 2}, id="where a validation is due"),
        pytest.param(5, {}, {}, id="at the end of an epoch"),
        pytest.param(5, {}, {"val_check_interval": 5}, id="at the end of an epoch with a validation"),
        pytest.param(7, {}, {"num_sanity_val_steps": 2}, id="in the second epoch"),
        pytest.param(3, {"max_tokens": 96}, {}, id="by tokens"),
        pytest.param(7, {"max_tokens": 96}, {"val_check_interval": 3}, id="by tokens in the second epoch"),
        pytest.param(2, {}, {"accumulate_grad_batches": 2}, id="between accumulated steps"),
        pytest.param(3, {"num_workers": 1}, {}, id="with a worker", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one_bit_by_bit(
    saved_at: int,
    data_arguments: dict[str, Any],
    trainer_arguments: dict[str, Any],
    data: Data,
    module: Module,
    tmp_path: Path,
) -> None:
    def trainer(*callbacks: Callback) -> Trainer:
        return plain_trainer(
            max_epochs=2, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **trainer_arguments
        )

    torch.manual_seed(1)
    unbroken = module()
    (whole := trainer()).fit(unbroken, data(**data_arguments))

    torch.manual_seed(1)
    keeper = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=saved_at, save_top_k=-1)
    batches_of_a_step = trainer_arguments.get("accumulate_grad_batches", 1)
    with pytest.raises(Crash):
        trainer(CrashAfter(saved_at * batches_of_a_step + 1), keeper).fit(module(), data(**data_arguments))

    torch.manual_seed(99)  # another process, where other numbers were drawn before
    resumed = module(learning_rate=1e-3)
    torch.nn.init.normal_(resumed.model.classifier.weight)
    (rest := trainer()).fit(resumed, data(**data_arguments), ckpt_path=str(tmp_path / f"step={saved_at}.ckpt"))
    assert rest.global_step == whole.global_step
    assert same(weights(resumed), weights(unbroken))


class Terminate(Callback):
    """Sends the signal that a scheduler sends, after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("asked", [{"max_epochs": 2}, {"max_steps": 10, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize("batches", [1, 3, 5, 7])
def test_a_run_that_a_signal_ended_goes_on_bit_by_bit_from_where_it_stopped(
    batches: int, asked: dict[str, int], data: Data, module: Module, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    plain_trainer(**asked).fit(unbroken := module(), data())
    torch.manual_seed(1)
    kept = [Terminate(batches), LastCheckpoint(tmp_path)]
    with pytest.raises(SIGTERMException):
        plain_trainer(**asked, callbacks=kept, enable_checkpointing=True).fit(module(), data())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == batches
    torch.manual_seed(99)
    plain_trainer(**asked).fit(resumed := module(), data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert same(weights(resumed), weights(unbroken))


@pytest.mark.parametrize("rest", [{"max_epochs": 2}, {"max_steps": 10, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    ("steps", "validating"),
    [(3, {}), (5, {}), (7, {}), (3, {"val_check_interval": 2}), (4, {"val_check_interval": 2})],
)
def test_a_run_that_max_steps_ended_goes_on_bit_by_bit_when_more_are_asked_for(
    steps: int, validating: dict[str, int], rest: dict[str, int], data: Data, module: Module, tmp_path: Path
) -> None:
    # How fast a rate decays depends on how many steps are asked for.
    even: dict[str, Any] = {"scheduler": "constant", "warmup": 0.0}

    def trainer(**arguments: int) -> Trainer:
        return plain_trainer(callbacks=[LastCheckpoint(tmp_path)], enable_checkpointing=True, **validating, **arguments)

    torch.manual_seed(1)
    trainer(max_epochs=2).fit(unbroken := module(**even), data())
    torch.manual_seed(1)
    trainer(max_steps=steps, max_epochs=-1).fit(module(**even), data())
    torch.manual_seed(99)
    (more := trainer(**rest)).fit(resumed := module(**even), data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert more.global_step == 10
    assert same(weights(resumed), weights(unbroken))


class Epochs(Callback):
    """Remembers which rows were trained on, and which epochs ended."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.ended: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: dict[str, Any], _: int) -> None:
        self.rows += batch["row"].tolist()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ended.append(trainer.current_epoch)


@pytest.mark.parametrize("first", [{"max_epochs": 1}, {"max_steps": 5, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize("rest", [{"max_epochs": 2}, {"max_steps": 14, "max_epochs": -1}], ids=["epochs", "steps"])
def test_behind_a_whole_epoch_comes_a_whole_one_also_of_other_batches(
    first: dict[str, int], rest: dict[str, int], data: Data, module: Module, tmp_path: Path
) -> None:
    def trainer(*callbacks: Callback, **arguments: int) -> Trainer:
        # One that is early to stop asks for a loss at the end of each epoch: one that is ended again has none.
        kept = [LastCheckpoint(tmp_path), EarlyStopping("val/loss"), *callbacks]
        return plain_trainer(callbacks=kept, enable_checkpointing=True, **arguments)

    trainer(**first).fit(module(), data())
    again = trainer(seen := Epochs(), **rest)
    again.fit(module(), data(batch_size=2), ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.global_step == 5 + 9
    assert sorted(seen.rows) == list(range(18))
    assert seen.ended == [1]


@pytest.mark.parametrize("rest", [{"max_epochs": 2}, {"max_steps": 10, "max_epochs": -1}], ids=["epochs", "steps"])
def test_other_checkpoints_of_an_epoch_that_was_cut_short_are_gone_on_with_alike(
    rest: dict[str, int], data: Data, module: Module, tmp_path: Path
) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="kept", save_on_train_epoch_end=True)
    some = plain_trainer(max_steps=3, max_epochs=-1, callbacks=[keeper], enable_checkpointing=True)
    some.fit(module(), data())
    some.save_checkpoint(tmp_path / "behind.ckpt")
    for name in ("kept", "behind"):
        again = plain_trainer(callbacks=[seen := Epochs()], **rest)
        again.fit(module(), data(), ckpt_path=str(tmp_path / f"{name}.ckpt"))
        assert again.global_step == 10
        assert len(seen.rows) == 18 - 3 * 4 + 18
        assert seen.ended == [0, 1]


class StopAfter(Callback):
    """Asks for the end after so many batches, as a timer does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.batches


@pytest.mark.parametrize("batches", [3, 5, 7])
def test_so_does_one_that_a_timer_ended(batches: int, data: Data, module: Module, tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain_trainer(max_epochs=2).fit(unbroken := module(), data())
    torch.manual_seed(1)
    kept = [StopAfter(batches), LastCheckpoint(tmp_path)]
    plain_trainer(max_epochs=2, callbacks=kept, enable_checkpointing=True).fit(module(), data())
    torch.manual_seed(99)
    plain_trainer(max_epochs=2).fit(resumed := module(), data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert same(weights(resumed), weights(unbroken))


def test_a_failure_leaves_the_last_checkpoint_alone(module: Module, data: Data, tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    with pytest.raises(Crash):
        plain_trainer(max_epochs=2, callbacks=[CrashAfter(7), LastCheckpoint(tmp_path)], enable_checkpointing=True).fit(
            module(), data()
        )
    assert torch.load(last, weights_only=True)["global_step"] == 5


def test_training_depends_on_its_seed_so_that_equal_weights_say_something(data: Data, module: Module) -> None:
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain_trainer().fit(fitted := module(), data())
        ends.append(weights(fitted))
    assert not same(*ends)


def test_a_checkpoint_that_was_only_tested_does_not_set_the_random_numbers_of_a_later_fit(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    trainer = plain_trainer()
    trainer.fit(module(), loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    tested = module()
    plain_trainer().test(tested, loader(batches), ckpt_path=str(tmp_path / "x.ckpt"))
    drawn = []
    watcher = Watcher(on_before_zero_grad=lambda module: drawn.append(torch.get_rng_state()))
    torch.manual_seed(5)
    plain_trainer(callbacks=[watcher]).fit(tested, loader(batches))
    torch.manual_seed(5)
    plain_trainer(callbacks=[watcher]).fit(module(), loader(batches))
    assert torch.equal(drawn[0], drawn[2])


# Loading


def test_arguments_can_be_changed_when_loading(module: Module, batches: Batches, tmp_path: Path) -> None:
    trainer = plain_trainer()
    trainer.fit(module(), loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = SentimentModule.load_from_checkpoint(
        tmp_path / "x.ckpt", learning_rate=0.5, gradient_checkpointing=True, attn_implementation="eager"
    )
    assert loaded.learning_rate == loaded.hparams["learning_rate"] == 0.5
    assert loaded.model.is_gradient_checkpointing
    assert loaded.model.config._attn_implementation == "eager"


def test_a_change_that_the_weights_do_not_fit_is_told(module: Module, tmp_path: Path) -> None:
    path = save(module(), tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError, match=r"x.ckpt: its weights don't fit labels: size mismatch .*; leave out what"
    ):
        SentimentModule.load_from_checkpoint(path, labels=["bad", "middling", "good"])


def test_a_loaded_module_saves_and_logs_the_backbone_that_it_came_from(
    module: Module, batches: Batches, bert: str, tmp_path: Path
) -> None:
    trainer = plain_trainer()
    trainer.fit(module(), loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = SentimentModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.hparams["backbone"] == loaded.hparams_initial["backbone"] == bert


def test_a_module_of_another_task_does_not_load_the_checkpoint(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    trainer = plain_trainer()
    trainer.fit(module(), loader(batches))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as raised:
        Diverging.load_from_checkpoint(tmp_path / "x.ckpt")
    assert str(raised.value) == (
        f"{tmp_path}/x.ckpt: it was written by SentimentModule, not by Diverging;"
        " load it with SentimentModule, or give it to Diverging as the backbone"
    )


def test_a_hyperparameter_that_would_not_load_again_stops_a_fit_before_its_work(
    module: Module, batches: Batches, tmp_path: Path
) -> None:
    fitted = module()
    fitted.save_hyperparameters({"folder": tmp_path})
    with pytest.raises(TypeError, match=r"SentimentModule\(folder=…\) takes JSON primitives, .* got .*PosixPath"):
        plain_trainer().fit(fitted, loader(batches))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "model: learning_rate must be above 0, got 0.0"),
        ({"weight_decay": -0.1}, "model: weight_decay must be at least 0, got -0.1"),
        ({"warmup": -1.0}, "model: warmup must be at least 0, got -1.0"),
        ({"layer_decay": 0.0}, "model: layer_decay must lie above 0 and be at most 1, got 0.0"),
        ({"layer_decay": 1.1}, "model: layer_decay must lie above 0 and be at most 1, got 1.1"),
        ({"label_smoothing": 1.0}, "model: label_smoothing must lie in [0, 1), got 1.0"),
        (
            {"max_length": 65},
            "max_length is 65, but the backbone reads at most 64 tokens; set max_length to 64 or less",
        ),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str, module: Module) -> None:
    with pytest.raises(ConfigError) as raised:
        module(**arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("name", "longest"), [("bert", 64), ("roberta", 63), ("llama", 64)])
def test_the_longest_text_that_a_module_takes_has_a_position_for_every_token(
    name: str, longest: int, request: pytest.FixtureRequest
) -> None:
    # RoBERTa counts positions from beyond its padding token, here the third: 66 - 3 are left.
    used = SentimentModule(request.getfixturevalue(name))
    assert used.max_length == longest
    (prediction,) = used.predict_texts(["good " * 100])
    assert prediction.label in ("negative", "positive")


def test_a_schedule_that_there_is_not_is_refused(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python checks no types
    with pytest.raises(ConfigError, match=r"^model.scheduler: 'line' is not one of linear, cosine, constant; did you"):
        SentimentModule(bert, scheduler="line")
