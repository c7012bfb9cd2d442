"""The parts of each random stream decide every random number: another role, part or order would silently change all results.

These tests freeze them. A new stream needs an entry here, which leaves all others as they are. If an entry has to change, so do
the results: raise VERSION in the classes that use it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.curvature.pseudo_gradients import _seed_of_v
from attribution.diffusion.samplers import noise_of
from attribution.estimators.embedding import Random
from attribution.execution import ranges
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import philox
from attribution.images.draws import Even, Fixed, Uniform
from attribution.images.proposals import Proposal
from attribution.images.stratified import Stratified
from attribution.images.window import Window
from attribution.nodes import InMemory
from attribution.training.order import epoch_order
from experiments.datasets.selection import random_order
from experiments.models.group_subsets import GroupSubsets, circular_orders
from experiments.models.planted import PlantedImages
from experiments.models.samples import _seed
from experiments.models.subsets import RandomSubsets, VariedSubsets
from tests.worlds import UNET, Blobs, trained

ROOT = Path(__file__).parent.parent
FILES = [*(ROOT / "attribution").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
UNSTORED = ("experiments/metrics", "experiments/speed", "experiments/report", "experiments/figures")
"""Rooms whose random numbers enter no stored result: intervals and timings."""

KEYS = {
    ("*", "*"): "draws: seed, role",
    ("*", "projection", "*"): "projections: seed, layer",
    ("*", "projection", "*", "*"): "Kronecker projections: seed, layer, factor",
    ("*", "dropout", "*", "*"): "training: seed, step, process",
    ("*", "dropout", "*", 0): "retraining: seed, step",
    ("*", "order", "*"): "training: seed, epoch",
    ("*", "random scores"): "random scores: seed",
    ("*", "sample", "*"): "generated images: seed, number",
    ("*", "condition", "*"): "conditions of generated images: seed, number",
    ("*", "choice", "*"): "choices of images: seed, role",
    ("sampler",): "noise of samplers",
    ("pseudo-gradient",): "outputs of the Fisher",
}
"""The parts of all keys of Philox; "*" stands for what is computed."""

ROLES = {
    "training", "query", "attribution", "curvature", "measurement", "datamodel", "norms", "norm curve", "reference norms",
    "retimed at *", "training at *", "loop *", "digits", "zeros", "folder", "rehearsal", "fit",
}  # fmt: skip
"""The roles of draws, and of choices of images without a setting."""

SETTINGS = {
    "data.n_train", "data.n_validation", "data.patches", "data.planes", "data.validation_patches",
    "data.validation_planes", "data.validation_zeros", "data.zeros",
}  # fmt: skip
"""The settings that are roles of choices of images."""

GENERATORS = {
    ("*", "*", 0x11554): "LiSSA: seed, repeat",
    ("*", 0x5B5E7): "subsets: seed",
    ("*", 0xC0F, "*"): "removals: seed, number",
    ("*", 0x517E): "subsets of varied size: seed",
    ("*", 0x6E0): "subsets of groups: seed",
    ("*", 0x11EA, "*"): "sets of a linearization: seed, size",
    ("*", 0xA77): "training images of each number: seed",
    ("*", 0x5A1E, "*"): "circular orders of groups: seed, number",
    ("*", 0x91A): "rows of planted images: seed",
    ("*", 0x91B): "noise of planted images: seed",
    ("*", 0): "examples of figures: seed",
    ("*", 1): "columns of correlations: seed",
    ("*", "*"): "held-out images of a label: seed, label",
    ("*",): "choices of queries: seed",
}
"""The seeds of NumPy's generators."""


