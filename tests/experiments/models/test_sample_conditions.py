"""Generated images of conditional models: which conditions they get, and what they are."""

import functools
from dataclasses import replace

import numpy as np
import torch

from attribution.diffusion import denoiser
from attribution.diffusion.samplers import DDIMSampler
from attribution.execution import Execution
from attribution.measurements import Loss
from attribution.nodes import InMemory
from experiments.models.sample_conditions import SampleConditions
from experiments.models.samples import Samples, _seed
from tests.worlds import PROCESS, UNET, Conditioned, trained

DATA = Conditioned()
MODEL = trained(model=functools.partial(UNET, num_class_embeds=3), data=DATA, objective=Loss(PROCESS, condition_dropout=0.3))
SAMPLER = DDIMSampler(steps=3, guidance=2.0)


def samples(n: int, choice, shard: int = 128, **changes) -> Samples:
    execution = Execution(device="cpu", shard=shard)
    node = Samples(trained=MODEL, sampler=SAMPLER, shape=(1, 8, 8), n=n, seed=4, execution=execution)
    return replace(node, **{"conditions": SampleConditions(DATA, choice), **changes})


def test_samples_have_the_conditions_of_training_images():
    """Claim: classes come in turn, or from random training images; sample i is the same in a longer list and in other shards."""
    get = InMemory()
    few, many = (get(samples(n, "in_turn", shard)) for n, shard in ((3, 128), (5, 2)))
    assert many.condition.tolist() == many.label.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(few.pixels, many.pixels[:3], atol=1e-5)
    random = get(samples(40, "training", sampler=DDIMSampler(steps=1)))
    assert set(random.condition.tolist()) == {0, 1}
    assert get(samples(7, "training", sampler=DDIMSampler(steps=1))).condition.tolist() == random.condition[:7].tolist()


def test_samples_are_guided_by_their_conditions():
    """Claim: each is what the sampler makes of its seed and class; its trajectory ends in it and has the class."""
    get = InMemory()
    node = samples(2, "in_turn")
    images, trajectories = get(node), get(node.trajectories)
    network = MODEL.network(get).float()
    seeds = torch.tensor([_seed(4, i) for i in range(2)])
    expected = SAMPLER.sample(denoiser(network), PROCESS, (1, 8, 8), seeds, condition=torch.tensor([0, 1]))
    np.testing.assert_allclose(images.pixels, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(trajectories.states[:, -1], images.pixels, atol=1e-5)
    assert trajectories.conditions(slice(1, 2)).tolist() == [1]


def test_conditions_are_a_part_of_the_identity_only_where_there_are_any():
    """Claim: without conditions, samples keep the identity that they had before there were any; another choice is another node."""
    plain = samples(2, "in_turn", conditions=None, sampler=DDIMSampler(steps=3))
    assert "conditions" not in plain.description()
    assert "guidance" not in str(plain.description())
    assert samples(2, "in_turn").fingerprint != samples(2, "training").fingerprint
