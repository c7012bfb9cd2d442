"""The convention by which networks are called.

Noise levels are 1..T everywhere in this package. A network gets them in the form of its process (``Process.network_time``): t - 1
for a DDPM, because networks of diffusers count from 0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.func import functional_call

from attribution.diffusion.network_arguments import NetworkArguments

SHARED = ("attribution.diffusion.network_arguments",)


class Denoiser(Protocol):
    """``f_θ(x [B, C, H, W], time [B], condition [B, ...] | None) -> [B, C, H, W]``: the network's output.

    ``x`` and ``time`` are ``network_input`` and ``network_time`` of the process. ``condition`` is an extra network input for each
    example: a class, an embedding (``attribution.images.conditions``).
    """

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor | None = None, /) -> Tensor: ...


def denoiser(network: nn.Module, state: Mapping[str, Tensor] | None = None) -> Denoiser:
    """``f_θ`` from a network: ``NetworkArguments`` says which arguments get the time and the condition.

    The network returns a tensor or, as diffusers' do, an object with a tensor ``sample``. If its configuration has twice as many
    ``out_channels`` as ``in_channels``, a learned variance follows the prediction (Nichol & Dhariwal 2021, eq. 15), and only the
    prediction is taken. ``state`` holds parameters and buffers to use instead of the network's.

    Raises (when called):
        ValueError: a condition that the network does not take, no condition where it needs one, further inputs that it needs; or an
            output that is no tensor.
    """
    arguments: list[NetworkArguments] = []
    config: Any = getattr(network, "config", None)
    predicts_variance = hasattr(config, "get") and config.get("out_channels", 0) == 2 * config.get("in_channels", -1)

    def denoise(x: Tensor, time: Tensor, condition: Tensor | None = None, /) -> Tensor:
        if not arguments:
            arguments.append(NetworkArguments(network))
        inputs, named = arguments[0](x, time, condition)
        output: Any = network(*inputs, **named) if state is None else functional_call(network, dict(state), inputs, named)
        output = output if isinstance(output, Tensor) else getattr(output, "sample", output)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(network).__name__}.forward returns a {type(output).__name__}: return a tensor, or an object with a tensor "
                "`sample` (networks of diffusers do with return_dict=True)"
            )
        return output[:, : x.shape[1]] if predicts_variance else output

    return denoise


def without_label_dropout(network: nn.Module) -> nn.Module:
    """``network``, in which ``LabelEmbedding`` modules of diffusers (as in DiT) drop no classes in training.

    The draws of training drop conditions, which the record of training has (``Draws.condition_dropped``).
    """
    from diffusers.models.embeddings import LabelEmbedding  # takes seconds to import, and only training needs it

    for module in network.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0
    return network


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
