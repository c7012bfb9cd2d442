"""The default reference timestep t* of guided normalization: the one with the highest mean gradient norm."""

from dataclasses import dataclass

import numpy as np

from attribution.execution import Execution
from attribution.gradients.gradient_sets import GradientsAtDraws
from attribution.gradients.norms import compute_norms
from attribution.images import ImageSet
from attribution.images.draws import Even
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.training import Recorded

SHARED = ("attribution.gradients.norms",)

TIMESTEPS = 50
"""The number of evenly spaced timesteps that are compared."""
SAMPLE = 32
"""The number of training examples over which norms are averaged."""


@dataclass(frozen=True, eq=False)
class NormsByTimestep(Arrays):
    """Mean gradient norm ``norms [G]`` of a sample of training examples at each of ``timesteps [G]``, ascending."""

    timesteps: np.ndarray
    norms: np.ndarray

    @property
    def highest(self) -> int:
        """The timestep with the highest mean norm; the first one if several are equal."""
        return int(self.timesteps[self.norms.argmax()])


@dataclass(frozen=True)
class NormCurve(Node[NormsByTimestep]):
    """``1/|S| Σ_{z∈S} ‖∇ℓ_t(θ_k, ε, z)‖`` at 50 evenly spaced t (or every t if T < 50), with one ε for each t and z.

    S are 32 training examples, evenly spaced among the sorted ids (or all examples if there are fewer). It does not depend on their
    order.
    """

    NAME = "NormCurve"
    VERSION = 1
    TITLE = "gradient norms along the timesteps"
    ARTIFACT = NormsByTimestep

    trained: Recorded
    train: ImageSet
    step: int
    seed: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=min(SAMPLE, self.train.count) * min(TIMESTEPS, self.trained.process.T))

    def compute(self, get: Get) -> NormsByTimestep:
        images, scheme = get(self.train), Even(min(TIMESTEPS, self.trained.process.T), seed=self.seed)
        sample = np.argsort(images.index)[np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).round().astype(int)]
        gradients = GradientsAtDraws(
            images=self.train, trained=self.trained, step=self.step, scheme=scheme, role="norm curve", execution=self.execution
        )
        single = compute_norms(gradients, images.take(sample), get)
        return NormsByTimestep(single.timestep[0, 0], single.norms[0].mean(0))
