"""Draws are a pure function of (seed, role, example, draw number)."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from attribution.checks import FieldError
from attribution.images import philox
from attribution.images.draws import Draws, Even, Fixed, Uniform, random_draws
from attribution.images.weighted import Weighted
from attribution.images.window import Window
from attribution.nodes import describe

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


@pytest.mark.parametrize(
    "scheme", [Uniform(7, seed=3), Even(5, noises=2, seed=3), Fixed([4, 999], noises=3, seed=3), Window(7, 20, 30, seed=3)]
)
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


def test_a_window_is_uniform_within_its_ends():
    """Claim: t covers low..high evenly, both ends included; noise and flips are those of Uniform, and the first k are Window(k)."""
    examples = torch.arange(500)
    draws = Window(100, low=3, high=12).draw("train", examples, 40, flips=True)
    counts = torch.bincount(draws.timestep.flatten(), minlength=41)
    assert counts[:3].sum() == counts[13:].sum() == 0
    assert stats.chisquare(counts[3:13].numpy()).pvalue > 1e-3
    uniform = Uniform(100).draw("train", examples, 40, flips=True)
    assert torch.equal(draws.noise_seed, uniform.noise_seed)
    assert torch.equal(draws.flip, uniform.flip)
    assert equal(draws.columns(slice(8)), Window(8, low=3, high=12).draw("train", examples, 40, flips=True))
    assert equal(Window(5, low=1, high=40).draw("query", examples, 40), Uniform(5).draw("query", examples, 40))


SHARING = [Uniform(6, seed=3), Window(6, 3, 12, seed=3), Weighted(n=6, weights=[1, 2], seed=3)]


@pytest.mark.parametrize("scheme", SHARING, ids=lambda scheme: type(scheme).__name__)
def test_shared_draws_are_the_same_for_all_images(scheme):
    """Claim: every image of either side has the draws of one image of the unshared scheme; a side may take more of them."""
    shared, examples = replace(scheme, shared=True, train=4), torch.tensor([5, 2**40, 0])
    query = shared.side("query").draw("query", examples, 40, flips=True)
    train = shared.side("train").draw("attribution", examples.flip(0), 40, flips=True)
    alone = scheme.draw("shared", torch.tensor([0]), 40, flips=True)
    assert equal(query, alone.rows(torch.zeros(3, dtype=torch.int64)))
    assert equal(train, query.columns(slice(4)))
    assert describe(replace(scheme, shared=True)) != describe(scheme)


def test_shared_draws_change_no_older_identity():
    """Claim: uniform draws and windows without sharing are described as before; shared ones are in no groups."""
    assert "shared" not in describe(Uniform(4))
    assert "shared" not in describe(Window(4))
    with pytest.raises(FieldError, match=r"Uniform.replicates=2: groups of draws that all images share"):
        Uniform(4, replicates=2, shared=True)


@pytest.mark.parametrize("scheme", [Uniform, Even, Window])
def test_each_side_has_its_number(scheme):
    """Claim: the draws of a side are those of the scheme with this side's number; without ``train`` the sides are alike."""
    both = scheme(8, seed=3, train=5)
    assert both.side("query") == scheme(8, seed=3)
    assert both.side("train") == scheme(5, seed=3)
    assert (both.side("query").count, both.side("train").count) == (8, 5)
    assert both.pairs == [(8, 5)]
    alike = scheme(8, seed=3)
    assert alike.side("query") == alike.side("train") == alike
    assert alike.pairs == [(8, 8)]
    assert Fixed([4, 9]).side("train") == Fixed([4, 9])


def test_noises_count_on_both_sides():
    """Claim: the number of even timesteps is a side's own, the noises at each of them are common to both."""
    assert Even(8, noises=3, train=5).pairs == [(24, 15)]


@pytest.mark.parametrize("scheme", [Uniform, Window])
def test_lists_of_numbers_go_in_pairs(scheme):
    """Claim: a list of n takes one number of training draws, a list of its length in the order of n, or as many as n."""
    assert scheme([4, 2]).pairs == [(2, 2), (4, 4)]
    assert scheme([4, 2], train=3).pairs == [(2, 3), (4, 3)]
    paired = scheme([4, 2], train=[1, 6])
    assert paired.pairs == [(2, 6), (4, 1)]
    assert paired.side("train").prefixes == [1, 6]
    assert paired.at(2, 6) == scheme(2, train=6)


@pytest.mark.parametrize("scheme", [Uniform, Even, Window])
def test_as_many_draws_of_either_side_are_one_scheme(scheme):
    """Claim: a number of training draws that equals n changes no identity, and neither does null."""
    assert describe(scheme(8, train=8)) == describe(scheme(8, train=None)) == describe(scheme(8))
    assert describe(scheme(8, train=7)) != describe(scheme(8))
    assert "train" not in describe(Uniform(8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Uniform(4, train=0), ["Uniform.train=0"]),
        (lambda: Uniform(4, train=[2]), ["Uniform.train=[2]", "list n"]),
        (lambda: Uniform([2, 4], train=[2]), ["Uniform.train=[2]", "list n"]),
        (lambda: Uniform([2, 2], train=[2, 3]), ["Uniform.n=[2, 2]", "once"]),
        (lambda: Even(4, train=[2]), ["Even.train=[2]", "one number"]),
        (lambda: Even(4, train=11).check(10), ["Even.train=11", "10"]),
        (lambda: Window(4, low=0), ["Window.low=0"]),
        (lambda: Window(4, low=9, high=8), ["Window.high=8", "low=9"]),
        (lambda: Window(4, low=9, high=11).check(10), ["Window.high=11", "high <= 10"]),
        (lambda: Window(4).draw("query", torch.tensor([0]), 10), ["Window.high=500"]),
        (lambda: Uniform(4, train=2).refuse_sides("there is one side"), ["Uniform.train=2", "leave it null"]),
    ],
)
def test_impossible_sides_and_windows_name_the_field(make, words):
    """Claim: the error names the field and what to set, before anything is drawn."""
    with pytest.raises(FieldError) as error:
        make()
    assert all(word in str(error.value) for word in words)


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


def test_draws_are_on_the_device_of_the_examples():
    """Claim: a training step on a device makes its draws there, though the number of the step is on the CPU."""
    draws = random_draws(3, "training", torch.arange(4, device="meta")[:, None], torch.tensor(5), T, flips=True)
    assert {draws.timestep.device.type, draws.noise_seed.device.type, draws.flip.device.type} == {"meta"}
