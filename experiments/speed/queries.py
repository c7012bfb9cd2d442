"""How long the query side of a score takes with one choice of draws and with another."""

from collections.abc import Mapping

from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.gradients.engine import engine
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.nodes import Get
from attribution.training import Recorded
from experiments.speed.timing import Run, in_turns


def query_seconds(
    estimator: TrajectoryEstimator,
    record: Recorded,
    queries: ImageSet,
    schemes: Mapping[str, DrawScheme],
    repeats: int,
    get: Get,
) -> dict[str, list[float]]:
    """Seconds that Q(q) of the first of ``queries`` takes with each of ``schemes`` under the final model, in ``repeats`` rounds."""
    device, images = estimator.execution.torch_device(), get(estimator.measurement.subject(queries))
    per_example = engine(record, None, estimator.execution, get)
    x0, ids = images.x0(slice(0, 1)).to(device), images.ids(slice(0, 1)).to(device)

    def run(scheme: DrawScheme) -> Run:
        def once() -> None:
            draws = scheme.draw("query", ids, record.process.T)
            estimator.query_side(per_example.capture(estimator.measurement, x0, draws))

        return once

    return in_turns({name: run(scheme) for name, scheme in schemes.items()}, repeats)