WORDS = {
    (0, "training"): (245300195, 2033924913),
    (7, "training"): (841353232, 1842690471),
    (7, "query"): (3695419735, 4217786067),
    (7, "attribution"): (2481849904, 1877722905),
    (7, "curvature"): (4251456211, 1694722700),
    (7, "measurement"): (3900581386, 3310617775),
    (7, "datamodel"): (3206521116, 913903452),
    (7, "norms"): (3626608604, 3214242212),
    (7, "norm curve"): (1637714694, 206793868),
    (7, "reference norms"): (1995447522, 3612512617),
    (7, "retimed at 12"): (2699133416, 1045217107),
    (7, "training at 12"): (3378959742, 323741684),
    (7, "loop 12"): (3855393744, 551225823),
    (7, "random scores"): (2637490360, 899482010),
    (7, "sample", 3): (3615372617, 3278269337),
    (7, "dropout", 3, 0): (321234995, 716116298),
    (7, "order", 3): (381804681, 4247461215),
    (7, "projection", "conv_in"): (3656590894, 1009082572),
    (7, "projection", "conv_in", "out"): (3881721156, 2012030446),
    (7, "choice", "digits"): (4212673825, 942050838),
    (7, "choice", "zeros"): (3364755147, 4174807001),
    (7, "choice", "folder"): (1409718804, 2190612315),
    (7, "choice", "data.n_train"): (2680761307, 4046215917),
    ("sampler",): (1874977642, 22568414),
    ("pseudo-gradient",): (1347904386, 4293216004),
}  # fmt: skip
"""The two words of keys."""

NUMBERS = {
    "uniform": [180, 680, -948188528231182612, 1165767952343470063, 1, 1],
    "fixed": [-948188528231182612, -83149218122203349, 1633949204517204826, 1790518231145525887],
    "even": [1, 334, 667],
    "stratified": [222, 356, 504, 812, 58, 433, 653, 900],
    "window": [172, 372, -948188528231182612, 1165767952343470063],
    "noise": [0.9302586913108826, 0.5277451872825623, 0.715377151966095, -0.049153368920087814],
    "choice": [3, 7, 1, 6, 0, 5, 2, 4, 8],
    "order": [0, 5, 6, 3, 8, 1, 4, 7, 2],
    "samples": [1481306201598301034, 1720722513536196746],
    "sampler": [-1.1891368627548218, 1.0760438442230225],
    "pseudo-gradient": [1423073245889668432, 9158527075992298133],
    "random scores": [0.23676298558712006, -0.8978831768035889],
    "subsets": [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1],
    "varied subsets": [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1],
    "subsets of groups": [0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0],
    "circular orders of groups": [1, 5, 4, 2, 0, 3, 4, 0, 3, 2, 1, 5],
    "planted rows": [2, 3, 5, 0],
    "planted noise": [-0.7098039388656616, -0.9764705896377563, -0.5999999642372131, -0.8509804010391235],
}
"""The first numbers of streams."""

INTEGERS = (
    "uniform",
    "fixed",
    "even",
    "window",
    "stratified",
    "choice",
    "order",
    "samples",
    "pseudo-gradient",
    "subsets",
    "varied subsets",
    "subsets of groups",
    "circular orders of groups",
    "planted rows",
)
"""The streams of integers."""


def part(node: ast.expr) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else "*" for value in node.values)
    return "*"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """All calls in code whose random numbers enter stored results, with the last part of the function's name."""
    for file in FILES:
        if not file.relative_to(ROOT).as_posix().startswith(UNSTORED):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    yield ast.unparse(node.func), node


def test_the_parts_of_every_key_are_these():
    """Claim: no stream of Philox has parts, or an order of parts, that is not listed above."""
    assert {tuple(map(part, call.args)) for name, call in calls() if name == "philox.key"} == KEYS.keys()


def test_the_roles_are_these():
    """Claim: no draw or choice has a role that is not listed above."""
    arguments = {"draw": 0, "random_draws": 1, "random_order": 1, "features": 2}
    found = {part(call.args[at]) for name, call in calls() for end, at in arguments.items() if _is(name, end, call, at)}
    found |= {part(word.value) for _, call in calls() for word in call.keywords if word.arg == "role"}
    assert {role for role in found if role != "*"} == ROLES


def _is(name: str, end: str, call: ast.Call, at: int) -> bool:
    return name.rpartition(".")[2] == end and len(call.args) > at and isinstance(part(call.args[at]), str)


