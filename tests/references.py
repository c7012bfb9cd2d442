"""Slow, obvious implementations that the fast ones are tested against."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from attribution.diffusion import denoiser
from attribution.images.draws import Draws
from attribution.images.proposals import Proposal
from attribution.images.stratified import timesteps
from attribution.measurements import Measure


def draw_gradients(
    measure: Measure, model: nn.Module, x0: Tensor, draws: Draws, condition: Tensor | None = None
) -> dict[str, Tensor]:
    """∇_{b,k} of every trainable parameter by one ``backward`` per draw, in eval mode: name → ``[B, K, *parameter shape]``."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    B, K = draws.timestep.shape
    gradients = {name: torch.zeros(B, K, *p.shape, dtype=p.dtype) for name, p in parameters.items()}
    for b in range(B):
        for k in range(K):
            given = None if condition is None else condition[b : b + 1]
            inputs = measure.inputs(x0[b : b + 1], draws.rows(slice(b, b + 1)).columns(slice(k, k + 1)), given)
            model.zero_grad(set_to_none=True)
            measure(denoiser(model), *inputs).sum().backward()
            for name, p in parameters.items():
                if p.grad is not None:
                    gradients[name][b, k] = p.grad
    model.zero_grad(set_to_none=True)
    return gradients


def draw_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """‖∇_{b,k}‖ over all parameters, ``[B, K]``."""
    return torch.stack([g.flatten(2).square().sum(2) for g in gradients.values()]).sum(0).sqrt()


def as_parameters(model: nn.Module, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers' joint blocks ``[B, rows, columns]`` taken apart by hand: parameter name → ``[B, *parameter shape]``.

    The bias, where it is trained, is the last column, and the weight all that stand before it.
    """
    parameters = {}
    every = dict(model.named_parameters(remove_duplicate=False))
    for layer, block in blocks.items():
        if layer in every:  # a parameter by itself
            parameters[layer] = block.reshape(len(block), *every[layer].shape)
            continue
        if isinstance(model.get_submodule(layer), nn.Embedding):
            parameters[f"{layer}.weight"] = block.mT
            continue
        own = {key: p for key, p in model.get_submodule(layer).named_parameters(recurse=False) if p.requires_grad}
        prefix = f"{layer}." if layer else ""
        if "bias" in own:
            parameters[f"{prefix}bias"] = block[:, :, -1].reshape(len(block), *own["bias"].shape)
            block = block[:, :, :-1]
        if "weight" in own:
            parameters[f"{prefix}weight"] = block.reshape(len(block), *own["weight"].shape)
    return parameters


def stretch_probabilities(proposal: Proposal, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each timestep in each of n stretches ``[n, T]``, and the weight of a draw there ``[T]``.

    Timesteps are constant between neighboring ends of the cumulative expected counts or of the stretches, so that the middles of
    these intervals stand for all positions.
    """
    ends = np.unique(np.clip(np.concatenate([[0.0], proposal.counts(n).cumsum(), np.arange(1, n + 1)]), 0, n))
    middle, length = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    timestep, weight = (tensor.numpy() for tensor in timesteps(proposal, n, torch.from_numpy(middle)))
    probability, weights = np.zeros((n, proposal.T)), np.zeros(proposal.T)
    np.add.at(probability, (np.minimum(middle.astype(int), n - 1), timestep - 1), length)
    weights[timestep - 1] = weight
    return probability, weights
