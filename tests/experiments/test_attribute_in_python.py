"""``attribution.attribute``: the scores of the command line in one call."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attribution
from attribution import attribute
from attribution.curvature import KFAC
from attribution.diffusion import DDPM, NoiseSchedule
from attribution.estimators import ReTrac
from attribution.estimators.by_name import ESTIMATORS, estimator_by_name
from attribution.execution import Execution
from attribution.images import Images
from attribution.images.draws import Even, Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory, describe
from attribution.training.loop_recorder import LoopRecorder
from experiments.models.experiment import Experiment
from experiments.tasks.composition import experiment_of
from experiments.tasks.settings import build
from tests.experiments.tasks.compositions import composed
from tests.worlds import Blobs

SMALL = ("data.n_train=6", "data.n_validation=4", "queries.n=2", "execution.device=cpu", "model.block_out_channels=[8,8]")
PROCESS = DDPM(NoiseSchedule(T=50, beta_end=0.2))


class Net(nn.Module):
    """A plain network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture(scope="module")
def world():
    """(network, train, queries)."""
    get: Any = None
    return Net(), Blobs(n=10).compute(get), Blobs(n=3, first=7).compute(get)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_estimators_are_those_of_the_command_line(name):
    """Claim: the same class with the same default settings, except that estimators over training take all checkpoints."""
    config = composed(f"estimator={name}", "seed=3", "curvature=ekfac" if name == "ekfac" else "curvature=kfac")
    expected = build(config, "estimator")
    found = estimator_by_name(name, build(config, "objective"), seed=3)
    if hasattr(expected, "checkpoints") and expected.checkpoints is not None:
        object.__setattr__(expected, "checkpoints", "all")
    assert describe(found) == describe(expected)


