"""What the query side of a score costs, measured on the machine that runs, once: a stored measurement is not taken again."""

from dataclasses import dataclass

import numpy as np

from attribution.arrays import Arrays
from attribution.draws import DrawScheme
from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.images import ImageSet
from attribution.node import Cost, Get, Node
from attribution.passes import engine
from attribution.training import Recorded
from experiments.speed.timing import Run, in_turns


@dataclass(frozen=True, eq=False)
class Seconds(Arrays):
    """``values`` float64 ``[repeats, schemes]``."""

    values: np.ndarray


@dataclass(frozen=True)
class QuerySeconds(Node[Seconds]):
    """Seconds that the query side Q(q) of the first of ``queries`` takes with each of ``schemes``, in ``repeats`` rounds of all.

    Under the final model and in one process, so that whatever else the machine does falls on all of them.
    """

    ARTIFACT = Seconds

    estimator: TrajectoryEstimator
    record: Recorded
    queries: ImageSet
    schemes: tuple[DrawScheme, ...]
    repeats: int

    def cost(self) -> Cost:
        return Cost(passes=(1 + self.repeats) * sum(scheme.count for scheme in self.schemes))

    def compute(self, get: Get) -> Seconds:
        how = self.estimator
        device, images = how.execution.torch_device(), get(how.measurement.subject(self.queries))
        per_example = engine(self.record, None, how.execution, get)
        x0, ids = images.x0(slice(0, 1)).to(device), images.ids(slice(0, 1)).to(device)

        def run(scheme: DrawScheme) -> Run:
            def once() -> None:
                draws = scheme.draw("query", ids, self.record.schedule.T)
                how.query_side(per_example.capture(how.measurement, x0, draws))

            return once

        rounds = in_turns({str(i): run(scheme) for i, scheme in enumerate(self.schemes)}, self.repeats)
        return Seconds(np.array(list(rounds.values())).T)
