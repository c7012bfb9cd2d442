"""Speed of the query side of a score under several draw schemes."""

from collections.abc import Mapping

from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.gradients.network_cache import engine
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.nodes import Get
from attribution.training import Recorded
from experiments.speed.timing import Run, in_turns


def query_seconds(
    estimator: TrajectoryEstimator,
    trained: Recorded,
    queries: ImageSet,
    schemes: Mapping[str, DrawScheme],
    repeats: int,
    get: Get,
) -> dict[str, list[float]]:
    """Return the seconds of Q(q) for the first query under the final model, by scheme, in each of ``repeats`` rounds."""
    device, images = estimator.execution.torch_device(), get(estimator.measurement.subject(queries))
    per_example = engine(trained, None, estimator.execution, get)
    x0, ids = images.x0(slice(0, 1)).to(device), images.ids(slice(0, 1)).to(device)

    def run(scheme: DrawScheme) -> Run:
        def query_side() -> None:
            draws = scheme.draw("query", ids, trained.process.T)
            estimator.query_side(per_example.capture(estimator.measurement, x0, draws))

        return query_side

    return in_turns({name: run(scheme) for name, scheme in schemes.items()}, repeats)