@pytest.mark.parametrize("name", ["kfac", "tracin"])
def test_scores_are_those_of_the_command_line(name, tmp_path):
    """Claim: the same model, images and draws have the same scores, from checkpoints and from final parameters."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(experiment_of(composed(*SMALL)).model())
        torch.save(networks[-1].state_dict(), tmp_path / f"{seed}.pt")
    over_training = name.startswith("tracin")
    paths = [str(tmp_path / f"{seed}.pt") for seed in range(2)]
    given = f"explained.paths=[{','.join(paths)}]", "explained.steps=[1,2]", "explained.learning_rates=[2,3]"
    explained = ("explained=checkpoints", *given, "estimator.checkpoints=all") if over_training else (
        "explained=checkpoint", f"explained.path={paths[1]}", "curvature.draws.n=2")  # fmt: skip
    config = composed(*SMALL, *explained, f"estimator={name}", "estimator.draws.n=2")
    experiment, get = experiment_of(config), InMemory()
    assert isinstance(experiment, Experiment)
    queries = build(config, "queries").node(experiment)
    estimator = build(config, "estimator")
    (expected,) = estimator.variants(estimator.score(experiment.trained, experiment.train, queries, get))
    of_curvature = {"curvature": KFAC(draws=Uniform(2), execution=Execution("cpu"))} if name == "kfac" else {}
    states = {"checkpoints": [networks[0].state_dict(), paths[1]], "learning_rates": [2.0, 3.0]} if over_training else {}
    found = attribute(
        networks[1],
        experiment.diffusion.process,
        get(experiment.train),
        get(queries),
        name,
        draws=2,
        execution=Execution("cpu"),
        **states,
        **of_curvature,
    )
    np.testing.assert_allclose(found.values, expected[1].values, rtol=1e-5, atol=1e-6 * np.abs(found.values).max())
    np.testing.assert_array_equal(found.train_index, expected[1].train_index)


def test_arrays_and_tensors_are_images(world):
    """Claim: uint8 arrays and float tensors of the same images have the same scores; ids are rows; half precision is float32."""
    network, train, queries = world
    floats = attribute(network, PROCESS, train.x0(), queries.x0(), "grad_dot", draws=4)
    bytes_ = attribute(network, PROCESS, train.pixels, queries.pixels, "grad_dot", draws=4)
    np.testing.assert_allclose(bytes_.values, floats.values, rtol=1e-5)
    assert floats.train_index.tolist() == list(range(10))
    rounded = Net()
    rounded.load_state_dict({name: tensor.half() for name, tensor in network.state_dict().items()})
    half = attribute(Net().half(), PROCESS, train.pixels, queries.pixels, "grad_dot", draws=4)
    np.testing.assert_allclose(half.values, attribute(rounded, PROCESS, train.pixels, queries.pixels, "grad_dot", draws=4).values)


def test_several_values_of_a_setting_and_a_shared_get(world):
    """Claim: scores at each value are those of a call of their own; an estimator object is taken as it is."""
    network, train, queries = world
    get, small = InMemory(), {"draws": 2, "curvature": KFAC(draws=Uniform(2))}
    swept = attribute(network, PROCESS, train, queries, "kfac", damping=[1e-6, 1e-3], get=get, **small)
    assert swept.values.shape == (2, 3, 10)
    one = attribute(network, PROCESS, train, queries, "kfac", damping=1e-3, get=get, **small)
    np.testing.assert_array_equal(swept.at(settings={"estimator.damping": 1e-3}).values, one.values)
    by_name = attribute(network, PROCESS, train, queries, "retrac", checkpoints=[network], draws=3)
    retrac = ReTrac(measurement=Loss(PROCESS), draws=Even(3), checkpoints="all")
    np.testing.assert_array_equal(attribute(network, PROCESS, train, queries, retrac, checkpoints=[network]).values, by_name.values)


def test_a_network_that_changes_in_place_is_another_model(world):
    """Claim: a shared get does not return the scores of earlier weights, of more trainable parameters or of other modules."""
    _, train, queries = world
    network, get = Net(), InMemory()
    before = attribute(network, PROCESS, train, queries, "grad_dot", draws=2, get=get).values
    nn.init.zeros_(network.last.weight)
    zero = attribute(network, PROCESS, train, queries, "grad_dot", draws=2, get=get).values
    assert not np.allclose(before, zero)
    network.first.requires_grad_(False)
    frozen = attribute(network, PROCESS, train, queries, "grad_dot", draws=2, get=get).values
    np.testing.assert_array_equal(frozen, attribute(network, PROCESS, train, queries, "grad_dot", draws=2).values)
    nn.init.normal_(network.last.weight)
    partly = attribute(network, PROCESS, train, queries, "grad_dot", draws=2, get=get).values
    network.add_module("last", nn.Sequential(nn.ReLU(), network.last))
    assert not np.allclose(partly, attribute(network, PROCESS, train, queries, "grad_dot", draws=2, get=get).values)


def test_a_record_is_read(world, tmp_path):
    """Claim: estimators over training take the visits of a recorded loop."""
    network, train, queries = world
    recorder = LoopRecorder(tmp_path)
    recorder.before_step(train.ids(), torch.arange(10), learning_rate=0.5)
    recorder.after_step(network, 1.0)
    recorder.save(network)
    scores = attribute(network, PROCESS, train, queries, "tracin", record=tmp_path, draws=2)
    doubled = LoopRecorder(tmp_path / "doubled")
    doubled.before_step(train.ids(), torch.arange(10), learning_rate=1.0)
    doubled.after_step(network, 1.0)
    doubled.save(network)
    twice = attribute(network, PROCESS, train, queries, "tracin", record=tmp_path / "doubled", draws=2)
    np.testing.assert_allclose(twice.values, 2 * scores.values, rtol=1e-5)


def test_checkpoints_before_the_first_epoch_are_left_out(world, tmp_path):
    """Claim: of a record, estimators that take recorded visits use the checkpoints by which every image was visited."""
    network, train, queries = world
    scores = []
    for name, every in (("all", 1), ("late", 2)):
        recorder = LoopRecorder(tmp_path / name, every=every)
        for half in (slice(0, 5), slice(5, 10)):
            recorder.before_step(train.ids(half), torch.arange(5), noise_seeds=torch.arange(5), learning_rate=1.0)
            recorder.after_step(network, 1.0)
        recorder.save(network)
        scores.append(attribute(network, PROCESS, train, queries, "tracin", record=tmp_path / name, draws=2).values)
    np.testing.assert_array_equal(scores[0], scores[1])


def test_numbers_of_numpy_are_numbers(world):
    """Claim: settings, steps and learning rates may be NumPy's or torch's; bfloat16 images are float32."""
    network, train, queries = world
    swept = attribute(network, PROCESS, train, queries, "trak", draws=np.int64(2), damping=np.array([1e-3, 1e-2]))
    assert swept.values.shape == (2, 3, 10)
    given: Any = {"checkpoints": [network], "draws": 2, "steps": np.array([7]), "learning_rates": torch.tensor([0.5])}
    expected = attribute(network, PROCESS, train, queries, "tracin", **{**given, "steps": [7], "learning_rates": [0.5]})
    np.testing.assert_array_equal(attribute(network, PROCESS, train, queries, "tracin", **given).values, expected.values)
    half = train.x0().bfloat16()
    rounded = attribute(network, PROCESS, half.float(), queries, "raw_dot").values
    np.testing.assert_array_equal(attribute(network, PROCESS, half, queries, "raw_dot").values, rounded)


class Classes(Net):
    """A network with three classes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return super().forward(x, t) + self.table(class_labels)[:, :, None, None]


NET = Net()
LABELLED = Images(np.zeros((4, 1, 8, 8), np.uint8), np.arange(4), np.arange(4), condition=np.arange(4))


