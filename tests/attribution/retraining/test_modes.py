"""The rule that chooses a mode."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from attribution.retraining.modes import LARGEST, Alone, Auto, Together
from attribution.training.recipe import Recipe
from tests import worlds


def recipe(batch_size: int) -> Recipe:
    return Recipe(steps=1, batch_size=batch_size)


@pytest.mark.parametrize(("excess", "mode"), [(0, Together), (1, Alone)])
def test_auto_compares_parameters_pixels_and_batch_with_the_limit(excess, mode):
    """Claim: together up to LARGEST = parameters × pixels × batch size, and alone beyond, with the settings of auto."""
    with torch.device("meta"):
        network = nn.Linear(1000, 1000, bias=False)
    chosen = Auto(group=3, save_seconds=7).choose(network, (5, 10, 8), recipe(int(LARGEST / 80e6) + excess))
    assert chosen == (Together(group=3, save_seconds=7) if mode is Together else Alone(save_seconds=7))


def test_frozen_parameters_do_not_count():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(1000, 1000, bias=False).requires_grad_(False), nn.Linear(10, 10))
    assert isinstance(Auto().choose(network, (1, 10, 10), recipe(10_000)), Together)


def test_dropout_is_trained_alone():
    """Claim: a network with dropout is trained alone, and one whose dropout is 0 together."""
    for dropout, mode in ((0.1, Alone), (0.0, Together)):
        assert isinstance(Auto().choose(functools.partial(worlds.UNET, dropout=dropout)(), (1, 8, 8), recipe(10)), mode)


def test_a_compiled_network_is_trained_alone():
    """Claim: a small network is trained alone if it is compiled, which ``Together`` refuses."""
    chosen = Auto().choose(nn.Linear(1, 1), (1, 1, 1), replace(recipe(1), compiler="inductor"))
    assert isinstance(chosen, Alone)


@pytest.mark.parametrize("mode", [Together(group=5), Alone(save_seconds=3)])
def test_a_named_mode_stays(mode):
    assert mode.choose(nn.Linear(1, 1), (1, 1, 1), recipe(1)) is mode


def test_auto_does_not_train():
    with pytest.raises(TypeError, match="call choose"):
        Auto().prepare(nn.Linear(1, 1), Recipe(steps=1, batch_size=1))
