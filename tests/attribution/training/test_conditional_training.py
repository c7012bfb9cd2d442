"""Training that drops conditions at random: the record has what was dropped, and replay and retraining repeat it."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attribution.images.draws import random_draws
from attribution.measurements import Loss
from attribution.nodes import InMemory
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Together
from attribution.retraining.selection import Selection
from attribution.training.record import TrainingRecord
from attribution.training.replay import replay_gradient
from tests.conditional_networks import DIT
from tests.worlds import PROCESS, UNET, Conditioned, trained

OBJECTIVE = Loss(PROCESS, condition_dropout=0.4)
NETWORKS = {"unet": functools.partial(UNET, num_class_embeds=3, dropout=0.0), "dit": functools.partial(DIT, num_embeds_ada_norm=2)}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def world(request):
    """(get, node, record) of a recorded training of 12 steps."""
    get = InMemory()
    node = trained(model=NETWORKS[request.param], data=Conditioned(), objective=OBJECTIVE)
    return get, node, get(node)


def replayed(get, node, record, step: int) -> dict[str, torch.Tensor]:
    network = node.network(get, step)
    gradients = replay_gradient(network, node.objective, record, get(node.data), step)
    optimizer = torch.optim.SGD(network.parameters(), lr=float(record.step_table[step]["learning_rate"][0]))
    for name, parameter in network.named_parameters():
        parameter.grad = gradients[name]
    optimizer.step()
    return network.state_dict()


def test_a_step_with_dropped_conditions_is_reproduced_bit_for_bit(world):
    """Claim: the record of each visit says whether its condition was dropped, and with it a step is reproduced; not without."""
    get, node, record = world
    visits = record.visits_of_step(5)
    assert 0 < visits["condition_dropped"].sum() < len(visits)
    expected = record.parameters(6)
    found = replayed(get, node, record, 5)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = TrainingRecord(record.folder)
    tampered = np.array(record.visits)
    tampered["condition_dropped"] ^= True
    other.__dict__["visits"] = tampered
    found = replayed(get, node, other, 5)
    assert not all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_dropped_is_a_function_of_seed_example_and_step(world):
    """Claim: the record has the draws of ``random_draws``, and the latest draws of examples have it too."""
    _, node, record = world
    visits = record.visits_of_step(7)
    ids = torch.from_numpy(visits["example"].copy())
    draws = random_draws(node.seed, "training", ids[:, None], torch.tensor(7), PROCESS.T, True, 0.4)
    np.testing.assert_array_equal(draws.condition_dropped[:, 0], visits["condition_dropped"])
    latest = record.latest_draws(8, visits["example"]).condition_dropped
    np.testing.assert_array_equal(latest[:, 0], visits["condition_dropped"])


def test_records_without_dropout_are_as_they_were():
    """Claim: without dropout a record has neither the column nor another schema, and the objective has its old identity."""
    get, node = InMemory(), trained(model=NETWORKS["unet"], data=Conditioned())
    record = get(node)
    assert record.info["schema"] == 1
    assert "condition_dropped" not in record.visits.dtype.names
    assert "condition_dropout" not in str(node.description())
    assert "condition_dropout" in str(replace(node, objective=OBJECTIVE).description())


@pytest.mark.parametrize("mode", [Together(), Alone()], ids=["together", "alone"])
def test_retraining_drops_what_training_dropped(world, mode, tmp_path):
    """Claim: trained again on all images with its seed, a model has the recorded parameters; a subset is trained beside it."""
    get, node, _ = world
    steps = replace(node.recipe, steps=4)
    recorded = get(replace(node, recipe=steps)).final_parameters()
    images, everything = get(node.data), np.arange(node.data.count)
    selections = [(3, Selection(everything)), (4, Selection(everything[::2]))]
    members = [Member(seed, selection, tmp_path / str(seed)) for seed, selection in selections]
    for member in members:
        member.folder.mkdir()
    fit_together(members, images, node.model, OBJECTIVE, node.optimizer, steps, mode, node.flips)
    for name, tensor in load_file(members[0].parameters).items():
        torch.testing.assert_close(tensor, recorded[name], rtol=1e-8, atol=1e-10)
