"""Recorded passes, replayed by a double that runs the model anew where there is no GPU."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jaxtyping
import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lit_nlp import (
    LanguageModelingDataModule,
    LanguageModelingModule,
    SentimentDataModule,
    SentimentModule,
)
from lit_nlp.errors import ConfigError
from lit_nlp.modules import first_token, recording
from lit_nlp.modules.first_token import first_token_only
from lit_nlp.modules.recording import record_passes, stop_recording
from lit_nlp.modules.rng import rng_state
from tests.contract import plain_trainer, write_rows
from tests.modules.test_varlen import autocast_of_a_gpu

ROWS = [
    {"text": " ".join(f"{word} film that is {word}" for _ in range(1 + number % 4)), "label": label}
    for number in range(40)
    for word, label in (("bad", "negative"), ("good", "positive"))
]
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


class Replays:
    """A graph that does again what it recorded, and counts how often."""

    count = 0

    def __init__(self, does: Callable[[], None]) -> None:
        self.does = does

    def replay(self) -> None:
        Replays.count += 1
        self.does()

    def __deepcopy__(self, memo: Any) -> None:
        raise TypeError("cannot pickle 'CUDAGraph' object")


def record(run: Callable[..., Any], inputs: Mapping[str, Any], shared: recording._Shared) -> recording._Passes:
    """Record as `recording._record` does, where graphs run the model, as long as it is the one that was recorded."""
    read = {name: each.clone() for name, each in inputs.items() if isinstance(each, Tensor)}
    alive: list[Tensor] = []
    model = run.__self__  # type: ignore[attr-defined]

    def looks() -> Any:
        dropouts = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
        places = [each.data_ptr() for each in (*model.parameters(), *model.buffers())]
        return [part.training for part in model.modules()], dropouts, places

    def forward() -> None:
        assert looks() == looked
        with torch.enable_grad():
            alive[:], _ = tree_flatten(run(**{**inputs, **read}))
        for kept, new in zip(outputs, alive, strict=True):
            kept.copy_(new.detach())

    def backward() -> None:
        reached = [alive[i] for i in grad_outputs]
        found = torch.autograd.grad(reached, shared.learning, [*grad_outputs.values()], allow_unused=True)
        for i in used:
            shared.gradients[i].copy_(found[i])
        alive.clear()

    state, looked = torch.get_rng_state(), looks()
    made, structure = tree_flatten(run(**{**inputs, **read}))
    torch.set_rng_state(state)
    outputs = [each.detach().clone() for each in made]
    grad_outputs = {i: torch.zeros_like(each) for i, each in enumerate(made) if each.requires_grad}
    reached = [made[i] for i in grad_outputs]
    found = torch.autograd.grad(reached, shared.learning, [*grad_outputs.values()], allow_unused=True)
    used = [i for i, each in enumerate(found) if each is not None]
    graphs: list[Any] = [Replays(forward), Replays(backward)]
    gradients = [(shared.learning[i], shared.gradients[i]) for i in used]
    return recording._Passes(*graphs, read, outputs, structure, grad_outputs, gradients)


def share(learning: list[Tensor], stream: Any) -> recording._Shared:
    nowhere: Any = None
    return recording._Shared(learning, [torch.empty_like(each) for each in learning], nowhere, stream)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replays, "count", 0)
    monkeypatch.setattr(recording, "_record", record)
    monkeypatch.setattr(recording, "_refusal", lambda *_: None)  # it would refuse dropout that a CPU draws
    monkeypatch.setattr(recording, "_share", share)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    of_gpu = recording._is_recordable
    # A CPU's tensors are taken for a GPU's.
    monkeypatch.setattr(recording, "_is_recordable", lambda each: of_gpu(_seeming(each)))


def _seeming(given: Any) -> Any:
    if not isinstance(given, Tensor):
        return given
    seeming = Mock(spec=Tensor)
    seeming.is_cuda, seeming.requires_grad = given.device.type == "cpu", given.requires_grad
    return seeming


def classifier() -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **SIZES, intermediate_size=24)
    return AutoModelForSequenceClassification.from_config(config).train()


def step(model: PreTrainedModel, width: int, seed: int = 0, **more: Any) -> list[Tensor]:
    """Return the logits and gradients of a batch."""
    torch.manual_seed(seed)
    logits = model(input_ids=torch.randint(50, (3, width)), **more).logits
    logits.square().sum().backward()
    found = [logits.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)]
    model.zero_grad()
    return found


def replayed(model: PreTrainedModel, *widths: int, times: int = 2) -> int:
    """Run widths until they would be recorded; returns how many graphs ran."""
    before = Replays.count
    for _ in range(times):
        for width in widths:
            step(model, width)
    return Replays.count - before


def test_replayed_steps_are_those_of_the_model_dropout_included(doubled: None) -> None:
    plain, recorded = classifier(), classifier()
    record_passes(recorded)
    for number, width in enumerate([8, 5, 8, 5, 8, 5, 5, 8]):
        for one, other in zip(step(plain, width, number), step(recorded, width, number), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert Replays.count == 2 * 4


def test_a_shape_is_recorded_when_it_comes_for_the_third_time(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    assert replayed(model, 8, 5) == 0
    assert replayed(model, 8, 5, times=1) == 4
    step(model, 4)
    assert replayed(model, 8, times=1) == 2


def test_a_batch_that_is_larger_than_all_before_drops_what_was_recorded(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    assert replayed(model, 9, 8, times=2) == 0
    assert replayed(model, 9, 8, times=1) == 4


def test_logits_may_be_kept(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    first, second = step(model, 8, 1)[0], step(model, 8, 2)[0]
    assert not torch.equal(first, second)


def test_two_passes_before_a_backward_pass_are_both_right(doubled: None) -> None:
    def twice(model: PreTrainedModel) -> list[Tensor]:
        ids = torch.arange(24).view(3, 8)
        (model(input_ids=ids).logits - 2 * model(input_ids=ids.flip(0)).logits).square().sum().backward()
        return [each.grad for each in model.parameters() if each.grad is not None]

    plain, recorded = classifier(), classifier()
    record_passes(recorded)
    replayed(recorded, 8, times=3)
    for model in (plain, recorded):
        torch.manual_seed(3)
        model.zero_grad()
    torch.manual_seed(3)
    expected = twice(plain)
    torch.manual_seed(3)
    for one, other in zip(expected, twice(recorded), strict=True):
        torch.testing.assert_close(one, other)


def test_a_pass_that_nobody_comes_back_for_stops_nothing(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    model(input_ids=torch.zeros(3, 8, dtype=torch.long))
    assert replayed(model, 8, times=1) == 2


def test_a_pass_that_somebody_keeps_behind_its_backward_pass_stops_nothing(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    kept = model(input_ids=torch.zeros(3, 8, dtype=torch.long)).logits
    kept.sum().backward()
    model.zero_grad()
    assert replayed(model, 8, times=1) == 2
    assert kept.grad_fn is not None


@pytest.mark.parametrize("how", ["again", "differentiably"])
def test_a_backward_pass_that_is_not_recorded_is_refused(how: str, doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    total = model(input_ids=torch.zeros(3, 8, dtype=torch.long)).logits.sum()
    if how == "again":
        total.backward(retain_graph=True)
    with pytest.raises(ConfigError, match=r"^model.cuda_graphs: .* one backward pass.*; set it to false"):
        total.backward(create_graph=how == "differentiably")


def test_gradients_that_are_there_are_added_to(doubled: None) -> None:
    plain, recorded = classifier(), classifier()
    record_passes(recorded)
    replayed(recorded, 8, times=3)
    for model in (plain, recorded):
        for seed in (4, 5):
            torch.manual_seed(seed)
            logits = model(input_ids=torch.randint(50, (3, 8))).logits
            # The weights are reached on two ways, too.
            (logits.square().sum() + sum(each.square().sum() for each in model.parameters())).backward()
    for one, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("where", "hook"),
    [
        ("layer", "register_forward_hook"),
        ("layer", "register_forward_pre_hook"),
        ("layer", "register_full_backward_hook"),
        ("layer", "register_full_backward_pre_hook"),
        ("parameter", "register_hook"),
        ("parameter", "register_post_accumulate_grad_hook"),
        ("everywhere", "register_module_forward_hook"),
    ],
)
def test_hooks_see_each_pass(where: str, hook: str, doubled: None) -> None:
    model, seen = classifier(), list[int]()
    record_passes(model)
    replayed(model, 8, times=3)
    layer: Any = model.get_submodule("bert.encoder.layer.0.attention")
    watched = {"layer": layer, "parameter": next(layer.parameters()), "everywhere": torch.nn.modules.module}[where]
    handle = getattr(watched, hook)(lambda *_: seen.append(1))
    assert replayed(model, 8, times=2) == 0
    assert len(seen) >= 2
    handle.remove()
    assert replayed(model, 8, times=1) == 2


def test_hooks_of_what_came_later_see_each_pass(doubled: None) -> None:
    model, seen = classifier(), list[int]()
    record_passes(model)
    _adapted(model)
    model.classifier[0].register_forward_hook(lambda *_: seen.append(1))
    assert replayed(model, 8, times=4) == 0
    assert len(seen) == 4


def test_hidden_states_are_recorded_too_and_their_idle_hooks_stop_nothing(doubled: None) -> None:
    model = classifier()
    model.bert.embeddings.requires_grad_(False)  # so that the first have no gradient
    record_passes(model)
    ids = torch.zeros(3, 8, dtype=torch.long)
    learns = []
    for _ in range(3):
        given = model(input_ids=ids, output_hidden_states=True)
        given.logits.sum().backward()
        model.zero_grad()
        learns = [each.requires_grad for each in given.hidden_states]
        del given
    assert Replays.count == 2
    assert learns == [False, True, True]
    assert replayed(model, 8, times=3) == 2
    # A recording is of the arguments that it was made with.
    assert model(input_ids=ids, output_hidden_states=False).get("hidden_states") is None


def test_names_of_inputs_are_not_mixed_up(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    for _ in range(3):
        step(model, 8, attention_mask=torch.ones(3, 8, dtype=torch.long))
    before = Replays.count
    step(model, 8, token_type_ids=torch.ones(3, 8, dtype=torch.long))
    assert Replays.count == before > 0


def test_a_graph_that_somebody_keeps_is_not_recorded_beside(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    kept = [model(input_ids=torch.zeros(3, 8, dtype=torch.long)).logits]
    assert replayed(model, 8, times=4) == 0
    kept.clear()
    assert replayed(model, 8, times=1) == 2


def test_tensors_of_torch_func_run_as_they_are(doubled: None) -> None:
    model, ids = classifier(), torch.zeros(3, 8, dtype=torch.long)
    record_passes(model)
    values = {name: each.detach() for name, each in model.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (), {"input_ids": ids}).logits.sum()

    scale = torch.ones((), requires_grad=True)
    for _ in range(4):
        assert torch.func.grad(loss)(values)["classifier.bias"].tolist() == [3, 3, 3]
    for _ in range(4):
        loss({name: each * scale for name, each in values.items()}).backward()
    assert scale.grad is not None
    assert Replays.count == 0


def test_what_was_compiled_is_what_runs_and_is_recorded(doubled: None) -> None:
    model, calls = classifier(), list[int]()

    class Compiled:
        __self__ = model

        def __call__(self, **inputs: Any) -> Any:
            calls.append(1)
            return model._call_impl(**inputs)

    model._compiled_call_impl = Compiled()
    record_passes(model)
    assert replayed(model, 8, times=4) == 4
    assert len(calls) == 2 + 1 + 2  # two runs, a recording, and what the double replays


def test_the_last_layers_other_tokens_are_left_out_in_recordings_too(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    with first_token_only(model):
        assert replayed(model, 8, times=3) == 2


def _moved(model: Any) -> None:
    for each in model.parameters():
        each.data = each.data * 0.5


def _adapted(model: Any) -> None:
    torch.manual_seed(5)
    model.classifier = nn.Sequential(nn.Linear(16, 16), model.classifier)


def _given_other_weights(model: Any) -> None:
    model.classifier.weight = nn.Parameter(model.classifier.weight.detach() * 2)


def _given_other_places(model: Any) -> None:
    model.bert.embeddings.position_ids = model.bert.embeddings.position_ids.flip(1)


def _given_more_weights(model: Any) -> None:
    model.bert.encoder.p = nn.Parameter(torch.ones(2))


def _annealed(model: Any) -> None:
    model.bert.embeddings.dropout.p = 0.5


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: model.eval(), id="eval"),
        pytest.param(lambda model: model.bert.encoder.eval(), id="a part in eval"),
        pytest.param(lambda model: model.bert.embeddings.requires_grad_(False), id="frozen"),
        _moved,
        _adapted,
        _given_other_weights,
        _given_more_weights,
        _given_other_places,
        _annealed,
    ],
)
def test_what_the_model_became_is_what_runs(change: Callable[[Any], Any], doubled: None) -> None:
    plain, recorded = classifier(), classifier()
    record_passes(recorded)
    replayed(recorded, 8, times=3)
    change(plain), change(recorded)
    before = Replays.count
    for number in range(4):
        for one, other in zip(step(plain, 8, number), step(recorded, 8, number), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert number > 1 or Replays.count == before


def test_a_recording_is_of_one_precision(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    with autocast_of_a_gpu(torch.bfloat16):
        assert replayed(model, 8, times=2) == 0
        assert replayed(model, 8, times=1) == 2
    with autocast_of_a_gpu(torch.float16):
        assert replayed(model, 8, times=2) == 0


def test_nothing_is_replayed_without_gradients_or_for_what_no_recording_stands_for(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    ids, before = torch.zeros(3, 8, dtype=torch.long), Replays.count
    with torch.no_grad():
        model(input_ids=ids)
    model(ids)
    model(input_ids=ids, others=[1])
    with torch.autograd.detect_anomaly(check_nan=False):
        model(input_ids=ids)
    model(inputs_embeds=torch.zeros(3, 8, 16))
    assert Replays.count == before


def test_an_input_that_learns_gets_its_gradient(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    for _ in range(4):
        embeds = torch.zeros(3, 8, 16, requires_grad=True)
        model(inputs_embeds=embeds).logits.sum().backward()
        assert embeds.grad is not None
    assert Replays.count == 0


def test_a_processors_tensors_are_not_recorded() -> None:
    assert not recording._is_recordable(torch.zeros(2))
    assert recording._is_recordable(None)
    assert recording._is_recordable(True)
    assert not recording._is_recordable([1])


def test_other_arguments_are_other_passes(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    before = Replays.count
    step(model, 8, output_hidden_states=True)
    for kind in (torch.float32, torch.int64, torch.bool):
        step(model, 8, attention_mask=torch.ones(3, 8, dtype=kind))
    assert Replays.count == before


def test_a_model_that_no_recording_stands_for_trains_as_it_is(
    doubled: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(recording, "_refusal", lambda *_: tried.append(1) or "the model waits")
    plain, recorded = classifier(), classifier()
    record_passes(recorded)
    with caplog.at_level("INFO"):
        for number in range(8):
            for one, other in zip(step(plain, 8, number), step(recorded, 8, number), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(tried) == 1
    assert caplog.messages == ["Training steps run without CUDA graphs: the model waits"]


def test_a_recording_that_fails_tells_how_to_go_without(doubled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(recording, "_record", fail)
    model = classifier()
    record_passes(model)
    with pytest.raises(ConfigError, match=r"^model.cuda_graphs: .*recorded: operation not permitted; set it to false"):
        replayed(model, 8, times=3)


@pytest.mark.parametrize(
    ("run", "refusal"),
    [
        (lambda weight: weight * 2, None),
        (lambda weight: torch.nn.functional.dropout(weight, 0.5), "draws random numbers on the processor"),
        (lambda weight: weight * np.random.rand(), "draws random numbers on the processor"),
        (lambda weight: [weight, "more"], "returns more than tensors"),
        (lambda weight: _synchronizing(weight), "called a synchronizing CUDA operation"),
        (lambda weight: weight * len(torch.cuda.get_rng_state()), "the state of random numbers is asked for"),
        (lambda weight: weight.detach(), "nothing learns from what the model returns"),
        (lambda weight: [weight * 2, weight.detach()], None),
        (lambda weight: weight * (2 if torch.cuda.is_current_stream_capturing() else "no"), None),
    ],
)
def test_a_trial_tells_why_no_recording_stands_for_a_model_and_leaves_nothing_behind(
    run: Callable[[Tensor], Any], refusal: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[Any] = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    before, asked = rng_state(), torch.cuda.is_current_stream_capturing
    weight = torch.ones(3, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    found = recording._refusal(lambda weight: run(weight), {"weight": weight}, [weight, unused])
    assert found is None if refusal is None else refusal in str(found)
    assert modes == ["default", "error", "default"]
    assert all(recording._same(before[name], rng_state()[name]) for name in ("numpy", "torch"))
    assert torch.cuda.is_current_stream_capturing is asked
    assert weight.grad is None


def _synchronizing(weight: Tensor) -> Tensor:
    raise RuntimeError("called a synchronizing CUDA operation\nand more")


@pytest.mark.parametrize(("free", "records"), [(0, False), (5_999, False), (6_000, True)])
def test_steps_are_recorded_where_another_fits_beside(
    free: int, records: bool, doubled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    gradients = sum(each.nbytes for each in model.parameters())
    # Forward passes hold 1,000 and 900 bytes, and torch keeps four times the gradients, but for 4,000.
    allocated = chain([500, 1_500, 600, 1_500], repeat(500))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 4 * gradients - 4_000 + 500)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10**9))
    record_passes(model)
    assert bool(replayed(model, 8, times=3)) == records


def test_no_more_shapes_are_recorded_than_graphs_may_take_memory(
    doubled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_MOST_SHAPES", 1)
    model = classifier()
    record_passes(model)
    assert replayed(model, 8, 5, times=4) == 2 * 2


def test_a_copy_does_not_record(doubled: None) -> None:
    model = classifier()
    record_passes(model)
    replayed(model, 8, times=3)
    kept_aside = [model._compiled_call_impl]
    assert copy.deepcopy(kept_aside) == [None]
    assert copy.deepcopy(model)._compiled_call_impl is None


def test_what_is_recorded_reads_copies_and_writes_gradients_where_all_shapes_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured: list[dict[str, Any]] = []

    @contextmanager
    def graph(_: Any, **options: Any) -> Iterator[None]:
        captured.append(options | {"caches": torch.is_autocast_cache_enabled()})
        yield
        captured[-1]["caches within"] = within[-1]

    within: list[bool] = []
    monkeypatch.setattr(torch.cuda, "graph", graph)
    kind = torch.cuda.CUDAGraph
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Mock(spec=kind))
    model, ids = classifier().eval(), torch.randint(50, (3, 8))
    model.classifier.weight.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    learning = [*(each for each in model.parameters() if each.requires_grad), unused]

    def run(**inputs: Any) -> Any:
        within.append(torch.is_autocast_cache_enabled())
        assert inputs["input_ids"] is not ids
        return model(**inputs)

    shared = share(learning, "stream")
    passes = recording._record(run, {"input_ids": ids, "return_dict": True}, shared)
    options = {"pool": None, "stream": "stream", "capture_error_mode": "thread_local"}
    assert captured == [options | {"caches": True, "caches within": False}] * 2
    assert passes.inputs.keys() == {"input_ids"}
    assert not passes.outputs[0].requires_grad
    assert [each for each, _ in passes.gradients] == learning[:-1]
    # Recorded with no gradient of the logits, which is what comes of it.
    assert all(not gradient.any() for _, gradient in passes.gradients)
    assert all(gradient is other for (_, gradient), other in zip(passes.gradients, shared.gradients, strict=False))


def test_recording_ends_with_the_model_as_it_was(doubled: None) -> None:
    model = classifier()
    for compiled in (None, model._call_impl):
        model._compiled_call_impl = compiled
        record_passes(model)
        stop_recording(model)
        assert model._compiled_call_impl == compiled
        stop_recording(model)
        assert model._compiled_call_impl == compiled


def test_a_fit_replays_its_steps_and_gives_the_model_back(
    bert: str, tmp_path: Path, doubled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a CPU does otherwise: it draws less dropout where the first token alone attends, and updates rows.
    monkeypatch.setattr(first_token, "_attention", lambda *_: None)
    monkeypatch.setattr(SentimentModule, "_updates_rows", lambda _: False)
    source, found = write_rows(tmp_path / "train.jsonl", ROWS), []
    for records in (False, True):
        monkeypatch.setattr(SentimentModule, "_records_passes", lambda _, records=records: records)
        torch.manual_seed(0)
        module = SentimentModule(bert, learning_rate=1e-3)
        trainer = plain_trainer(max_epochs=4, gradient_clip_val=1.0)
        trainer.fit(module, SentimentDataModule(bert, train=source, batch_size=4))
        assert module.model._compiled_call_impl is None
        found.append({name: each.clone() for name, each in module.state_dict().items()})
    assert Replays.count > 2
    for name, each in found[0].items():
        torch.testing.assert_close(found[1][name], each, rtol=0, atol=0, msg=name)


# On a GPU


def _weights(module: SentimentModule, data: Any, **options: Any) -> tuple[dict[str, Tensor], int]:
    """Fit on a GPU; returns the weights, and how many shapes were recorded."""
    recorders: list[recording._Recorder] = []

    class Recorded(lightning.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            call = pl_module.model._compiled_call_impl
            recorders.extend([call] if isinstance(call, recording._Recorder) else [])

    lightning.seed_everything(0, verbose=False)
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 1.0} | options
    trainer = plain_trainer(accelerator="gpu", max_epochs=4, callbacks=[Recorded()], **settings)
    trainer.fit(module, data)
    count = sum(len(each._passes) for each in recorders)
    return {name: each.detach().cpu() for name, each in module.state_dict().items()}, count


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_gpu_learns_the_same_from_replays(
    compile: bool, precision: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", compile)  # whose checks can't be compiled
    source = write_rows(tmp_path / "train.jsonl", ROWS)
    found = []
    for records in (False, True):
        monkeypatch.setattr(SentimentModule, "_records_passes", lambda _, records=records: records)
        data = SentimentDataModule(bert, train=source, batch_size=4)
        torch.manual_seed(0)
        module = SentimentModule(bert, compile=compile, learning_rate=1e-3)
        found.append(_weights(module, data, precision=precision))
    (plain, none), (recorded, shapes) = found
    assert none == 0
    assert shapes > 1
    for name, each in plain.items():
        torch.testing.assert_close(recorded[name], each, rtol=1e-3, atol=1e-4, msg=name)


@needs_gpu
def test_a_gpu_learns_the_same_of_packed_blocks(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "train.txt"
    source.write_text("".join(f"{row['text']}\n" for row in ROWS * 4))
    found = []
    for records in (False, True):
        monkeypatch.setattr(LanguageModelingModule, "_records_passes", lambda _, records=records: records)
        data = LanguageModelingDataModule(llama, objective="causal", train=str(source), batch_size=4, max_length=32)
        torch.manual_seed(0)
        found.append(_weights(LanguageModelingModule(llama, objective="causal", learning_rate=1e-3), data))
    (plain, _), (recorded, shapes) = found
    assert shapes
    for name, each in plain.items():
        torch.testing.assert_close(recorded[name], each, rtol=1e-3, atol=1e-4, msg=name)


@needs_gpu
def test_a_gpu_trains_a_model_that_waits_for_a_result_as_it_is(
    bert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Waiting(SentimentModule):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            embed = self.model.bert.embeddings.forward

            def wait(*args: Any, **inputs: Any) -> Any:
                found = embed(*args, **inputs)
                assert found.sum().item() == found.sum().item()
                return found

            self.model.bert.embeddings.forward = wait

    data = SentimentDataModule(bert, train=write_rows(tmp_path / "train.jsonl", ROWS), batch_size=4)
    with caplog.at_level("INFO"):
        weights, shapes = _weights(Waiting(bert), data)
    assert "without CUDA graphs: in the model, called a synchronizing CUDA operation" in caplog.text
    assert shapes == 0
    assert all(each.isfinite().all() for each in weights.values())
    # The GPU works on, and draws random numbers.
    _, shapes = _weights(SentimentModule(bert), data)
    assert shapes
