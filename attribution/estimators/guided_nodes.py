"""What guided normalization goes by: every training example's gradient norm at one timestep, the same for all, at a checkpoint."""

from dataclasses import dataclass

import numpy as np
import torch

from attribution.arrays import Arrays
from attribution.draws import Even, Fixed
from attribution.execution import Execution, ranges
from attribution.images import ImageSet
from attribution.node import Cost, Get, Node, execution
from attribution.passes import engine
from attribution.training import Recorded

TIMESTEPS = 50
"""Evenly spaced ones, of which the one with the highest mean norm is found."""
SAMPLE = 32
"""Training examples over which that mean is taken."""


@dataclass(frozen=True, eq=False)
class NormsByTimestep(Arrays):
    """Mean gradient norm ``norms [G]`` of some training examples at each of ``timesteps [G]``, ascending."""

    timesteps: np.ndarray
    norms: np.ndarray

    @property
    def highest(self) -> int:
        """The timestep with the highest mean norm; of equal ones the first."""
        return int(self.timesteps[self.norms.argmax()])


@dataclass(frozen=True)
class NormCurve(Node[NormsByTimestep]):
    """``1/|S| Σ_{z∈S} ‖∇ℓ_t(θ_k, ε, z)‖`` at 50 evenly spaced t (or every t, where there are fewer), one ε for each t and z.

    S: 32 training examples, evenly spaced among their sorted ids, whatever their order (or all, where there are fewer).
    """

    ARTIFACT = NormsByTimestep

    record: Recorded
    train: ImageSet
    step: int
    seed: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=min(SAMPLE, self.train.count) * min(TIMESTEPS, self.record.schedule.T))

    def compute(self, get: Get) -> NormsByTimestep:
        T, device, images = self.record.schedule.T, self.execution.torch_device(), get(self.train)
        sample = np.argsort(images.index)[np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).round().astype(int)]
        scheme = Even(min(TIMESTEPS, T), seed=self.seed)
        draws = scheme.draw("norm curve", images.ids(sample).to(device), T)
        per_example = engine(self.record, self.step, self.execution, get)
        norms = per_example.capture(self.record.objective, images.x0(sample).to(device), draws).norms()
        return NormsByTimestep(draws.timestep[0].cpu().numpy(), norms.double().mean(0).cpu().numpy())


@dataclass(frozen=True, eq=False)
class Norms(Arrays):
    """``values`` float64 ``[n]``, and the ``timestep []`` at which they were taken."""

    values: np.ndarray
    timestep: np.ndarray


@dataclass(frozen=True)
class NormShard(Node[Norms]):
    """``n_z = ‖∇ℓ_t(θ_k, ε, z)‖``, t = ``timestep``, of the training examples ``rows[0]..rows[1]-1``, unmirrored, one ε each."""

    ARTIFACT = Norms
    TRANSIENT = True

    record: Recorded
    train: ImageSet
    step: int
    timestep: int
    rows: tuple[int, int]
    seed: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        return Cost(passes=self.rows[1] - self.rows[0])

    def compute(self, get: Get) -> Norms:
        device, images = self.execution.torch_device(), get(self.train)
        per_example = engine(self.record, self.step, self.execution, get)
        norms = []
        for start, stop in ranges(*self.rows, self.execution.examples_at_once(self.record.parameter_count)):
            rows = slice(start, stop)
            draws = Fixed([self.timestep], seed=self.seed).draw(
                "reference norms", images.ids(rows).to(device), self.record.schedule.T
            )
            captured = per_example.capture(self.record.objective, images.x0(rows).to(device), draws)
            norms.append(captured.norms()[:, 0].double().cpu())
        return Norms(torch.cat(norms).numpy(), np.array(self.timestep))


@dataclass(frozen=True)
class ReferenceNorms(Node[Norms]):
    """``n_z`` of all training examples at checkpoint ``step``; ``timestep`` None: the one with the highest mean norm there."""

    ARTIFACT = Norms

    record: Recorded
    train: ImageSet
    step: int
    timestep: int | None
    seed: int
    execution: Execution = execution(default=Execution())

    def parts(self, get: Get) -> list[NormShard]:
        timestep = get(self._curve).highest if self.timestep is None else self.timestep
        return [
            NormShard(self.record, self.train, self.step, timestep, rows, self.seed, self.execution)
            for rows in ranges(0, self.train.count, self.execution.shard)
        ]

    def cost(self) -> Cost:
        return Cost(passes=self.train.count, disk=8 * self.train.count)

    def parents(self) -> list[Node]:
        return [*super().parents(), *([self._curve] if self.timestep is None else [])]

    def compute(self, get: Get) -> Norms:
        shards = get.many(self.parts(get))
        return Norms(np.concatenate([shard.values for shard in shards]), np.array(shards[0].timestep))

    @property
    def _curve(self) -> NormCurve:
        return NormCurve(self.record, self.train, self.step, self.seed, self.execution)
