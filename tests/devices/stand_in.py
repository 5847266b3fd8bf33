"""A device that every machine has, for the faults that code shows only on a GPU.

Its tensors lie in the CPU's memory and are computed there, so they hold data, take every branch and must give its
results. But they say that they are on a device of their own, and refuse what real ones refuse: operands on two devices
and generators of another device (CUDA), and float64 (MPS). Fake tensors of torch refuse only the first of these, have
no data to branch on, and no backward pass on a "cuda" device without a CUDA driver.

The device goes by the name of ``lazy``, which every build of torch knows and nothing else here uses.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy")
CPU = torch.device("cpu")

aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default}
_READS_AT = {aten.index.Tensor}
_WRITES_AT = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_TAKES_NUMBERS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
_NOT_THERE = {torch.float64, torch.complex128}
_generators: dict[int, Any] = {}  # those of the stand-in, by what identifies them in C++


class Elsewhere(Tensor):
    """A tensor on the stand-in; ``held`` is the same memory as a tensor of the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = Tensor._make_subclass(cls, held, False, dispatch_device=True, device_for_backend_keys=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Elsewhere":
        made = memo[id(self)] = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as what it is on the CPU, as ``map_location`` has it for a real device."""
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"elsewhere({self.held!r})"


class _Generator:
    """Makes what ``torch.Generator`` does, and for the stand-in a generator of the CPU that is told apart."""

    def __new__(cls, device: Any = CPU) -> Any:
        made = torch._C.Generator(CPU)
        if torch.device(device) == DEVICE:
            _generators[made._cdata] = made
        return made


class _Intercepted(TorchDispatchMode):
    """Also sees calls that have no tensor of the stand-in yet: factories, and copies to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if Elsewhere not in types and not kwargs.keys() & {"device", "generator"}:
            return func(*args, **kwargs)
        return _compute(func, args, kwargs)


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """Within the block torch knows the stand-in."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast

    def no_autocast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else autocast(kind, *args, **kwargs)

    with ExitStack() as stack:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes it on the CPU, then copies
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.callback(_generators.clear)
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch, "autocast", no_autocast))
        stack.enter_context(
            patch.object(torch, "is_autocast_enabled", lambda *kind: DEVICE.type not in kind and enabled(*kind))
        )
        stack.enter_context(_Intercepted())
        yield DEVICE


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one operator on the CPU; what comes out is where its operands are, or where ``device`` says."""
    if func is torch.ops.prim.device.default:
        return DEVICE if isinstance(args[0], Elsewhere) else CPU
    seen: list[Any] = []
    held_args, held_kwargs = _held(args, seen), {key: _held(value, seen) for key, value in kwargs.items()}
    tensors = [one for one in seen if isinstance(one, Tensor)]
    wanted = kwargs.get("device")
    if wanted is not None:
        there = torch.device(wanted).type == DEVICE.type
        held_kwargs["device"] = CPU
    elif func is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    else:
        there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if func not in _COPIES:
        _check_devices(func, args, tensors)
    for generator in (one for one in seen if isinstance(one, torch._C.Generator)):
        if (generator._cdata in _generators) != there:
            raise RuntimeError(f"{func}: expected a generator of the device that draws")
    if func is aten._fused_sdp_choice.default:
        return 0  # the choice for the CPU is no kernel of another device
    result = func(*held_args, **held_kwargs)
    if not there:
        return result
    changed = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    return _placed(func, result, changed)


def _held(value: Any, seen: list[Any]) -> Any:
    """``value`` with the CPU's tensors in place of the stand-in's; tensors and generators are added to ``seen``."""
    if isinstance(value, list | tuple):
        return [_held(one, seen) for one in value]
    if isinstance(value, Tensor | torch._C.Generator):
        seen.append(value)
    return value.held if isinstance(value, Elsewhere) else value


def _check_devices(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Refuse operands on two devices, but for what CUDA allows: numbers, and indices of the CPU."""
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    if func in _READS_AT | _WRITES_AT and isinstance(args[0], Elsewhere):
        indices = {id(index) for index in args[1]}
        here = [tensor for tensor in here if id(tensor) not in indices]
    if torch.Tag.pointwise in func.tags or func in _TAKES_NUMBERS | _WRITES_AT:
        here = [tensor for tensor in here if tensor.dim() > 0]
    if there and here:
        shapes = [tuple(tensor.shape) for tensor in here]
        raise RuntimeError(f"{func}: expected all tensors to be on one device, found '{DEVICE}', and 'cpu': {shapes}")


def _placed(func: Any, result: Any, changed: dict[int, Elsewhere]) -> Any:
    """``result`` on the stand-in; an operand that was changed in place stays the same object."""
    if isinstance(result, list | tuple):
        return type(result)(_placed(func, one, changed) for one in result)
    if not isinstance(result, Tensor):
        return result
    if result.dtype in _NOT_THERE:
        raise TypeError(f"{func}: '{DEVICE}' has no {result.dtype}")
    return changed[id(result)] if id(result) in changed else Elsewhere(result)
