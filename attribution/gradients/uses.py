"""Per-example gradients of parameters without a formula of their own, from every operation that uses them.

During a pass a ``Traced`` tensor takes the place of such a parameter in its modules. An operation on traced tensors alone, such as
a slice or the normalization of a weight, gives another traced tensor: it is the same for all inputs. An operation that combines one
with a tensor of the batch is a *use* of the parameter. It gives a plain tensor with a row for each input. From the gradient of that
output, the gradient of each input follows by differentiating the operation once more, for each input separately:
``torch.func.vmap`` over ``torch.func.vjp``. This holds for any operation that treats inputs separately: elementwise operations,
convolutions of any kind, attention, norms.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from attribution.gradients.decisions import Decisions
from attribution.gradients.layers import Layer, pieces, step

SHARED = ("attribution.gradients.decisions", "attribution.gradients.layers")

Values = Mapping[str, Tensor]
"""Parameters by name, in the precision of a gradient."""

Function = Callable[[Values, Sequence[Tensor]], Tensor]
"""An operation of parameters and of tensors of the batch."""

OUT_OF_PLACE = {
    Tensor.__iadd__: torch.add,
    Tensor.__isub__: torch.sub,
    Tensor.__imul__: torch.mul,
    Tensor.__itruediv__: torch.div,
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}
IN_PLACE = re.compile(r"__setitem__|__i(add|sub|mul|matmul|truediv|floordiv|mod|pow|and|or|xor|lshift|rshift)__|\w*[^_]_")
"""The names of operations that change a tensor."""
CASTS = {Tensor.to, Tensor.type_as}
"""Operations whose other tensors only name a type or a device."""
PRECISIONS = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16}
"""Conversions, which repeated operations do in the precision of the gradient."""
REPEATS = {Tensor.expand, Tensor.repeat, torch.broadcast_to, Tensor.broadcast_to, torch.tile, Tensor.tile}


class ParameterLayer(Layer):
    """A parameter as a layer of its own: its block is ``[rows, columns]``, where rows is the size of its first dimension."""

    def __init__(self, name: str, parameter: nn.Parameter, decisions: Decisions):
        self.name, self.parameters = name, {name: parameter}
        self.weight, self.bias = True, False
        self.decisions = decisions

    @property
    def parameter(self) -> nn.Parameter:
        return self.parameters[self.name]

    @property
    def block(self) -> tuple[int, int]:
        rows = self.parameter.shape[0] if self.parameter.dim() else 1
        return rows, self.parameter.numel() // max(1, rows)

    def fits(self, a: Tensor, inputs: int) -> bool:
        return len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        raise NotImplementedError("each use of the parameter has its own gradient: see Use.contract")


@dataclass(frozen=True, eq=False)
class Argument:
    """A tensor of the batch in an operation; ``dim`` is the dimension of its inputs."""

    tensor: Tensor
    dim: int
    version: int

    def rows(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the given inputs, as the first dimension."""
        picked = self.tensor.movedim(self.dim, 0)[rows]
        return picked.to(dtype) if picked.is_floating_point() else picked


