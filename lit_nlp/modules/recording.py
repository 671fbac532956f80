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
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from lit_nlp.errors import ConfigError, first_line
from lit_nlp.modules.first_token import take_first
from lit_nlp.modules.rng import rng_state, set_rng_state

# A shape is run as it is so many times first: what runs then is made ready, and a rare shape isn't worth recording.
_RUNS_BEFORE = 2
# Graphs take memory of their own, some MiB each.
_MOST_SHAPES = 64
# What marks a node of autograd's graph.
_SEEN = "lit_nlp"
# transformers leaves hooks on a model that was once asked for hidden states; they are idle but in such a call, whose
# outputs hold what they saw.
_IDLE = "transformers.utils.output_capturing"


def record_passes(model: PreTrainedModel) -> None:
    """Let a model, compiled or not, record its passes in training on a GPU and replay them, until `stop_recording`.

    Logits and gradients are the model's, and random numbers are drawn as it draws them; but `backward` fills `grad` of
    the parameters alone, so that its `inputs` and `torch.autograd.grad` find nothing, once and not differentiably, and
    the next one writes into the same memory. The model runs as it is in eval mode, without gradients, where hooks look
    on, between a forward pass and its backward pass, while somebody keeps the graph of an earlier pass, and where no
    recording can stand for it: where the processor waits for a result, or draws random numbers. Recordings are made
    anew where modules, parameters, buffers or their places change, what learns, modes, or the rate of an `nn.Dropout`;
    no other attribute is looked at.

    Recordings hold the memory of one step, and the outputs of each shape twice. They are made as long as there is room
    for another step beside them, and dropped before a batch that is larger than all that might have been recorded.
    """
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
        # Why the model runs as it is; told once.
        self._refusal: str | None = None
        # Of the batches so far: the most numbers, and bytes that were held for the backward pass.
        self._largest, self._held = 0, 0
        self._step: weakref.ref[_Step] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a module, even of one that keeps this aside, doesn't record.
        return type(None), ()

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        if args or self._refusal or not self._may_replay(inputs):
            return self._run(*args, **inputs)
        if self._state() != self._recorded_of:
            self._forget()
        if self._is_watched():
            return self._run(**inputs)
        shape = tuple((name, *_shape(each)) for name, each in inputs.items())
        if shape not in self._passes and not self._try_to_record(shape, inputs):
            return self._run_and_weigh(inputs)
        step = _Step(self._passes[shape])
        self._step = weakref.ref(step)
        return _replay(step, self._passes[shape], inputs)

    def _forget(self) -> None:
        """Begin anew with what the model is now."""
        self._parts = [*self.model.modules()]
        self._parameters = [*self.model.parameters()]
        self._passes: dict[Any, _Passes] = {}
        self._runs: Counter[Any] = Counter()
        self._shared: _Shared | None = None
        self._recorded_of = self._state()

    def _may_replay(self, inputs: Mapping[str, Any]) -> bool:
        step = self._step() if self._step else None
        return (
            self.model.training
            and torch.is_grad_enabled()
            and not torch.is_anomaly_enabled()
            and (step is None or step.passes is None)
            and all(map(_is_recordable, inputs.values()))
        )

    def _state(self) -> Any:
        """What a recording is made for, besides the shapes of a batch."""
        held = [
            each
            for part in self._parts
            for each in chain(part._modules.values(), part._parameters.values(), part._buffers.values())
        ]
        return (
            [*map(id, held)],
            [_place(each) for each in held if isinstance(each, Tensor)],
            [each.requires_grad for each in self._parameters],
            [part.training for part in self._parts],
            [part.p for part in self._parts if isinstance(part, _DropoutNd)],
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        )

    def _is_watched(self) -> bool:
        """Whether a hook would run in each pass: a recording leaves Python out."""
        return bool(
            _has_any_global_hook()
            or any(each._backward_hooks or each._post_accumulate_grad_hooks for each in self._parameters)
            or any(map(_has_hooks, self._parts))
        )

    def _try_to_record(self, shape: Any, inputs: Mapping[str, Any]) -> bool:
        """Record both passes of a shape if it is time, and they can be; returns whether they are recorded.

        Raises:
            ConfigError: Recording failed although a trial hadn't.
        """
        size = max((each.numel() for each in inputs.values() if isinstance(each, Tensor)), default=0)
        if size > self._largest:
            # Nobody knows how much memory it takes.
            self._forget()
            self._largest = size
        self._runs[shape] += 1
        learning: list[Tensor] = [each for each in self._parameters if each.requires_grad]
        if self._runs[shape] <= _RUNS_BEFORE or len(self._passes) == _MOST_SHAPES or not self._has_room(learning):
            return False
        # Gradients go on from what isn't a leaf; and a parameter's node in a graph that somebody keeps belongs to the
        # stream that this ran on, where nothing is recorded.
        if not learning or not all(each.is_leaf for each in learning) or any(map(_is_in_a_graph, learning)):
            return False
        self._refusal = _refusal(self._run, inputs, learning)
        if self._refusal:
            self._forget()
            rank_zero_info(f"Training steps run without CUDA graphs: {self._refusal}")
            return False
        if self._shared is None:
            # torch's own would be of the device that first recorded.
            self._stream = self._stream or torch.cuda.Stream()
            self._shared = _share(learning, self._stream)
        try:
            self._passes[shape] = _record(self._run, inputs, self._shared)
        except RuntimeError as error:
            # What this left of random numbers and of memory nobody can mend. Where the pass failed, recording ended
            # with an error of its own.
            problem = first_line(error.__context__ or error)
            raise _cannot(f"the model's passes can't be recorded: {problem}") from error
        return True

    def _run_and_weigh(self, inputs: Mapping[str, Any]) -> Any:
        before = torch.cuda.memory_allocated()
        outputs = self._run(**inputs)
        self._held = max(self._held, torch.cuda.memory_allocated() - before)
        return outputs

    def _has_room(self, learning: Sequence[Tensor]) -> bool:
        """Whether what is free, or torch's and idle, holds two steps: gradients of both, and an optimizer's moments."""
        idle = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        needed = 2 * self._held + 4 * sum(each.nbytes for each in learning)
        return torch.cuda.mem_get_info()[0] + idle >= needed


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


