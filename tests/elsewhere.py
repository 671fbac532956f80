"""A device to pretend with where there is no GPU: its tensors are the CPU's, but refuse to mix with them.

    with elsewhere.pretended() as waits:
        module.to(elsewhere.DEVICE)

Whatever works here finds all its tensors in one place on a GPU, too. It goes by the name of `meta`, the one device
that torch knows everywhere. Fused attention isn't made for it: give modules `attn_implementation="eager"`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
# Operations for whose result the CPU waits: a number, or a shape that depends on numbers.
_WAITED_FOR = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Elsewhere(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        layout: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=DEVICE, **layout)
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def pretended() -> Iterator[Counter[str]]:
    """Let there be the device; returns how often the CPU had to wait for it, by operation."""
    # `torch.optim` takes the name of this module of its for itself.
    optimizer = import_module("torch.optim.optimizer")
    autocast, supported = torch.autocast, optimizer._get_fused_kernels_supported_devices

    def inference_mode(mode: bool = True) -> Any:
        """Return no inference tensors: those can't be wrapped."""
        return torch.no_grad() if mode else nullcontext()

    def autocast_of_others(kind: str, *given: Any, **more: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else autocast(kind, *given, **more)

    swapped = torch.__future__.get_swap_module_params_on_conversion()
    # Otherwise a module that moves would no longer share its tied weights.
    torch.__future__.set_swap_module_params_on_conversion(True)
    waits: Counter[str] = Counter()
    try:
        with (
            patch.object(torch, "inference_mode", inference_mode),
            patch.object(torch, "autocast", autocast_of_others),
            patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), DEVICE.type]),
            _Dispatch(waits),
            _Functions(),
        ):
            yield waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def strategy() -> SingleDeviceStrategy:
    """Return what a Trainer takes to run on the device."""
    return SingleDeviceStrategy(device=DEVICE, accelerator=_Accelerator())


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class _Dispatch(TorchDispatchMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        tensors = [each for each in tree_leaves(args) if isinstance(each, Elsewhere)]
        # What a mask picks is as many as its numbers say.
        picks = name == "index" and any(each.dtype == torch.bool for each in tensors[1:])
        leaves = name == "_to_copy" and torch.device((kwargs or {}).get("device") or DEVICE).type == "cpu"
        if tensors and (picks or leaves or name.startswith(_WAITED_FOR)):
            self.waits[name] += 1
        return _run(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does in C++ for `meta` before anything is dispatched, and without the numbers."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if args and isinstance(args[0], Elsewhere):
            if function is torch.Tensor.tolist:
                return args[0].cpu().tolist()
            if function in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert a tensor elsewhere to numpy; use Tensor.cpu() first")
            if function in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__) and args[0].dim() == 1:
                # Here torch would change a shape in place, of which the tensor elsewhere learns nothing.
                return function(args[0][None], *args[1:], **kwargs)[0]
            if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
                args = (args[0], _as_indices(args[1]), *args[2:])
        return function(*args, **kwargs)


def _as_indices(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_as_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and let its result lie where a GPU's would.

    Raises:
        RuntimeError: Its tensors lie in two places.
    """
    name = function.overloadpacket.__name__
    # Rows may be picked by numbers that lie on the CPU.
    mixing = (args[0], *args[2:]) if name.startswith(("index", "_unsafe_index")) else (args, kwargs)
    theirs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Elsewhere)]
    of_cpu = [
        each for each in tree_leaves(mixing) if isinstance(each, torch.Tensor) and not isinstance(each, Elsewhere)
    ]
    if theirs and name not in ("_to_copy", "copy_") and any(each.dim() for each in of_cpu):
        raise RuntimeError(f"{name} of tensors on two devices: {[tuple(each.shape) for each in of_cpu]} on the CPU")
    stays = bool(theirs)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name == "copy_":
        stays = isinstance(args[0], Elsewhere)
    found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not stays:
        return found
    # What is changed in place stays the same tensor.
    known = {id(each.inner): each for each in theirs}

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    return tree_map(outer, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value
