"""A model's passes in training, recorded as CUDA graphs.

The kernels of a pass are many and short: a GPU waits for each to be started from Python, unless it knows all of them
beforehand. Here the forward and the backward pass are recorded for each shape of a batch, apart from the loss, and
replayed.
"""

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from lit_nlp.errors import ConfigError
from lit_nlp.modules.first_token import take_first
from lit_nlp.modules.rng import rng_state, set_rng_state

# A shape is run as it is so many times first: what runs then is made ready, and a rare shape isn't worth recording.
_RUNS_BEFORE = 2
# Graphs take memory of their own, some MiB each.
_MOST_SHAPES = 64


def record_passes(model: PreTrainedModel) -> None:
    """Let a model, compiled or not, record its passes in training on a GPU and replay them, until `stop_recording`.

    Outputs and gradients are those of the model: also random numbers are drawn as the model draws them. A gradient is
    the next backward pass's to overwrite, as the optimizer is expected to have dropped it by then. The model runs as it
    is wherever something might go unseen or be kept for later: in eval mode, without gradients, where hooks look on,
    where gradients are there already, or between a forward pass and its backward pass. So does a model whose passes no
    recording can stand for: where the processor waits for a result, or draws random numbers.

    Recordings hold about the memory of one step. They are made as long as there is room for another beside them, and
    dropped before a batch that is larger than all before.
    """
    stop_recording(model)  # which a run that broke off left undone
    model._compiled_call_impl = _Recorder(model)


def stop_recording(model: PreTrainedModel) -> None:
    """Drop what was recorded, and run the model as before."""
    call = model._compiled_call_impl
    if isinstance(call, _Recorder):
        model._compiled_call_impl = call.compiled


class _Recorder:
    """What is called in place of a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.compiled = model, model._compiled_call_impl
        self._run: Callable[..., Any] = self.compiled or model._call_impl
        self._parts = [*model.modules()]
        self._parameters = [*model.parameters()]
        self._records = True
        self._largest = 0
        self._pending: weakref.ref[_Pending] | None = None
        self._forget(None)

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if args or not self._records or not self._may_replay(inputs):
            return self._run(*args, **inputs)
        if (state := self._state()) != self._recorded_state:
            self._forget(state)
        shape = tuple((name, *_shape(each)) for name, each in inputs.items())
        passes = self._passes.get(shape)
        if passes is None:
            self._make_room(inputs)
            if self._runs[shape] < _RUNS_BEFORE or len(self._passes) >= _MOST_SHAPES or not _has_room():
                self._runs[shape] += 1
                return self._run(**inputs)
            passes = self._record(inputs)
            if passes is None:
                return self._run(**inputs)
            self._passes[shape] = passes
        pending = _Pending(passes)
        self._pending = weakref.ref(pending)
        return passes.replay(inputs, pending)

    def _forget(self, state: Any) -> None:
        """Begin anew with what holds now."""
        self._recorded_state = state
        self._passes: dict[Any, _Passes] = {}
        self._runs: Counter[Any] = Counter()
        self._shared: _Shared | None = None

    def _make_room(self, inputs: Mapping[str, Any]) -> None:
        """Drop what was recorded before a batch that is larger than all before: nobody knows what it takes."""
        size = max((each.numel() for each in inputs.values() if isinstance(each, Tensor)), default=0)
        if size > self._largest:
            self._forget(self._recorded_state)
            self._largest = size

    def _may_replay(self, inputs: Mapping[str, Any]) -> bool:
        pending = self._pending() if self._pending else None
        return (
            self.model.training
            and torch.is_grad_enabled()
            and not torch.is_anomaly_enabled()
            and (pending is None or pending.done)
            and all(_is_recordable(each) for each in inputs.values())
            and all(each.grad is None for each in self._parameters)
            and not self._is_watched()
        )

    def _is_watched(self) -> bool:
        """Whether a hook would run in each pass: a recording leaves Python out."""
        for part in self._parts:
            if part._forward_hooks or part._backward_hooks or part._backward_pre_hooks:
                return True
            if any(hook is not take_first for hook in part._forward_pre_hooks.values()):
                return True
        return any(each._backward_hooks or each._post_accumulate_grad_hooks for each in self._parameters)

    def _state(self) -> Any:
        """What a recording is made for, besides the shapes of a batch."""
        return (
            [each.data_ptr() for each in self._parameters],
            [each.requires_grad for each in self._parameters],
            [part.training for part in self._parts],
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        )

    def _record(self, inputs: Mapping[str, Any]) -> "_Passes | None":
        """Record both passes of a batch of this shape; None, and so it stays, where a recording can't stand for them.

        Raises:
            ConfigError: Recording failed although a trial hadn't.
        """
        learning: list[Tensor] = [each for each in self._parameters if each.requires_grad]
        if refusal := _refusal(self._run, inputs, learning):
            self._records = False
            self._forget(None)
            rank_zero_info(f"Training steps run without CUDA graphs: {refusal}")
            return None
        if self._shared is None:
            self._shared = _share(learning)
        try:
            return _record(self._run, inputs, self._shared)
        except RuntimeError as error:
            # What this left of random numbers and of memory nobody can mend.
            problem = f"the model's passes can't be recorded: {str(error).partition(chr(10))[0]}"
            raise ConfigError(problem, where="model.cuda_graphs", mend="set it to false") from error


class _Shared(NamedTuple):
    """What recordings of all shapes have in common.

    Attributes:
        learning: The parameters that get gradients.
        gradients: Where a backward pass writes them.
        pool: Where graphs have their memory.
        stream: On which they are recorded.
    """

    learning: list[Tensor]
    gradients: list[Tensor]
    pool: Any
    stream: torch.cuda.Stream


def _share(learning: list[Tensor]) -> _Shared:
    gradients = [torch.empty_like(each) for each in learning]
    return _Shared(learning, gradients, torch.cuda.graph_pool_handle(), torch.cuda.Stream())


class _Pending:
    """A forward pass that was replayed, and whether its backward pass was; until then no other may be replayed."""

    def __init__(self, passes: "_Passes") -> None:
        self.passes, self.done = passes, False


class _Passes(NamedTuple):
    """Recordings of both passes for one shape, and what they read and write.

    Attributes:
        inputs: What the forward pass reads.
        outputs: The tensors that it returns.
        structure: How these make what the model returns.
        slopes: The gradient of each output that has one, which the backward pass reads.
        gradients: A parameter, and its gradient as the backward pass writes it.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: list[Tensor]
    structure: Any
    slopes: dict[int, Tensor]
    gradients: list[tuple[Tensor, Tensor]]

    def replay(self, inputs: Mapping[str, Any], pending: _Pending) -> Any:
        """Run the forward pass, and return what the model would."""
        for name, each in self.inputs.items():
            each.copy_(inputs[name])
        anchor = torch.empty((), requires_grad=True)
        return tree_unflatten(list(_Replay.apply(anchor, pending)), self.structure)


