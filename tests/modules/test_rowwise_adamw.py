from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from lit_nlp import SentimentModule
from lit_nlp.modules.rowwise_adamw import RowwiseAdamW, may_be_sparse, sparse_gradient
from tests.contract import plain_trainer
from tests.modules.fitting import Batches, Module, loader

ROWS, WIDTH, RATES = 50, 6, {"lr": 0.1, "weight_decay": 0.3}
Optimizer = type[torch.optim.AdamW]


def weights() -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)))


def gradients() -> Iterator[Tensor]:
    """Gradients of some rows, of which some come twice, are met again later, or are the first that is not 0."""
    draws = torch.Generator().manual_seed(1)
    for met in ([3, 7, 3], [0, 7, 49], [9], [3, 9, 11, 11]):
        numbers = torch.randn(len(met), WIDTH, generator=draws)
        yield torch.sparse_coo_tensor(torch.tensor([met]), numbers, (ROWS, WIDTH))


def stepped(kind: Optimizer, gradient_of: Callable[[Tensor], Tensor], found_inf: list[float] | None = None) -> Any:
    """Return the parameter and the optimizer behind some steps, whose rate rises as in a warm-up."""
    parameter = weights()
    optimizer = kind([parameter], **RATES, fused=True)  # type: ignore[arg-type]
    for step, gradient in enumerate(gradients()):
        optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        if found_inf:
            optimizer.found_inf = torch.tensor(found_inf[step])  # type: ignore[attr-defined]
        parameter.grad = gradient_of(gradient)
        optimizer.step()
        optimizer.zero_grad()
    return parameter, optimizer


@pytest.mark.parametrize("found_inf", [None, [0.0, 1.0, 0.0, 1.0]])
def test_updates_and_moments_are_those_of_dense_gradients(found_inf: list[float] | None) -> None:
    dense, reference = stepped(torch.optim.AdamW, Tensor.to_dense, found_inf)
    sparse, optimizer = stepped(RowwiseAdamW, lambda gradient: gradient, found_inf)
    assert not torch.equal(dense, weights())
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(optimizer.state_dict(), reference.state_dict())