def test_the_seeds_of_generators_are_these():
    """Claim: no NumPy generator whose numbers enter stored results has a seed of another form."""
    seeds = [call.args[0] for name, call in calls() if name.endswith("default_rng")]
    assert {tuple(map(part, seed.elts)) if isinstance(seed, ast.List) else (part(seed),) for seed in seeds} == GENERATORS.keys()


def test_the_settings_that_are_roles_are_these():
    """Claim: the settings by which data sources choose images have the names that the choices were made with."""
    constants = (node for file in (ROOT / "experiments/datasets").glob("*.py") for node in ast.walk(ast.parse(file.read_text())))
    strings = {node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {text for text in strings if re.fullmatch(r"data\.\w+", text)} - {"data.root"} == SETTINGS  # a root chooses nothing


@pytest.mark.parametrize(("parts", "words"), WORDS.items(), ids=str)
def test_the_words_of_a_key_are_these(parts, words):
    """Claim: a key with these parts always has these two words."""
    assert philox.key(*parts) == words


def numbers() -> dict[str, list[float]]:
    """The first numbers of streams as the code draws them: timestep, noise and flip for two examples, orders, noises, masks."""
    ids, seeds = torch.tensor([3, 2**35 + 1]), torch.tensor([5, 2**40 + 7])
    uniform = Uniform(1, seed=7).draw("query", ids, 1000, flips=True)
    window = Window(1, 100, 500, seed=7).draw("query", ids, 1000)
    planted = PlantedImages(train=Blobs(n=6), queries=[Blobs(n=2, first=900)], copies=2, noise=0.1, brightness=0.3, seed=7)
    streams = {
        "uniform": torch.cat([uniform.timestep, uniform.noise_seed, uniform.flip.long()]),
        "fixed": Fixed((5, 9), noises=2, seed=7).draw("query", ids[:1], 1000).noise_seed,
        "even": Even(3, seed=7).draw("attribution", ids[:1], 1000).timestep,
        "stratified": Stratified(4, seed=7).draw_for(Proposal(1.0 + np.arange(1000) % 2), "measurement", ids).timestep,
        "window": torch.cat([window.timestep, window.noise_seed]),
        "noise": uniform.noise((1, 1, 2), torch.float64),
        "choice": random_order(7, "digits", np.arange(9)),
        "order": epoch_order(7, 1, 9),
        "samples": [_seed(7, 0), _seed(7, 2**20)],
        "sampler": noise_of(seeds, 3, (1, 1, 1)),
        "pseudo-gradient": _seed_of_v(seeds, 0),
        "random scores": InMemory()(Random(seed=7).scores(trained(), Blobs(n=2), Blobs(n=1, first=900))).values,
        "subsets": RandomSubsets(count=2, seed=7).masks(InMemory()(Blobs(n=6))).astype(int),
        "varied subsets": VariedSubsets(count=2, seed=7).masks(InMemory()(Blobs(n=6))).astype(int),
        "subsets of groups": GroupSubsets(groups="label", distance=0.0, count=2, seed=7).kept_groups(6).astype(int),
        "circular orders of groups": circular_orders(6, 2, seed=7),
        "planted rows": planted.rows,
        "planted noise": InMemory()(planted).x0(planted.rows[0])[:, 0, 0, :2],
    }
    return {name: np.asarray(values).ravel().tolist() for name, values in streams.items()}


def test_the_numbers_of_streams_are_these():
    """Claim: integers are the same to the last bit, normal numbers to rounding."""
    assert numbers() == {name: pytest.approx(values, rel=1e-6, abs=0) for name, values in NUMBERS.items()}
    assert {name: values for name, values in numbers().items() if name in INTEGERS} == {name: NUMBERS[name] for name in INTEGERS}


def test_blocks_have_this_order():
    """Claim: shards follow the rows, and layers the network's modules; sums over them are rounded in this order."""
    assert ranges(3, 12, 4) == [(3, 7), (7, 11), (11, 12)]
    network = UNET()
    layers = list(PerExampleGradients(network, 4).blocks)
    assert layers == [name for name, _ in network.named_modules() if name in layers]
