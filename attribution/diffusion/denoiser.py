"""The convention by which networks are called.

Noise levels are 1..T everywhere in this package. A network gets them in the form of its process (``Process.network_time``): t - 1
for a DDPM, because networks of diffusers count from 0.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn
from torch.func import functional_call


class Denoiser(Protocol):
    """``f_θ(x [B, C, H, W], time [B], condition [B, ...] | None) -> [B, C, H, W]``: the network's output.

    ``x`` and ``time`` are ``network_input`` and ``network_time`` of the process. ``condition`` is an extra network input for each
    example: a class, an embedding.
    """

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None = None, /) -> Tensor: ...


def denoiser(network: nn.Module, state: Mapping[str, Tensor] | None = None) -> Denoiser:
    """``f_θ`` from a network called as ``network(x, time)``, or ``network(x, time, condition)`` where there is a condition.

    The network returns a tensor or, as diffusers' do, an object with a tensor ``sample``. ``state`` holds parameters and buffers to
    use instead of the network's.

    Raises (when called):
        ValueError: a condition for a network that takes none; or an output that is no tensor.
    """

    def denoise(x: Tensor, time: Tensor, condition: Tensor | None = None, /) -> Tensor:
        inputs = (x, time)
        if condition is not None:
            _check_takes_condition(network)
            inputs = (*inputs, condition)
        output = network(*inputs) if state is None else functional_call(network, dict(state), inputs)
        output = output if isinstance(output, Tensor) else getattr(output, "sample", output)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(network).__name__}.forward returns a {type(output).__name__}: return a tensor, or an object with a tensor "
                "`sample` (networks of diffusers do with return_dict=True)"
            )
        return output

    return denoise


def _check_takes_condition(network: nn.Module) -> None:
    try:
        inspect.signature(network.forward).bind("x", "time", "condition")
    except TypeError as error:
        raise ValueError(
            f"the images have a condition, but {type(network).__name__}.forward takes none: use images without a condition, or a "
            "network that is called as network(x, time, condition)"
        ) from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` into eval mode, and afterwards back into the mode that it had."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