def test_each_step_is_the_formula_in_float64() -> None:
    sparse, _ = stepped(RowwiseAdamW, lambda gradient: gradient)
    value, first, second = weights().detach().double(), torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    for step, gradient in enumerate(gradients(), start=1):
        slope, rate = gradient.to_dense().double(), 0.01 * step
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        value = value * (1 - rate * RATES["weight_decay"])
        value = value - rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(sparse.double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kinds", [(RowwiseAdamW, torch.optim.AdamW), (torch.optim.AdamW, RowwiseAdamW)])
def test_another_optimizer_goes_on_from_its_state(kinds: tuple[Optimizer, Optimizer]) -> None:
    def step(optimizer: torch.optim.AdamW, parameter: nn.Parameter, gradient: Tensor) -> None:
        parameter.grad = gradient if type(optimizer) is RowwiseAdamW else gradient.to_dense()
        optimizer.step()

    found = []
    for first, second in (kinds, (torch.optim.AdamW, torch.optim.AdamW)):
        parameter, (some, more, *_) = weights(), gradients()
        optimizer = first([parameter], **RATES, fused=True)  # type: ignore[arg-type]
        step(optimizer, parameter, some)
        resumed = second([parameter], **RATES, fused=True)  # type: ignore[arg-type]
        resumed.load_state_dict(optimizer.state_dict())
        step(resumed, parameter, more)
        found.append(parameter)
    torch.testing.assert_close(*found)


def test_a_gradient_of_all_rows_may_follow_one_of_some() -> None:
    dense, _ = stepped(torch.optim.AdamW, Tensor.to_dense)
    kinds = iter([False, True, False, True])
    mixed, _ = stepped(RowwiseAdamW, lambda gradient: gradient.to_dense() if next(kinds) else gradient)
    torch.testing.assert_close(mixed, dense)


def test_amsgrad_is_refused() -> None:
    parameter = weights()
    optimizer = RowwiseAdamW([parameter], amsgrad=True, fused=True)
    parameter.grad = next(gradients())
    with pytest.raises(ValueError, match="without amsgrad"):
        optimizer.step()


def test_moments_take_memory_for_rows_that_were_met() -> None:
    _, optimizer = stepped(RowwiseAdamW, lambda gradient: gradient)
    [state] = optimizer.state.values()
    assert sorted(state["rows"].tolist()) == [0, 3, 7, 9, 11, 49]


def test_an_embedding_that_something_else_reads_gets_no_sparse_gradient() -> None:
    config = AutoConfig.for_model("bert", vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    alone = AutoModelForSequenceClassification.from_config(config)
    assert may_be_sparse(alone)
    assert not may_be_sparse(AutoModelForMaskedLM.from_config(config))
    alone.get_input_embeddings().weight.requires_grad_(False)
    assert not may_be_sparse(alone)


def test_gradients_are_whole_again_behind_the_block() -> None:
    config = AutoConfig.for_model("bert", vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(RuntimeError), sparse_gradient(model):
        raise RuntimeError("something fails inside")
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert not model.get_input_embeddings().weight.grad.is_sparse


# In a module


class Kinds(Callback):
    """Keeps whether the embedding's gradient is sparse, where no hook of Lightning's sees it."""

    def __init__(self, module: SentimentModule) -> None:
        self.sparse: list[bool] = []
        embedding: Any = module.model.get_input_embeddings()
        embedding.weight.register_post_accumulate_grad_hook(lambda each: self.sparse.append(each.grad.is_sparse))


class Looks(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        assert all(parameter.grad.isfinite().all() for parameter in pl_module.parameters())


def dropout_free(module: SentimentModule) -> SentimentModule:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_learns_what_it_does_from_whole_gradients(
    precision: Any, accumulated: int, module: Module, batches: Batches
) -> None:
    options = {"precision": precision, "accumulate_grad_batches": accumulated, "gradient_clip_val": 0.1}
    found = []
    for callbacks in ([], [Looks()]):
        fitted = dropout_free(module(learning_rate=1e-2))
        kinds = Kinds(fitted)
        plain_trainer(max_epochs=2, max_steps=-1, callbacks=callbacks, **options).fit(fitted, loader(batches))
        assert kinds.sparse == [not callbacks] * len(kinds.sparse) != []
        found.append(fitted.state_dict())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_where_numbers_are_clipped_one_by_one_gradients_are_whole(module: Module, batches: Batches) -> None:
    fitted = module()
    kinds = Kinds(fitted)
    plain_trainer(max_steps=1, gradient_clip_val=0.1, gradient_clip_algorithm="value").fit(fitted, loader(batches))
    assert kinds.sparse == [False]


class Own(SentimentModule):
    """Steps by itself, or with a training step of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
        return loss


@pytest.mark.parametrize("automatic", [True, False])
def test_who_trains_by_a_step_of_their_own_gets_whole_gradients(automatic: bool, bert: str, batches: Batches) -> None:
    fitted = Own(bert)
    fitted.automatic_optimization = automatic
    kinds = Kinds(fitted)
    plain_trainer(max_epochs=2).fit(fitted, loader(batches))
    assert set(kinds.sparse) == {False}
    assert automatic or not fitted._since_update, "nothing is kept for a check that never comes"


def test_a_hook_on_the_embedding_gets_whole_gradients(module: Module, batches: Batches) -> None:
    fitted, seen = module(), list[bool]()
    weight: Any = fitted.model.get_input_embeddings().weight
    weight.register_hook(lambda gradient: seen.append(gradient.is_sparse))
    plain_trainer().fit(fitted, loader(batches))
    assert set(seen) == {False}


def test_in_float16_gradients_are_added_up_and_who_trains_so_is_warned(module: Module, batches: Batches) -> None:
    with pytest.warns(UserWarning, match="squares of gradients vanish in weights of float16"):
        plain_trainer(precision="16-true", accumulate_grad_batches=2).fit(module(), loader(batches))


def test_where_processes_share_gradients_they_are_whole(module: Module) -> None:
    fitted = module()
    fitted.trainer = plain_trainer(strategy="ddp_spawn", devices=2)
    assert not fitted._updates_rows()


def test_who_takes_another_optimizer_gets_whole_gradients(module: Module, batches: Batches) -> None:
    class Adam(SentimentModule):
        def configure_optimizers(self) -> Any:
            ours: Any = super().configure_optimizers()
            return torch.optim.Adam(ours["optimizer"].param_groups)

    fitted = module(Adam)
    kinds = Kinds(fitted)
    plain_trainer(max_steps=1).fit(fitted, loader(batches))
    assert kinds.sparse == [False]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_behind_a_run_that_broke_off_gradients_are_whole(
    error: type[BaseException], module: Module, batches: Batches
) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise error

    fitted = module()
    with pytest.raises((error, SystemExit)):
        plain_trainer(callbacks=[Breaks()]).fit(fitted, loader(batches))
    kinds = Kinds(fitted)
    with patch.object(fitted, "log"):
        fitted.training_step(batches[0], 0).backward()
    torch.optim.AdamW(fitted.parameters()).step()
    assert kinds.sparse == [False]


@pytest.mark.parametrize("hook", ["backward", "optimizer_step", "optimizer_zero_grad", "on_after_backward"])
def test_a_module_whose_hook_sees_gradients_gets_whole_ones(hook: str, module: Module, batches: Batches) -> None:
    def sees(self: Any, *given: Any, **named: Any) -> Any:
        return getattr(LightningModule, hook)(self, *given, **named)

    fitted = module(type("Sees", (SentimentModule,), {hook: sees}))
    kinds = Kinds(fitted)
    plain_trainer(max_steps=1).fit(fitted, loader(batches))
    assert kinds.sparse == [False]


def test_who_clips_by_himself_gets_whole_gradients(module: Module, batches: Batches) -> None:
    class Clips(SentimentModule):
        def configure_gradient_clipping(self, *arguments: Any, **named: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    fitted = module(Clips)
    kinds = Kinds(fitted)
    plain_trainer(max_steps=1).fit(fitted, loader(batches))
    assert kinds.sparse == [False]
