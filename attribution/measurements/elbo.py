"""The evidence lower bound of Ho et al. 2020 and the loss with the bound's weights, as costs in nats of a whole image.

A draw is one term of the variational bound (eq. 5): the mean over t ~ U{1..T} of T · term_t is the sum over the terms. Divided by
``C·H·W · ln 2`` the measurements are bits per dimension.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion import DDPM, Denoiser, NoiseSchedule
from attribution.diffusion.schedule import lookup
from attribution.images.proposals import Proposal
from attribution.measurements.base import DDPMMeasure
from attribution.measurements.decoder import log_probability, nearest_level, value

SHARED = ("attribution.measurements.base", "attribution.measurements.decoder")


def small_variances(schedule: NoiseSchedule) -> np.ndarray:
    """The variances σ_t² = β_t (1-ᾱ_{t-1})/(1-ᾱ_t) of q(x_{t-1} | x_t, x_0) (eq. 7), float64 ``[T]``.

    σ_1², which would be 0, is set to σ_2².

    Raises:
        ValueError: a schedule of a single timestep.
    """
    if schedule.T < 2:
        raise FieldError(schedule, "T", "measurements of the sampling process need at least two timesteps, set T >= 2")
    bars = schedule.alpha_bars
    variances = schedule.betas * (1 - bars[:-1]) / (1 - bars[1:])
    variances[0] = variances[1]
    return variances


def loss_weights(process: DDPM, variances: np.ndarray) -> np.ndarray:
    """The bound's weights of ‖target - output‖² for the variances σ_t² ``[T]`` of p_θ(x_{t-1} | x_t), float64 ``[T]``.

    The means of q and p_θ differ by ``√ᾱ_{t-1} β_t / (1-ᾱ_t)`` times the error of the image (eq. 7), which ``image_error`` turns
    into the error of the output. The weight is the square of both over 2 σ_t²: ``β_t² / (2 σ_t² α_t (1-ᾱ_t))`` for a prediction of
    the noise (eq. 12), ``ᾱ_{t-1} β_t² / (2 σ_t² (1-ᾱ_t))`` for v, and ``ᾱ_{t-1} β_t² / (2 σ_t² (1-ᾱ_t)²)`` for the image.
    """
    betas, (before, bars) = process.schedule.betas, (process.schedule.alpha_bars[:-1], process.schedule.alpha_bars[1:])
    divisor = {"epsilon": 1 - betas, "v": 1 / before, "sample": (1 - bars) / before}[process.prediction]
    return betas**2 / (2 * variances * divisor * (1 - bars))


def proposing(process: DDPM) -> DDPM:
    """The process whose weights of the bound propose timesteps: the same one, with v in place of the image as prediction.

    The terms of the bound do not depend on the prediction, but the weights of the output's error do. Those for the image would put
    nearly all draws on the first timesteps.
    """
    return replace(process, prediction="v") if process.prediction == "sample" else process


@dataclass(frozen=True)
class ElboWeighted(DDPMMeasure):
    """``T · w_t · ‖target - output‖²`` with the weights w_t of the bound: ``β_t / (2 α_t (1-ᾱ_t))`` for a prediction of the noise.

    These are the weights for the variance σ_t² = β_t (``loss_weights``). The term of t = 1 is a squared error too, without the
    discretized decoder; constants are left out. The squared norm is a sum over pixels.
    """

    NAME = "ElboWeighted"
    VERSION = 1

    def proposal(self) -> Proposal:
        """In proportion to the weights (``proposing``), mixed with 10 % uniform draws; t = 1 is a stratum of its own."""
        return Proposal.weighted(self.schedule.T * loss_weights(proposing(self.ddpm), self.schedule.betas), first_apart=True)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)
        return lookup(self._weights, t, x0.dtype) * (self.process.target(x0, t, noise) - output).square().flatten(1).sum(1)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.append(0, self.schedule.T * loss_weights(self.ddpm, self.schedule.betas))


@dataclass(frozen=True)
class Elbo(DDPMMeasure):
    """The negative ELBO (eq. 5), an upper bound on -log P_θ(x_0) of an image of ``levels`` + 1 values per pixel.

    At t >= 2 ``T · KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t))`` with the small variance on both sides, which is
    ``T · β_t / (2 α_t (1-ᾱ_{t-1})) · ‖ε - ε_θ(x_t, t)‖²`` for a prediction of the noise (``loss_weights``); at t = 1
    ``-T · log P_θ(x_0 | x_1)`` by the discretized decoder (eq. 13) with σ_1² := σ_2². Every draw includes the prior
    ``KL(q(x_T | x_0) ‖ N(0, I))``, which does not depend on θ.

    The bound is defined for discrete images. Any other image (a generated one) is measured as it would be saved: every pixel is
    rounded to its nearest value, in all terms.

    Raises:
        ValueError: ``levels`` below 1, a process that is not a DDPM, or a schedule of a single timestep.
    """

    NAME = "Elbo"
    VERSION = 1

    levels: int

    def __post_init__(self):
        if self.levels < 1:
            raise FieldError(self, "levels", "a pixel's largest value (255 for 8 bits) must be at least 1")
        small_variances(self.schedule)

    def proposal(self) -> Proposal:
        """In proportion to the weights (``proposing``), mixed with 10 % uniform draws; t = 1 is a stratum of its own.

        The decoder's term has the share of a squared error with the variance σ_1² := σ_2².
        """
        return Proposal.weighted(loss_weights(proposing(self.ddpm), self._variances), first_apart=True)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        level = nearest_level(x0, self.levels)
        x0 = value(level, self.levels)
        output = self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)
        error = self.process.target(x0, t, noise) - output
        divergence = lookup(self._weights, t, x0.dtype) * error.square().flatten(1).sum(1)
        # The mean of p_θ(x_0 | x_1) is the predicted image (eq. 11 at t = 1).
        deviation = float(self.ddpm.image_error[1]) * error
        reconstruction = -log_probability(level, deviation, math.sqrt(self._variances[0]), self.levels).flatten(1).sum(1)
        return self.schedule.T * torch.where(t == 1, reconstruction, divergence) + self._prior(x0)

    def _prior(self, x0: Tensor) -> Tensor:
        bar = float(self.schedule.alpha_bars[-1])
        constant = -bar - math.log1p(-bar)
        return (bar * x0.square() + constant).flatten(1).sum(1) / 2

    @cached_property
    def _variances(self) -> np.ndarray:
        return small_variances(self.schedule)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.append(0, loss_weights(self.ddpm, self._variances))
