"""Several measures in one forward pass: gradients of each are those that it has alone."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attribution.gradients.per_example import PerExampleGradients, contracted_together
from attribution.measurements import Elbo, LossAtT, Measure, OutputMean, SquareNorm
from tests.attribution.gradients.test_gradients import BENT, LOSS, Net, assert_close, batch, randomized
from tests.worlds import PROCESS, UNET


@dataclass(frozen=True)
class Overwriting(Measure):
    """The mean of a function of the output, which it changes in place."""

    def __call__(self, denoise, x0, t, noise, condition=None):
        return denoise(self.process.add_noise(x0, t, noise), t).mul_(2).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Twice(Measure):
    """A loss at the image that the network's own output makes."""

    def __call__(self, denoise, x0, t, noise, condition=None):
        first = denoise(self.process.add_noise(x0, t, noise), t)
        return denoise(self.process.add_noise(x0 + 0.1 * first, t, noise), t).square().flatten(1).mean(1)


TOGETHER = [LOSS, SquareNorm(PROCESS), OutputMean(PROCESS), LossAtT(PROCESS, 7), Elbo(PROCESS, 16), Overwriting(PROCESS)]


@functools.cache
def alone(measure, batch_size):
    """The gradients of one measure by itself, of the network and the inputs of the next test."""
    return PerExampleGradients(randomized(UNET()), batch_size).capture(measure, *batch(3, 2, size=8, channels=1)).mean()


@pytest.mark.parametrize("batch_size", [1000, 4, 1])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.slow
def test_measures_together_are_measures_apart(batch_size, order):
    """Claim: gradients of several measures at once are those of each alone, to the last bit, whether or not they share passes."""
    model = randomized(UNET())
    x0, draws = batch(3, 2, size=8, channels=1)
    gradients = PerExampleGradients(model, batch_size)
    measures = [*TOGETHER, Twice(PROCESS)][::order]
    captures = [gradients.capture(measure, x0, draws) for measure in measures]
    found = contracted_together(captures, [[None]] * len(measures))
    for measure, (mean,) in zip(measures, found, strict=True):
        expected = alone(measure, batch_size)
        assert expected.keys() == mean.keys()
        assert all(torch.equal(mean[name], expected[name]) for name in expected), measure


def test_measures_of_the_same_output_take_one_evaluation(monkeypatch):
    """Claim: the loss and functions of the output evaluate the network once; a loss at another timestep once more."""
    model = randomized(UNET())
    x0, draws = batch(3, 2, size=8, channels=1)
    gradients = PerExampleGradients(model)
    evaluated, forward = [], type(model).forward
    captures = [gradients.capture(measure, x0, draws) for measure in (*TOGETHER[:3], TOGETHER[3])]
    monkeypatch.setattr(type(model), "forward", lambda self, *given, **named: evaluated.append(1) or forward(self, *given, **named))
    contracted_together(captures[:3], [[None]] * 3)
    assert len(evaluated) == 1
    contracted_together(captures, [[None]] * 4)
    assert len(evaluated) == 1 + 2


def test_checkpointed_layers_serve_several_measures():
    """Claim: gradient checkpointing, which runs layers again in every backward pass, changes no gradient."""
    parts = {"first": nn.Conv2d(4, 4, 3, padding=1), "a": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(4, 4, 3, padding=1)}
    model = randomized(Net(lambda m, x: m.c(checkpoint(lambda x: torch.tanh(m.a(x)), m.first(x), use_reentrant=False)), **parts))
    x0, draws = batch()
    gradients = PerExampleGradients(model)
    captures = [gradients.capture(measure, x0, draws) for measure in (BENT, SquareNorm(PROCESS))]
    for captured, (mean,) in zip(captures, contracted_together(captures, [[None], [None]]), strict=True):
        assert_close(mean, captured.mean())