class Use(ParameterLayer):
    """One use of a parameter. The "input" of its calls is the number of each input, ``[N]``."""

    def __init__(
        self,
        layer: ParameterLayer,
        operation: str,
        function: Function,
        arguments: Sequence[Argument],
        dim: int,
        others: Mapping[str, nn.Parameter],
    ):
        super().__init__(layer.name, layer.parameter, layer.decisions)
        self._operation = operation
        self._function, self._arguments, self._dim, self._others = function, arguments, dim, others
        self.kept = tuple(argument.tensor for argument in arguments)

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        total = b.new_zeros(len(b) // K, math.prod(self.block))
        size = max(self.parameter.numel(), b[0].numel(), *(x.tensor.numel() // len(b) for x in self._arguments), 1)
        for chunk in pieces(len(b), max(1, step(b) // size)):
            example = torch.arange(chunk.start, chunk.stop, device=b.device).div(K, rounding_mode="floor")
            total.index_add_(0, example, self._gradients(a[chunk], b[chunk]).reshape(len(example), -1))
        return total.view(-1, *self.block)

    def _gradients(self, rows: Tensor, b: Tensor) -> Tensor:
        """Return the gradient of each of the inputs ``rows [n]``, ``[n, *parameter.shape]``."""
        values = {name: p.detach().to(b.dtype) for name, p in self._others.items()}
        parameter = self.parameter.detach().to(b.dtype)
        dims = [argument.dim for argument in self._arguments]

        def of_input(b: Tensor, *tensors: Tensor) -> Tensor:
            batch = [tensor.unsqueeze(dim) for tensor, dim in zip(tensors, dims, strict=True)]
            vjp: Any = torch.func.vjp(lambda p: self._function({**values, self.name: p}, batch), parameter)[1]
            return vjp(b.unsqueeze(self._dim))[0]

        if any(argument.tensor._version != argument.version for argument in self._arguments):
            raise RuntimeError(
                f"{self.name}: a tensor was changed in place after its {self._operation}; use an out-of-place operation"
            )
        tensors = [argument.rows(rows, b.dtype) for argument in self._arguments]
        # vmap has no rule for fused attention, and falls back to a loop over inputs for a few other operations.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                return torch.func.vmap(of_input)(b, *tensors).detach()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                raise RuntimeError(
                    f"{self.name}: {self._operation} cannot be repeated for one input at a time ({str(error).splitlines()[0]}). "
                    "Keep the batch in the first dimension of its tensors, and repeat a parameter for each input by expand only"
                ) from error


Record = Callable[[Tensor, int, Sequence[Use]], Tensor]
"""Records uses with the output ``[.., N, ..]``, its dimension of the inputs, and the uses; returns the output to go on with."""


class Trace:
    """The uses of traced parameters in a pass over ``inputs`` inputs of ``model``."""

    def __init__(self, model: nn.Module, layers: Mapping[nn.Parameter, ParameterLayer], inputs: int, record: Record):
        self.layers = {layer.name: layer for layer in layers.values()}
        self.inputs, self.record = inputs, record
        self._constant = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.decisions = next(iter(self.layers.values())).decisions
        self._names = {p: layer.name for p, layer in layers.items()}

    def traced(self, p: nn.Parameter) -> "Traced":
        """Return what takes the place of ``p`` in its modules."""
        name = self._names[p]
        return traced(self, p.detach(), frozenset([name]), lambda values: values[name])

    def use(
        self, operation: str, names: frozenset[str], output: Tensor, dim: int, function: Function, arguments: Sequence[Argument]
    ) -> Tensor:
        """Record an operation with all parameters in it, and return its output to go on with."""
        parameters = {name: self.layers[name].parameter for name in names}
        uses = [Use(self.layers[name], operation, function, arguments, dim, parameters) for name in sorted(names)]
        return self.record(output, dim, uses)

    def batch_dims(self, function: Any, leaves: Sequence[Any], names: frozenset[str]) -> dict[int, int]:
        """Map the arguments of ``function`` that have one row for each input to the dimension of these rows."""
        dims, shapes, sizes = {}, [], []
        for i, x in enumerate(leaves):
            if not isinstance(x, Tensor):
                continue
            shape = list(x.shape)
            if not isinstance(x, Traced) and id(x) not in self._constant and x.dim():
                dim = 1 if function is F.multi_head_attention_forward and i < 3 and x.dim() == 3 else 0
                dims[i] = dim
                sizes.append(shape.pop(dim))
            shapes.append((i, *shape))
        batch = self.decisions.decide((_name(function), *shapes), tuple(sizes), self.inputs, names)
        return {i: dim for (i, dim), has in zip(dims.items(), batch, strict=True) if has}

    def repeats(self, function: Any, source: "Traced", output: Tensor, names: frozenset[str]) -> bool:
        """Return whether ``function`` repeats ``source`` once for each input."""
        if output.dim() == source.value.dim() and source.value.shape[0] != 1:
            return False
        operation = _name(function), tuple(source.value.shape), tuple(output.shape[1:])
        return self.decisions.decide(operation, (output.shape[0],), self.inputs, names)[0]


class Traced(Tensor):
    """A tensor computed from parameters alone, the same for all inputs. ``traced`` makes one."""

    owner: Trace
    value: Tensor
    names: frozenset[str]
    function: Callable[[Values], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, spec = tree_flatten((args, kwargs or {}))
        trace = next(leaf.owner for leaf in leaves if isinstance(leaf, Traced))
        with torch._C.DisableTorchFunctionSubclass():
            return _operation(trace, func, leaves, spec)


def traced(trace: Trace, value: Tensor, names: frozenset[str], function: Callable[[Values], Tensor]) -> Traced:
    """Return ``value``, which ``function`` computes from the parameters ``names``, as a traced tensor."""
    with torch._C.DisableTorchFunctionSubclass():
        result = value.as_subclass(Traced)
        result.owner, result.value, result.names, result.function = trace, value, names, function
    return result


def _operation(trace: Trace, func: Any, leaves: list[Any], spec: Any) -> Any:
    name, again = _name(func), OUT_OF_PLACE.get(func, func)
    names = frozenset[str]().union(*(leaf.names for leaf in leaves if isinstance(leaf, Traced)))
    in_place, x = func in OUT_OF_PLACE, leaves[0]
    refused = isinstance(x, Traced) or x.nbytes < x.untyped_storage().nbytes() if in_place else IN_PLACE.fullmatch(name)
    if refused:
        raise ValueError(f"{', '.join(sorted(names))}: {name} changes a tensor in place; use an out-of-place operation")

    def call(tensors: Mapping[int, Any]) -> Any:
        args, kwargs = tree_unflatten([tensors.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
        return func(*args, **kwargs)

    before = leaves[0].detach().clone() if in_place else leaves[0]
    result = call({i: leaf.value for i, leaf in enumerate(leaves) if isinstance(leaf, Traced)})
    outputs, result_spec = tree_flatten(result)
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.is_floating_point() for x in outputs):
        return result

    dims = trace.batch_dims(func, leaves, names) if func not in CASTS else {}
    if trace.inputs == 1 and not all(_rows(x, _dim(func, i)) == 1 for i, x in enumerate(outputs) if isinstance(x, Tensor)):
        dims = {}  # a constant with one row
    for i, x in enumerate(leaves):
        if isinstance(x, Tensor) and not isinstance(x, Traced) and x.requires_grad and i not in dims and func not in CASTS:
            raise ValueError(
                f"{', '.join(sorted(names))}: {name} combines it with a tensor {list(x.shape)} computed from the inputs of a pass, "
                f"which does not have one row for each of the {trace.inputs} inputs: the batch must be in the first dimension"
            )
    if not dims and func in REPEATS and trace.repeats(func, leaves[0], outputs[0], names):
        return _repeated(trace, names, leaves[0], outputs[0])
    read = [before if i == 0 else x for i, x in enumerate(leaves)]
    arguments = {i: Argument(read[i].detach(), dim, read[i]._version) for i, dim in dims.items()}
    fixed = [
        None if i in dims else x.detach() if isinstance(x, Tensor) and not isinstance(x, Traced) else x
        for i, x in enumerate(leaves)
    ]

    def replay(parameters: Values, batch: Sequence[Tensor], output: int) -> Tensor:
        dtype = next(iter(parameters.values())).dtype
        tensors: dict[int, Any] = dict(zip(arguments, batch, strict=True))
        given = [tensors[i] if i in tensors else _at(x, parameters, dtype) for i, x in enumerate(fixed)]
        args, kwargs = tree_unflatten(given, spec)
        return args[0].to(dtype) if func in PRECISIONS else tree_flatten(again(*args, **kwargs))[0][output]

    if not dims:
        return tree_unflatten(
            [
                traced(trace, x, names, lambda values, i=i: replay(values, [], i)) if isinstance(x, Tensor) else x
                for i, x in enumerate(outputs)
            ],
            result_spec,
        )
    used: list[Any] = []
    for i, output in enumerate(outputs):
        if not isinstance(output, Tensor):
            used.append(output)
            continue
        dim = _dim(func, i)
        if _rows(output, dim) != trace.inputs:
            raise ValueError(
                f"{', '.join(sorted(names))}: {name} combines it with the inputs of a pass, but its output {list(output.shape)} "
                f"does not have one row for each of the {trace.inputs} inputs: the batch must be in the first dimension"
            )
        function = partial(replay, output=i)
        used.append(trace.use(name, names, output, dim, function, list(arguments.values())))
    return tree_unflatten(used, result_spec)


def _dim(function: Any, output: int) -> int:
    """The dimension of the inputs in an output of ``function``."""
    return 1 if function is F.multi_head_attention_forward and output == 0 else 0


def _rows(x: Tensor, dim: int) -> int | None:
    return x.shape[dim] if x.dim() > dim else None


def _name(function: Any) -> str:
    return getattr(function, "__name__", str(function))


def _repeated(trace: Trace, names: frozenset[str], source: Traced, output: Tensor) -> Tensor:
    """Record ``source``, repeated for each input; other dimensions may be repeated as well."""
    shape = (1, *output.shape[1:])
    sizes = (1,) * (output.dim() - source.value.dim()) + tuple(source.value.shape)
    counts = [size // own for size, own in zip(shape, sizes, strict=True)]
    return trace.use("repetition", names, output, 0, lambda values, _: source.function(values).repeat(counts), [])


def _at(x: Any, parameters: Values, dtype: torch.dtype) -> Any:
    """Return a traced argument at other values of the parameters, and any other one in their precision."""
    if isinstance(x, Traced):
        return x.function(parameters)
    if isinstance(x, torch.dtype) and x.is_floating_point:
        return dtype
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
