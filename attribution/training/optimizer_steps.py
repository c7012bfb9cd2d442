"""The derivative of an optimizer's step with respect to what goes into it: parameters, gradient and the optimizer's own state.

SGD, Adam and AdamW of ``torch.optim`` update every number by itself, so all derivatives are vectors of the size of the parameters.
``torch.optim`` can be differentiated itself (``differentiable=True``), but it detaches the first step of momentum, and has no
finite derivative where the learning rate is 0, as at the beginning of a warm-up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARAMETERS, GRADIENT = "parameters", "gradient"
State = Mapping[str, Tensor]
"""The parameters and the optimizer's state as flat vectors ``[P]``, by name."""


def optimizer_settings(build: Callable[..., torch.optim.Optimizer]) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class of the optimizer that ``build`` constructs, and the settings of its steps."""
    optimizer = build([nn.Parameter(torch.zeros(1))])
    return type(optimizer), {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


def state_names(kind: type[torch.optim.Optimizer], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the tensors in an optimizer's state that have the shape of the parameters."""
    if kind is torch.optim.SGD:
        return ("momentum_buffer",) if settings["momentum"] else ()
    return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if settings["amsgrad"] else ()))


def step_after(
    kind: type[torch.optim.Optimizer], settings: Mapping[str, Any], rate: float, step: int, before: State, gradient: Tensor
) -> dict[str, Tensor]:
    """The parameters and the state after step ``step`` (0-based), differentiable; ``before`` has no state if there is none yet."""
    gradient = -gradient if settings["maximize"] else gradient
    return (_sgd if kind is torch.optim.SGD else _adam)(settings, rate, step, before, gradient)


def _sgd(settings: Mapping[str, Any], rate: float, step: int, before: State, gradient: Tensor) -> dict[str, Tensor]:
    parameters, momentum = before[PARAMETERS], settings["momentum"]
    gradient = gradient + settings["weight_decay"] * parameters
    if not momentum:
        return {PARAMETERS: parameters - rate * gradient}
    buffer = before.get("momentum_buffer")
    buffer = gradient if buffer is None else momentum * buffer + (1 - settings["dampening"]) * gradient
    move = gradient + momentum * buffer if settings["nesterov"] else buffer
    return {PARAMETERS: parameters - rate * move, "momentum_buffer": buffer}


def _adam(settings: Mapping[str, Any], rate: float, step: int, before: State, gradient: Tensor) -> dict[str, Tensor]:
    parameters, (first, second), decay = before[PARAMETERS], settings["betas"], settings["weight_decay"]
    if settings["decoupled_weight_decay"]:
        parameters = (1 - rate * decay) * parameters
    else:
        gradient = gradient + decay * parameters
    zeros = torch.zeros_like(gradient)
    mean = first * before.get("exp_avg", zeros) + (1 - first) * gradient
    square = second * before.get("exp_avg_sq", zeros) + (1 - second) * gradient**2
    after = {"exp_avg": mean, "exp_avg_sq": square}
    if settings["amsgrad"]:
        square = after["max_exp_avg_sq"] = torch.maximum(before.get("max_exp_avg_sq", zeros), square)
    # Where all gradients were 0, the root has no derivative, but the step has one: that with the root at its value of 0.
    root = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() / (1 - second ** (step + 1)) ** 0.5
    move = rate / (1 - first ** (step + 1)) * mean / (root + settings["eps"])
    return {PARAMETERS: parameters - move, **after}


def pulled_back(
    kind: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    rate: float,
    step: int,
    before: State,
    gradient: Tensor,
    adjoints: State,
) -> dict[str, Tensor]:
    """The vector-Jacobian products of step ``step`` (0-based).

    Args:
        adjoints: derivatives of Q numbers with respect to what the step gives, ``[Q, P]`` by name.

    Returns:
        Their derivatives with respect to what goes into it, ``[Q, P]`` by name: ``before`` and ``GRADIENT``.
    """
    inputs = {name: tensor.detach().requires_grad_() for name, tensor in {**before, GRADIENT: gradient}.items()}
    with torch.enable_grad():
        after = step_after(kind, settings, rate, step, inputs, inputs[GRADIENT])
        result = {name: torch.zeros_like(adjoints[PARAMETERS]) for name in inputs}
        for name, tensor in after.items():
            # Every number of the result depends on the numbers at its own place only: the sum has their derivatives.
            slopes = torch.autograd.grad(tensor.sum(), list(inputs.values()), retain_graph=True, materialize_grads=True)
            for of, slope in zip(inputs, slopes, strict=True):
                result[of].addcmul_(adjoints[name], slope)
    return result
