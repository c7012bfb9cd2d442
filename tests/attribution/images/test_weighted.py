"""Draws in proportion to weights per timestep."""

import numpy as np
import pytest
import torch
from scipy import stats

from attribution.checks import FieldError
from attribution.images.draws import Uniform
from attribution.images.weighted import Weighted
from attribution.images.window import Window

EXAMPLES = torch.arange(500)


def test_timesteps_are_drawn_in_proportion_to_the_weights():
    """Claim: t has the probability of its stretch's weight, also where stretches do not divide T; weights of 0 are never drawn."""
    T, weights = 11, [0.0, 2.0, 0.5, 0.0]
    draws = Weighted(n=100, weights=weights).draw("query", EXAMPLES, T)
    expected = np.array([weights[(t - 1) * 4 // T] for t in range(1, T + 1)])
    counts = np.bincount(draws.timestep.flatten(), minlength=T + 1)[1:]
    drawn = expected > 0
    assert counts[~drawn].sum() == 0
    assert stats.chisquare(counts[drawn], counts.sum() * expected[drawn] / expected.sum()).pvalue > 1e-3


def test_equal_weights_are_uniform_draws_and_weights_of_one_are_windows():
    """Claim: noise and flips are those of Uniform, equal weights give its timesteps, and ones among zeros those of a window."""
    ids = torch.arange(50)
    uniform, window = Uniform(20, seed=3).draw("a", ids, 1000, True), Window(20, 101, 500, seed=3).draw("a", ids, 1000, True)
    equal = Weighted(n=20, seed=3, weights=[2, 2]).draw("a", ids, 1000, True)
    ones = Weighted(n=20, seed=3, weights=[0, 1, 1, 1, 1, 0, 0, 0, 0, 0]).draw("a", ids, 1000, True)
    assert torch.equal(equal.noise_seed, uniform.noise_seed)
    assert torch.equal(equal.flip, uniform.flip)
    assert torch.equal(equal.timestep, uniform.timestep)
    assert torch.equal(ones.timestep, window.timestep)


def test_first_draws_of_many_are_the_draws_of_few():
    """Claim: the first k of n draws are those of k, and no draw depends on the other examples."""
    many = Weighted(n=12, weights=[1, 3]).draw("query", EXAMPLES, 40)
    few = Weighted(n=5, weights=[1, 3]).draw("query", EXAMPLES[7:9], 40)
    assert torch.equal(many.timestep[7:9, :5], few.timestep)


def test_each_side_has_its_weights():
    """Claim: either side has its weights and its number; the same weights for both sides are one scheme."""
    both = Weighted(n=8, train=5, weights=[1, 0], train_weights=[0, 1])
    assert both.side("query") == Weighted(n=8, weights=[1, 0])
    assert both.side("train") == Weighted(n=5, weights=[0, 1])
    assert both.side("train").side("train") == both.side("train")
    assert both.pairs == [(8, 5)]
    assert Weighted(n=8, weights=[1, 2], train_weights=[1, 2]) == Weighted(n=8, weights=[1, 2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Weighted(n=4, weights=[]), ["Weighted.weights", "at least one"]),
        (lambda: Weighted(n=4, weights=[0, 0]), ["Weighted.weights", "above 0"]),
        (lambda: Weighted(n=4, weights=[1, -1]), ["Weighted.weights[1]=-1", "at least 0"]),
        (lambda: Weighted(n=4, weights=[1], train_weights=[0]), ["Weighted.train_weights", "above 0"]),
        (lambda: Weighted(n=4, weights=[1] * 11).check(10), ["Weighted.weights", "T=10", "at most"]),
        (lambda: Weighted(n=4, weights=[1], train_weights=[1] * 11).check(10), ["Weighted.train_weights"]),
        (lambda: Weighted(n=4, weights=[1], train_weights=[1, 2]).refuse_sides("recorded"), ["train_weights", "leave it null"]),
        (lambda: Weighted(n=[4, 8], weights=[1], replicates=2), ["Weighted.replicates"]),
    ],
)
def test_impossible_weights_name_the_field(make, words):
    """Claim: the error names the field and what to set, before anything is drawn."""
    with pytest.raises(FieldError) as error:
        make()
    assert all(word in str(error.value) for word in words)
