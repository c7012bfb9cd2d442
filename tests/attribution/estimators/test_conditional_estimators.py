"""Which draws of estimators drop the condition."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from attribution.curvature import KFAC
from attribution.curvature.exact import ExactGGN
from attribution.estimators import Estimator
from attribution.estimators.astra import ASTRA
from attribution.estimators.das import DAS
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.layer_weights import LayerWeights
from attribution.estimators.lissa import LiSSA
from attribution.estimators.metagradient import Metagradient
from attribution.estimators.mirrored_unlearning import MirroredUnlearning
from attribution.estimators.rescaled_kfac import RescaledKFAC
from attribution.estimators.source import Source
from attribution.estimators.tracin import TracIn
from attribution.estimators.trak import TRAK
from attribution.estimators.unlearning import Unlearning
from attribution.execution import Execution
from attribution.images import Images
from attribution.images.conditions import NULL_CLASS
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.nodes import Get, InMemory
from attribution.projection import Identity
from tests.worlds import PROCESS, Blobs, Conditioned, trained

CPU, DRAWS, LOSS = Execution(device="cpu"), Uniform(3, seed=1), Loss(PROCESS)


class Tiny(nn.Module):
    """Takes a class, the last of three being for none."""

    null_class = 2

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.classes = nn.Embedding(3, 2)

    def forward(self, x, t, kind):
        shift = self.classes(kind) + t[:, None].to(x.dtype) / 100
        return self.last(torch.tanh(self.first(x) + shift[:, :, None, None]))


@dataclass(frozen=True)
class Nothing(Blobs):
    """The images of ``Conditioned`` without a class: what the network gets if training always drops it."""

    def compute(self, get: Get) -> Images:
        images = super().compute(get)
        return replace(images, condition=np.full_like(images.label, NULL_CLASS))


def model(data, dropout: float):
    """The same parameters under another objective and data: training takes no step worth the name."""
    optimizer = functools.partial(torch.optim.SGD, lr=1e-12)
    return trained(model=Tiny, data=data, objective=Loss(PROCESS, condition_dropout=dropout), optimizer=optimizer, flips=False)


FACTORS = KFAC(draws=DRAWS, execution=CPU)
COMMON = {"measurement": LOSS, "draws": DRAWS, "execution": CPU}
ESTIMATORS = {
    "kfac": KFACInfluence(**COMMON, curvature=FACTORS),
    "exact": KFACInfluence(**COMMON, curvature=ExactGGN(draws=DRAWS, execution=CPU)),
    "trak": TRAK(**COMMON, projection=Identity()),
    "lissa": LiSSA(**COMMON, damping=0.1, scale=100.0, depth=3, batch_size=4),
    "tracin": TracIn(**COMMON, checkpoints=[12]),
    "astra": ASTRA(**COMMON, curvature=FACTORS, depth=3, scale=100.0, batch_size=4),
    "das": DAS(query_feature=LOSS, train_feature=LOSS, projection=Identity(), draws=DRAWS, execution=CPU),
    "layer weights": KFACInfluence(**COMMON, curvature=FACTORS, layers=LayerWeights(groups="layer", top=2)),
    "metagradient": Metagradient(**COMMON),
    "mirrored unlearning": MirroredUnlearning(**COMMON, curvature=FACTORS, damping=0.1, bounded=False),
    "rescaled": RescaledKFAC(**COMMON, curvature=FACTORS, damping=0.1),
    "source": Source(**COMMON, curvature=FACTORS, optimizer="sgd", segments=1, per_segment=1),
    "unlearning": Unlearning(**COMMON, curvature=FACTORS, damping=0.1),
}


@pytest.fixture(scope="module")
def get():
    """Artifacts that the estimators share: the trainings, and Kronecker factors."""
    return InMemory()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_training_draws_drop_conditions_and_queries_keep_theirs(name, get):
    """Claim: if training always drops the class, scores are those of training images without one; the queries' classes count."""
    estimator: Estimator = ESTIMATORS[name]
    queries = Conditioned(n=3, first=901)
    dropped, nothing, kept = model(Conditioned(n=8), 1.0), model(Nothing(n=8), 0.0), model(Conditioned(n=8), 0.0)
    found, expected, others = (estimator.score(each, each.data, queries, get).values for each in (dropped, nothing, kept))
    unknown = estimator.score(dropped, dropped.data, Nothing(n=3, first=901), get).values
    tolerance = 1e-3 * np.abs(found).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert np.abs(found - others).max() > 10 * tolerance
    assert np.abs(found - unknown).max() > 10 * tolerance