class Wide(Net):
    """A network that returns another shape than its input's."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t).mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": {}}, "network has the type dict: give a torch.nn.Module"),
        ({"process": DDPM}, "process is the class DDPM: give a process"),
        ({"process": NoiseSchedule()}, "process has the type NoiseSchedule"),
        ({"estimator": None}, "estimator has the type NoneType: give one of kfac"),
        ({"estimator": ReTrac(measurement=Loss(PROCESS), draws=Even(3)), "execution": Execution()}, "execution: set it in"),
        ({"objective": Loss(DDPM(NoiseSchedule(T=3)))}, "objective is a loss of another process"),
        ({"train": np.zeros((2, 3, 8, 8), np.uint8)}, "train: the network cannot denoise images [3, 8, 8]"),
        ({"queries": np.zeros((2, 3, 8, 8), np.uint8)}, "queries: the network cannot denoise images [3, 8, 8]"),
        ({"queries": np.full((2, 1, 8, 8), np.nan)}, "not finite"),
        ({"network": nn.Sequential(nn.Conv2d(1, 1, 1))}, "a network called as network(x, t)"),
        ({"network": Classes(), "train": LABELLED, "queries": LABELLED}, "images [1, 8, 8] of the classes 0 to 3 (IndexError"),
        ({"parameters": ["up"]}, "is not a regular expression"),
        ({"network": Wide()}, "the network returns (1, 1, 1) for an image of (1, 8, 8)"),
        ({"steps": [1]}, "steps: give checkpoints as well"),
        ({"learning_rates": [1.0]}, "learning_rates: give checkpoints as well"),
        ({"record": "x", "learning_rates": [1.0]}, "give either record"),
        ({"checkpoints": Net()}, "checkpoints has the type Net: give a list"),
        ({"checkpoints": [NET.state_dict(), NET]}, "checkpoints 0 and 1 are the same tensors"),
        ({"checkpoints": [3]}, "a checkpoint has the type int"),
        ({"checkpoints": [Net()], "learning_rates": 0.1}, "learning_rates has the type float: give a list"),
        ({"projection": 512}, "projection=512: give an object of the class Projection, such as attribution.projection"),
        ({"measurement": "loss"}, "measurement='loss': give an object of the class Measure"),
        ({"draws": 2.5}, "draws=2.5: give a number of draws, or an object of the class DrawScheme"),
        ({"estimator": "kfac", "curvature": "ekfac"}, "curvature='ekfac': give an object of the class Curvature"),
    ],
)
def test_wrong_kinds_of_arguments(world, arguments, message):
    """Claim: they are refused in a sentence before anything is computed."""
    network, train, queries = world
    given = {"network": network, "process": PROCESS, "train": train, "queries": queries, "estimator": "trak", **arguments}
    with pytest.raises(ValueError, match=r"\w") as refused:
        attribute(**given)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kfak", {}, "there is no such estimator; did you mean kfac; choose from kfac, ekfac, trak"),
        ("kfac", {"dampin": 1}, "dampin=1: kfac has no such setting; did you mean damping"),
        ("kfac", {"damping": -1}, "damping=-1: must be a number, at least 0"),
        ("tracin", {}, "TracIn needs the record"),
        ("tracin", {"checkpoints": []}, "give at least one checkpoint"),
        ("tracin", {"checkpoints": [{}]}, "a checkpoint differs from Net in first.weight"),
        ("tracin", {"checkpoints": [Net()], "record": "x"}, "give either record"),
        ("tracincp", {"checkpoints": [Net()], "weighted": True}, "without learning rates"),
        ("tracin", {"record": "nowhere"}, "is no folder with a record"),
    ],
)
def test_wrong_arguments(world, name, settings, message):
    """Claim: they are refused with the names that can be chosen."""
    with pytest.raises(ValueError, match=r"\w") as refused:
        attribute(world[0], PROCESS, world[1], world[2], name, **settings)
    assert message in str(refused.value)


@pytest.mark.parametrize("images", [np.zeros((3, 8, 8)), np.zeros((0, 1, 8, 8)), np.zeros((3, 1, 8, 8), int)])
def test_wrong_images(world, images):
    """Claim: arrays of other shapes and types, and none at all, are refused."""
    with pytest.raises(ValueError, match="give"):
        attribute(world[0], PROCESS, images, world[2], "grad_dot")


class Classified(Net):
    """A network with a table of three classes, the last of which is for none."""

    null_class: int | None = 2

    def forward(self, x: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        return super().forward(x * (1 + kind[:, None, None, None]), t)


def test_classes_that_the_network_does_not_have_are_refused(world):
    """Claim: a class beyond the table, and dropped classes without a class for none, are refused before anything is computed."""
    _, train, queries = world
    train, queries = (dataclasses.replace(images, condition=images.label) for images in (train, queries))
    network = Classified()
    loss = Loss(PROCESS, condition_dropout=0.5)
    assert attribute(network, PROCESS, train, queries, "trak", objective=loss, draws=2).values.shape == (3, 10)
    with pytest.raises(ValueError, match=r"train has classes 0\.\.3, but Classified has a table of 0\.\.2: give these, or -1"):
        attribute(network, PROCESS, dataclasses.replace(train, condition=train.label * 3), queries, "trak", draws=2)
    network.null_class = None
    with pytest.raises(ValueError, match="Classified has no class for that: give it an attribute null_class, or set condition"):
        attribute(network, PROCESS, train, queries, "trak", objective=loss, draws=2)


def test_importing_is_light():
    """Claim: ``import attribution`` imports nothing but itself; its functions import what they need when they are used."""
    code = "import sys, attribution; assert not {'torch', 'numpy', 'diffusers', 'lightning'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'attributes'"):
        _ = attribution.attributes
