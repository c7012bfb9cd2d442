"""Draws are a pure function of (seed, role, example, draw number)."""

import pytest
import torch
from scipy import stats

from attribution.checks import FieldError
from attribution.images import philox
from attribution.images.draws import Draws, Even, Fixed, Uniform, random_draws

T = 1000


def equal(a: Draws, b: Draws) -> bool:
    return torch.equal(a.timestep, b.timestep) and torch.equal(a.noise_seed, b.noise_seed) and torch.equal(a.flip, b.flip)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, 0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_is_philox(key, counter, expected):
    """Claim: the words are those of Random123's published known-answer vectors for Philox4x32-10."""
    word = torch.tensor([counter])
    assert tuple(int(w) for w in philox.philox(key, key, (word, word, word, word))) == expected


def test_normal_numbers_are_standard_normal():
    """Claim: numbers pooled over seeds pass a Kolmogorov-Smirnov test, and neighbors are uncorrelated."""
    numbers = philox.normal(torch.arange(500), 200)
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[0, 1]) < 0.01


def test_normal_numbers_depend_on_seed_and_position_alone():
    """Claim: a number is the same alone and in a batch, and a shorter request is a prefix of a longer one."""
    seeds = torch.tensor([5, -7, 2**62, 3])
    together = philox.normal(seeds, 37)
    for row, seed in enumerate(seeds):
        torch.testing.assert_close(philox.normal(seed[None], 37)[0], together[row])
    torch.testing.assert_close(philox.normal(seeds, 11), together[:, :11])


@pytest.mark.parametrize("scheme", [Uniform(7, seed=3), Even(5, noises=2, seed=3), Fixed([4, 999], noises=3, seed=3)])
def test_a_draw_does_not_depend_on_the_others(scheme):
    """Claim: an example's draws are the same alone, in any order and in any batch."""
    examples = torch.tensor([11, 0, 2**40, 5])
    together = scheme.draw("query", examples, T, flips=True)
    for row, example in enumerate(examples):
        assert equal(scheme.draw("query", example[None], T, flips=True), together.rows(slice(row, row + 1)))
    backwards = scheme.draw("query", examples.flip(0), T, flips=True)
    assert equal(backwards.rows(torch.tensor([3, 2, 1, 0])), together)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"role": "train"}, {"example": torch.tensor([[8]])}, {"number": torch.tensor([1])}]
)
def test_every_argument_matters(change):
    """Claim: another seed, role, example or draw number gives another noise."""
    arguments = {"seed": 0, "role": "query", "example": torch.tensor([[7]]), "number": torch.tensor([0]), "T": T}
    assert random_draws(**arguments).noise_seed != random_draws(**{**arguments, **change}).noise_seed


def test_first_draws_of_many_are_the_draws_of_few():
    """Claim: the first k of Uniform(n) are Uniform(k) (docs/methods.md, Draws), so that one pass gives a curve over k."""
    examples = torch.arange(4)
    assert equal(Uniform(50).draw("query", examples, T).columns(slice(8)), Uniform(8).draw("query", examples, T))


def test_uniform_timesteps_and_flips_are_uniform():
    """Claim: t covers 1..T evenly, flips are fair, and there are none by default."""
    draws = Uniform(100).draw("train", torch.arange(500), 10, flips=True)
    counts = torch.bincount(draws.timestep.flatten(), minlength=11)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
    assert stats.binomtest(int(draws.flip.sum()), draws.flip.numel()).pvalue > 1e-3
    assert not Uniform(100).draw("train", torch.arange(500), 10).flip.any()


def test_even_timesteps():
    """Claim: t_j = 1 + ⌊jT/n⌋, each with m noises; n = T is every timestep once."""
    draws = Even(4, noises=2).draw("query", torch.tensor([1]), 10)
    assert draws.timestep.tolist() == [[1, 1, 3, 3, 6, 6, 8, 8]]
    assert len(draws.noise_seed.unique()) == 8
    assert Even(10).draw("query", torch.tensor([1]), 10).timestep.tolist() == [list(range(1, 11))]


def test_images_are_mirrored_where_the_draw_says():
    """Claim: a flip mirrors left to right and leaves other draws of the same image alone."""
    x0 = torch.arange(12.0).view(1, 1, 3, 4)
    flip = torch.tensor([[True, False]])
    images = Draws(torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long), flip).images(x0)
    assert torch.equal(images[0, 0], x0[0].flip(-1))
    assert torch.equal(images[0, 1], x0[0])


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Even(11).draw("query", torch.tensor([0]), 10), ["Even.n=11", "10"]),
        (lambda: Fixed([0, 5]).draw("query", torch.tensor([0]), 10), ["Fixed.timesteps=[0, 5]", "1..10"]),
        (lambda: Uniform(0), ["Uniform.n=0"]),
        (lambda: Even(5, noises=0), ["Even.noises=0"]),
        (lambda: Fixed([]), ["Fixed.timesteps=[]"]),
    ],
)
def test_impossible_draws_name_the_field(make, names):
    """Claim: the error names the field and its allowed values."""
    with pytest.raises(FieldError) as error:
        make()
    assert all(name in str(error.value) for name in names)