def _share(learning: list[Tensor], stream: torch.cuda.Stream) -> _Shared:
    return _Shared(learning, [torch.empty_like(each) for each in learning], torch.cuda.graph_pool_handle(), stream)


class _Passes(NamedTuple):
    """Recordings of both passes for one shape, and what they read and write.

    Attributes:
        inputs: What the forward pass reads.
        outputs: The tensors that it returns.
        structure: How these make what the model returns.
        grad_outputs: The gradient of each output that has one, which the backward pass reads.
        gradients: A parameter, and its gradient as the backward pass writes it.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: list[Tensor]
    structure: Any
    grad_outputs: dict[int, Tensor]
    gradients: list[tuple[Tensor, Tensor]]


class _Step:
    """A replayed forward pass, which has its passes until the backward one was; no other is replayed before."""

    def __init__(self, passes: _Passes) -> None:
        self.passes: _Passes | None = passes


def _replay(step: _Step, passes: _Passes, inputs: Mapping[str, Any]) -> Any:
    """Replay the forward pass, and return what the model would."""
    for name, each in passes.inputs.items():
        each.copy_(inputs[name])
    # Without something to differentiate by, autograd wouldn't come back.
    anchor = torch.empty((), requires_grad=True)
    return tree_unflatten(list(_Replay.apply(anchor, step, passes)), passes.structure)


class _Replay(torch.autograd.Function):
    """Replays a forward pass, and when autograd comes back its backward pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: _Step, passes: _Passes) -> tuple[Tensor, ...]:
        passes.forward.replay()
        # Copied: the next replay overwrites them, and somebody may keep them.
        outputs = [each.clone() for each in passes.outputs]
        ctx.step = step
        ctx.mark_non_differentiable(*(each for i, each in enumerate(outputs) if i not in passes.grad_outputs))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None]:
        passes: _Passes | None = ctx.step.passes
        if passes is None or torch.is_grad_enabled():
            raise _cannot("a recorded step has one backward pass, and none through that")
        for i, each in passes.grad_outputs.items():
            each.copy_(grad_outputs[i])
        # Of earlier passes, or of a loss that takes another way to the weights, too.
        before = [(gradient, each.grad.clone()) for each, gradient in passes.gradients if each.grad is not None]
        passes.backward.replay()
        for parameter, gradient in passes.gradients:
            parameter.grad = gradient
        for gradient, other in before:
            gradient += other
        ctx.step.passes = None
        return None, None, None


