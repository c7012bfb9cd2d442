"""The rehearsal of training, and networks that it refuses."""

import pytest
import torch

from attribution.checks import FieldError
from attribution.nodes import InMemory
from experiments.models.rehearsal import rehearse
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks import bad_networks
from tests.experiments.tasks.test_configs import TINY, composed


def experiment(**fields):
    """The tiny experiment with other fields."""
    made = experiment_of(composed(*TINY))
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize("network", [bad_networks.Network, bad_networks.NotOnMeta])
def test_a_valid_network_passes_and_trains(network):
    """Claim: a rehearsal changes no random numbers; a constructor that fails on the meta device is no obstacle to training."""
    valid = experiment(model=network)
    state = torch.get_rng_state()
    rehearse(valid)
    assert torch.equal(torch.get_rng_state(), state)
    assert valid.trained.parameter_count == 10
    assert InMemory()(valid.trained).steps == [3, 6]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (bad_networks.ReturnsTuple, "returns a tuple"),
        (bad_networks.DropsChannel, "for an image of"),
        (bad_networks.Mixing, "depends on the other images of its batch"),
        (bad_networks.Noisy, "random in eval mode"),
        (bad_networks.Frozen, "no trainable parameter"),
        (bad_networks.Detached, "does not depend on a trainable parameter"),
        (bad_networks.Half, "fails on images of 1×8×8"),
        (bad_networks.FixedSize, "fails on images of 1×8×8"),
        (bad_networks.FailsToConstruct, "cannot be constructed (RuntimeError: no network today)"),
        (bad_networks.NotANetwork, "constructs a function"),
    ],
)
def test_a_bad_network_is_refused(network, said):
    """Claim: the error is of the field ``model`` and says what is wrong in one line."""
    with pytest.raises(FieldError) as refused:
        rehearse(experiment(model=network))
    assert refused.value.field == "model"
    assert said in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0), lambda p: torch.optim.Adam(p, lr=-1), lambda p: None])
def test_a_bad_optimizer_is_refused(optimizer):
    """Claim: one that cannot be constructed, cannot take a step, or would change nothing."""
    with pytest.raises(FieldError) as refused:
        rehearse(experiment(optimizer=optimizer))
    assert refused.value.field == "optimizer"
