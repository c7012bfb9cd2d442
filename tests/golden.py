"""A tiny world in which every class of nodes is computed once, and summaries of the artifacts."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor, nn

from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.diffusion.samplers import DDIMSampler
from attribution.estimators import Guided, LiSSA, ReTrac, TracIn
from attribution.estimators.balance import Balance
from attribution.estimators.checkpoint_scores import CheckpointScores
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.retiming import AtLargestNorm, Retimed, RetimedTraining
from attribution.estimators.self_influence import SelfInfluence
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.training_trajectory import TrajectoryScores
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.images.draws import Even, Uniform
from attribution.models.trained import FinalParameters
from attribution.nodes import Artifact, InMemory, Node, short_name
from attribution.projection import Gaussian, Identity
from attribution.retraining.modes import Together
from attribution.training import TrainingRecord
from attribution.training.checkpoints import AtSteps
from attribution.training.fit import Recipe
from experiments.benchmarks.removals import Ranking, Removals
from experiments.datasets import Digits, Split
from experiments.estimators.datamodels import Datamodels
from experiments.models.planted import PlantedImages
from experiments.models.samples import Samples
from experiments.models.subsets import RandomSubsets
from experiments.queries.by_source import OfEachSource
from experiments.queries.folder import ImageFolder
from tests.worlds import OBJECTIVE, Blobs, trained


class Tiny(nn.Module):
    """A network of two convolutions that sees the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x)) + torch.sin(t / 20).to(x.dtype)[:, None, None, None]))


CPU = Execution(device="cpu", batch_size=64, shard=4, query_shard=2)
LOSS = OBJECTIVE
RECORD = trained(
    model=Tiny,
    data=Blobs(n=8),
    recipe=Recipe(steps=12, batch_size=5, lr_schedule="cosine", warmup=0.2, clip=0.05, precision="64-true"),
    checkpoints=AtSteps([6, 12]),
)
QUERIES = Blobs(n=3, first=900)


def nodes(folder: Path) -> list[Node]:
    """Nodes that need a node of every class. ``folder`` is for images."""
    draws = {"draws": Uniform(4, seed=1), "execution": CPU}
    measured = {"measurement": LOSS, **draws}
    projected = {**draws, "projection": Gaussian(12, seed=2)}
    trac, retrac = TracIn(**measured, checkpoints=2), ReTrac(**measured, checkpoints=2)
    curvatures = [KFAC(**draws), EKFAC(**draws), ExactGGN(**draws)]
    subsets, mode = RandomSubsets(count=6, seed=5), Together(group=8)
    estimators = [
        trac,
        retrac,
        *(KFACInfluence(**measured, curvature=curvature, damping=[1e-3, 1.0]) for curvature in curvatures),
        KFACInfluence(**measured, curvature=curvatures[0], damping=1e-3, balance=Balance("timestep")),
        TRAK(**projected, query_feature=LOSS, train_feature=LOSS, damping=[1e-3, 1.0], models=2),
        LiSSA(**measured, damping=0.05, scale=20.0, depth=12, repeats=2, batch_size=8),
        GradientSimilarity(**measured, projection=Identity(), cosine=True, checkpoints=2),
        EmbeddingSimilarity(embedding=Pixels(), cosine=True, execution=CPU),
        Random(seed=3, execution=CPU),
        Guided(**measured, checkpoints=2),
        Datamodels(
            measurement=LOSS, measurement_draws=Even(4, seed=1), subsets=subsets, mode=mode, damping=[0.1, 1.0], execution=CPU
        ),
    ]
    samples = Samples(trained=RECORD, sampler=DDIMSampler(steps=5), shape=(1, 8, 8), n=3, seed=4, execution=CPU)
    scores = trac.scores(RECORD, RECORD.data, QUERIES)
    assert isinstance(scores, TrajectoryScores)
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    return [
        *(estimator.scores(RECORD, RECORD.data, QUERIES) for estimator in estimators),
        CheckpointScores(scores),
        SelfInfluence(retrac, RECORD, RECORD.data),
        Retimed.of(RECORD, RECORD.data, 2, AtLargestNorm((10, 40, 90), CPU)),
        samples.trajectories,
        OfEachSource(samples, RECORD.data, 2),
        Split(Digits(n_train=6, n_validation=4), "train"),
        ImageFolder(path=folder, shape=(1, 8, 8)),
        PlantedImages(train=RECORD.data, queries=[QUERIES], copies=2, noise=0.1, brightness=0.3, seed=1),
        Removals(
            trained=RECORD,
            rankings=[Ranking(QUERIES, trac, scores)],
            fractions=[0.25],
            random=2,
            random_seed=1,
            seeds=[0],
            steps=6,
            measurement=LOSS,
            draws=Even(4, seed=1),
            mode=mode,
            execution=CPU,
        ),
    ]


UP_TO_ROTATION = {"KFACBasis", "EKFACBasis", "MomentShard", "DenseGGN", "Spectrum", "InfluenceQueryBlock"}
"""Classes that hold eigenvectors, or coordinates along these: neither signs nor bases of equal eigenvalues are defined."""


def summary(artifact: Artifact, name: str) -> dict[str, Any]:
    """``shapes`` of all arrays of an artifact, exact ``checksums`` of integers, and ``norms`` and ``projections`` of floats."""
    result: dict[str, Any] = {"shapes": {}, "checksums": {}, "norms": {}, "projections": {}}
    for key, array in arrays(artifact).items():
        flat = np.ravel(array)
        result["shapes"][key] = list(array.shape)
        if array.dtype.kind in "iub":
            result["checksums"][key] = int((flat.astype(np.int64) * (1 + np.arange(flat.size) % 97) % (2**31 - 1)).sum())
            continue
        result["norms"][key] = float(np.linalg.norm(flat.astype(np.float64)))
        if name not in UP_TO_ROTATION:
            result["projections"][key] = float(flat.astype(np.float64) @ np.cos(np.arange(flat.size)))
    return result


def arrays(artifact: Artifact) -> Mapping[str, np.ndarray]:
    """All arrays of numbers that an artifact stores, by file and name within it; fields of structured arrays by themselves."""
    if isinstance(artifact, RetimedTraining):
        return {str(step): np.array(list(timesteps.values())) for step, timesteps in artifact.timesteps.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = artifact.folder if isinstance(artifact, TrainingRecord | FinalParameters) else Path(temporary)
        artifact.save(folder)
        found: dict[str, np.ndarray] = {}
        for file in sorted(folder.rglob("*")):
            path = file.relative_to(folder).as_posix()
            if file.suffix == ".safetensors":
                found |= {f"{path}/{key}": array for key, array in load_file(file).items()}
            elif file.suffix == ".npy":
                array = np.load(file)
                if array.dtype.kind == "U":  # names
                    continue
                found |= {f"{path}/{key}": array[key] for key in array.dtype.names} if array.dtype.names else {path: array}
        return found


class Recording(InMemory):
    """Keeps the first node of every class that was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Node] = {}

    def many(self, nodes: Sequence[Any], title: str = "") -> list[Any]:
        artifacts = super().many(nodes, title)
        for node in nodes:
            if type(node).__module__.split(".")[0] != "tests":
                self.first.setdefault(short_name(type(node)), node)
        return artifacts


@functools.cache
def world() -> dict[str, dict[str, Any]]:
    """By NAME: VERSION and summary of the first artifact of every class of nodes."""
    get = Recording()
    with tempfile.TemporaryDirectory() as folder:
        get.many(nodes(Path(folder)))
        return {name: {"version": node.VERSION, **summary(get(node), name)} for name, node in sorted(get.first.items())}