def _refusal(run: Callable[..., Any], inputs: Mapping[str, Any], learning: Sequence[Tensor]) -> str | None:
    """Return why no recording could stand for the passes of a model, by a trial of them; None where one could.

    A recording that fails can't be taken back: afterwards random numbers fail, too.
    """
    before, mode = rng_state(), torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(), _as_if_capturing(), _without_cached_casts():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
            outputs, _ = tree_flatten(run(**inputs))
            if not all(isinstance(each, Tensor) for each in outputs):
                return "the model returns more than tensors"
            reached = [each for each in outputs if each.requires_grad]
            found = torch.autograd.grad(reached, learning, [*map(torch.ones_like, reached)], allow_unused=True)
            if all(each is None for each in found):
                return "nothing learns from what the model returns"
    except RuntimeError as error:
        return f"in the model, {first_line(error)}"
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
    """Let who asks think that a graph is being recorded: transformers then decides nothing by what a mask holds.

    Who asks for the state of a GPU's random numbers, as to recompute activations, fails as there.
    """
    asked, read = torch.cuda.is_current_stream_capturing, torch.cuda.get_rng_state

    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("the state of random numbers is asked for")

    torch.cuda.is_current_stream_capturing = lambda: True
    torch.cuda.get_rng_state = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing, torch.cuda.get_rng_state = asked, read


def _without_cached_casts() -> torch.autocast:
    """Autocast as it is, but for weights that it cast and keeps: in a recording they would stay as they are."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )


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
    reached = {i: each for i, each in enumerate(outputs) if each.requires_grad}
    grad_outputs = {i: torch.zeros_like(each) for i, each in reached.items()}
    with _capturing(backward, shared):
        found = torch.autograd.grad([*reached.values()], shared.learning, [*grad_outputs.values()], allow_unused=True)
        used = [i for i, each in enumerate(found) if each is not None]
        torch._foreach_copy_([shared.gradients[i] for i in used], [found[i] for i in used])
    return _Passes(
        forward,
        backward,
        read,
        [each.detach() for each in outputs],
        structure,
        grad_outputs,
        [(shared.learning[i], shared.gradients[i]) for i in used],
    )


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, shared: _Shared) -> Iterator[None]:
    """Record what is started meanwhile."""
    # Other threads go on meanwhile, as that which pins the next batch.
    recording = torch.cuda.graph(graph, pool=shared.pool, stream=shared.stream, capture_error_mode="thread_local")
    with recording, _without_cached_casts():
        yield


def _cannot(problem: str) -> ConfigError:
    return ConfigError(problem, where="model.cuda_graphs", mend="set it to false")


def _has_hooks(part: nn.Module) -> bool:
    """Whether a module has hooks that a recording would leave out."""
    if part._backward_hooks or part._backward_pre_hooks:
        return True
    return any(hook.__module__ != _IDLE for hook in part._forward_hooks.values()) or any(
        hook is not take_first for hook in part._forward_pre_hooks.values()
    )


def _is_in_a_graph(parameter: Tensor) -> bool:
    """Whether there is a graph of autograd that leads to a parameter: its node then is the same when asked again."""

    def node() -> Any:
        return parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]

    node().metadata[_SEEN] = True
    return _SEEN in node().metadata


def _place(tensor: Tensor) -> int | None:
    """Where a tensor lies; None for those of `torch.func`, which lie nowhere."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None


def _is_recordable(given: Any) -> bool:
    """Whether a recording may stand for a pass that is given this."""
    if isinstance(given, Tensor):
        return given.is_cuda and not given.requires_grad
    return given is None or isinstance(given, bool | int | float | str)


def _shape(given: Any) -> tuple[Any, ...]:
    """What must be the same of what a model is given, that a recording may stand for it."""
    return (given.shape, given.dtype, given.device) if isinstance(given, Tensor) else (given,)
