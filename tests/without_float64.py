"""A stand-in for a device without float64, such as MPS: it computes on the CPU, refuses float64, and mixes with no other device.

It counts what makes the host wait for a real device: values and tensors that go to the host, operations whose result has a shape
that depends on values, and copies to the device that are not asynchronous (``CROSSINGS``).

It says nothing about the kernels, memory or speed of a real device. ``registered`` changes the process for good, so tests use it in
a process of their own (``tests/test_devices.py``).
"""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "nodouble"

aten = torch.ops.aten
VALUES = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default}
"""Operations that return a Python value."""
SHAPED_BY_VALUES = {aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor, aten._unique2.default}
"""Operations on whose result's shape the host waits."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operations that accept indices on the CPU."""


CROSSINGS: Counter[tuple[str, str]] = Counter()
"""(kind, line of the program) → how often the host waits: ``to host`` for a value or a tensor, ``to device`` for a copy."""


class DeviceTensor(torch.Tensor):
    """A tensor on the stand-in; ``raw`` has its values, on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        if not _has_float64 and raw.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a tensor to float64: the device has no float64. Please use float32 instead.")
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, raw.size(), device=torch.device(NAME, 0), **layout)

    def __init__(self, raw: torch.Tensor):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # where the mode is off: in the threads of backward passes
        with _Dispatch():
            return func(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = _leaves(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        if not here and not _is_device(target):
            return func(*args, **kwargs)
        if _is_composed(func):
            with self:  # in inference mode these arrive whole
                return func.decompose(*args, **kwargs)
        _count(func, args, kwargs, bool(here), target)
        if here and func not in (aten._to_copy.default, aten.copy_.default, *INDEXING) and len(here) < len(tensors):
            elsewhere = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim() > 0]
            if elsewhere:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {NAME} and {elsewhere[0].device}")
        result = func(*_mapped(_raw, args), **{name: _mapped(_raw, value) for name, value in kwargs.items()})
        if func in VALUES or (target is not None and not _is_device(target)):
            return result
        if func is aten.copy_.default:
            return args[0]
        written = _written(func, args, kwargs)
        return written if written is not None else _mapped(_wrapped, result)


class _Factories(TorchFunctionMode):
    """What never reaches a dispatch mode: ``torch.tensor(..., device=...)`` and ``tolist`` copy directly between the devices.

    Pinned memory is ordinary memory here.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_device(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _count(func: Any, args: tuple, kwargs: dict, here: bool, target: torch.device | None) -> None:
    """Count an operation that concerns the device, if the host waits in it."""
    to_host = here and (func in VALUES or func in SHAPED_BY_VALUES)
    to_device = False
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        to_host = any(index.dtype == torch.bool for index in indices)
        to_device = any(not isinstance(index, DeviceTensor) for index in indices)
    elif func is aten._to_copy.default and target is not None and not kwargs.get("non_blocking"):
        to_host, to_device = here and not _is_device(target), not here and _is_device(target)
    elif func is aten.copy_.default and not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
        into, source = (isinstance(tensor, DeviceTensor) for tensor in args[:2])
        to_host, to_device = source and not into, into and not source and args[1].dim() > 0
    for kind, waits in (("to host", to_host), ("to device", to_device)):
        if waits:
            CROSSINGS[kind, _line()] += 1


def _line() -> str:
    """The innermost line of the program, or else of a library, that is being executed."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        path = frame.f_code.co_filename
        for package in ("/attribution/", "/experiments/"):
            if package in path and "/tests/" not in path:
                return f"{package[1:]}{path.rpartition(package)[2]}:{frame.f_lineno}"
        if not library and "/torch/" not in path and "/tests/" not in path:
            library = f"{'/'.join(path.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return library


_has_float64 = False


@contextmanager
def registered(float64: bool = False) -> Iterator[torch.device]:
    """The stand-in exists, as the device that is returned; with ``float64`` it stands for a CUDA GPU."""
    global _has_float64
    _has_float64 = float64
    _setup_privateuseone_for_python_backend(NAME)
    module = torch.get_device_module(NAME)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.get_rng_state = lambda device: torch.empty(0, dtype=torch.uint8)  # for torch.random.fork_rng
    module.set_rng_state = lambda state, device: None
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")  # autocast is possible, and casts nothing
    library.fallback(torch.library.fallthrough_kernel)
    with _Factories(), _Dispatch():
        yield torch.device(NAME, 0)


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _leaves(args: tuple, kwargs: dict) -> list[Any]:
    """The arguments of an operation, and the items of those that are lists. PyTorch's trees take longer than the operations."""
    found = []
    for value in (*args, *kwargs.values()):
        found += value if isinstance(value, list | tuple) else (value,)
    return found


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``function`` of a value, or of each item of lists and tuples."""
    return type(value)(_mapped(function, item) for item in value) if type(value) in (list, tuple) else function(value)


def _raw(value: Any) -> Any:
    """A tensor or a device as the CPU knows it."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if _is_device(value) else value
    return value.raw if isinstance(value, DeviceTensor) else value


def _wrapped(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, torch.Tensor) else value


@functools.cache
def _is_composed(func: Any) -> bool:
    """Whether an operation is a composition of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _written(func: Any, args: tuple, kwargs: dict) -> Any:
    """The argument that an operation in place (or with ``out``) returns, or None."""
    places = _places_written(func)
    values = [kwargs[name] if name in kwargs else args[position] for name, position in places]
    return None if not values else values[0] if len(values) == 1 else tuple(values)


@functools.cache
def _places_written(func: Any) -> list[tuple[str, int]]:
    """The names and positions of the arguments that an operation writes and returns."""
    schema = func._schema
    if not any(returned.alias_info is not None and returned.alias_info.is_write for returned in schema.returns):
        return []
    return [(a.name, i) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