class _Replay(torch.autograd.Function):
    """Replays a forward pass, and when autograd comes back its backward pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, pending: _Pending) -> tuple[Tensor, ...]:
        passes = pending.passes
        passes.forward.replay()
        # Copied: the next replay overwrites them, and somebody may keep them.
        outputs = [each.clone() for each in passes.outputs]
        ctx.pending = pending
        ctx.mark_non_differentiable(*(each for i, each in enumerate(outputs) if i not in passes.slopes))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, None]:
        passes = ctx.pending.passes
        for i, each in passes.slopes.items():
            each.copy_(slopes[i])
        # Of a loss that takes another way to the weights, too.
        others = [(each, each.grad.clone()) for each, _ in passes.gradients if each.grad is not None]
        passes.backward.replay()
        for parameter, gradient in passes.gradients:
            parameter.grad = gradient
        for parameter, other in others:
            parameter.grad += other
        ctx.pending.done = True
        return None, None


def _refusal(run: Callable[..., Any], inputs: Mapping[str, Any], learning: Sequence[Tensor]) -> str | None:
    """Return why no recording could stand for the passes of a model, by a trial that leaves nothing behind; None: fine.

    A recording that fails can't be taken back: afterwards random numbers fail, too.
    """
    before, mode = rng_state(), torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(), _as_if_capturing():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
            outputs, _ = tree_flatten(run(**inputs))
            if not all(isinstance(each, Tensor) for each in outputs):
                return "the model returns more than tensors"
            sloping = [each for each in outputs if each.requires_grad]
            torch.autograd.grad(sloping, learning, [*map(torch.ones_like, sloping)], allow_unused=True)
    except RuntimeError as error:
        return f"in the model, {str(error).partition(chr(10))[0]}"
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        after = rng_state()
        set_rng_state(before)
    # What is decided by them, such as to leave a layer out, a recording decides once. Python's own no model of text
    # draws, but a checker of types does.
    drew = any(not _same(before[name], after[name]) for name in ("numpy", "torch"))
    return "the model draws random numbers on the processor" if drew else None


@contextmanager
def _as_if_capturing() -> Iterator[None]:
    """Let who asks think that a graph is being recorded: transformers then decides nothing by what a mask holds."""
    asked = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = asked


def _same(one: Any, other: Any) -> bool:
    """Whether states of a random generator are the same."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(map(_same, one, other)) if isinstance(one, list) else bool(one == other)


def _record(run: Callable[..., Any], inputs: Mapping[str, Any], shared: _Shared) -> _Passes:
    """Record a model's forward pass, and the backward pass that writes the gradients."""
    read = {name: each.clone() for name, each in inputs.items() if isinstance(each, Tensor)}
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with _capturing(forward, shared):
        outputs, structure = tree_flatten(run(**{**inputs, **read}))
    sloping = {i: each for i, each in enumerate(outputs) if each.requires_grad}
    slopes = {i: torch.zeros_like(each) for i, each in sloping.items()}
    with _capturing(backward, shared):
        found = torch.autograd.grad([*sloping.values()], shared.learning, [*slopes.values()], allow_unused=True)
        reached = [i for i, each in enumerate(found) if each is not None]
        torch._foreach_copy_([shared.gradients[i] for i in reached], [found[i] for i in reached])
    return _Passes(
        forward,
        backward,
        read,
        [each.detach() for each in outputs],
        structure,
        slopes,
        [(shared.learning[i], shared.gradients[i]) for i in reached],
    )


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, shared: _Shared) -> Iterator[None]:
    """Record what is started meanwhile."""
    # Autocast would keep weights that it cast outside, and they would stay as they are.
    autocast = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
    # Other threads go on meanwhile, as that which pins the next batch.
    recording = torch.cuda.graph(graph, pool=shared.pool, stream=shared.stream, capture_error_mode="thread_local")
    with recording, autocast:
        yield


def _has_room() -> bool:
    """Whether the GPU holds twice what was taken at most."""
    return 2 * torch.cuda.max_memory_allocated() <= torch.cuda.get_device_properties().total_memory


def _is_recordable(given: Any) -> bool:
    """Whether a recording may stand for a pass that is given this."""
    if isinstance(given, Tensor):
        return given.is_cuda and not given.requires_grad
    return given is None or isinstance(given, bool | int | float | str)


def _shape(given: Any) -> tuple[Any, ...]:
    """What must be the same of what a model is given, that a recording may stand for it."""
    return (given.shape, given.dtype, given.device) if isinstance(given, Tensor) else (given,)
