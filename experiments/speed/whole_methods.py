"""Speed of whole methods, from a checkpoint to scores, and how far other implementations agree with this one."""

from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from attribution.checks import whole
from attribution.projection import SJLT
from experiments.metrics.estimate import Estimate
from experiments.models.experiment import Experiment
from experiments.report.row import Row
from experiments.speed.influence_peers import curvlinops_scores, kronfluence_scores
from experiments.speed.problem import Method, Problem, agreement
from experiments.speed.timing import Ratio, Run, in_turns, quotient, speed_row
from experiments.speed.trak_peers import dattri_scores, traker_scores
from experiments.speed.usual_loop import usual_loop

FEATURES = 2048
KFAC, TRAK, TRAK_AGAIN = "K-FAC", "TRAK", "TRAK with another P"


@dataclass(frozen=True)
class MethodSizes:
    """The sizes of ``method_speed``."""

    train: int
    queries: int
    draws: int
    steps: int
    batch: int

    def __post_init__(self):
        for field in fields(self):
            whole(self, field.name, least=1)


def method_speed(experiment: Experiment, train: int, queries: int, draws: int, steps: int, batch: int, repeats: int) -> list[Row]:
    """Measure K-FAC influence and TRAK on the first ``train`` training images and ``queries`` validation images.

    The model is trained on these images for ``steps`` steps. All methods take the same ``draws`` of every image, and the damping
    ``problem.DAMPING``. The rows, for every other implementation that is installed:

    - ``usual loop / K-FAC``, ``kronfluence / K-FAC``, ``curvlinops + vmap / K-FAC``, ``traker / TRAK``, ``dattri / TRAK``: its time
      from the checkpoint to scores over ours, both without a store
    - ``agreement, ...``: the correlation of its scores with ours over the training images, on average over queries; not a time.
      ``kronfluence, B summed`` has B summed over positions; ``TRAK with another P`` shows what the choice of P alone changes.
    """
    with TemporaryDirectory() as folder:
        problem = Problem(experiment, train, queries, draws, steps, batch, Path(folder))
        ours: dict[str, Method] = {KFAC: problem.kfac, TRAK: lambda: problem.trak(SJLT(FEATURES))}
        others: dict[str, dict[str, Method | None]] = {
            KFAC: {
                "usual loop": lambda: usual_loop(problem),
                "kronfluence": kronfluence_scores(problem),
                "curvlinops + vmap": curvlinops_scores(problem),
            },
            TRAK: {"traker": traker_scores(problem, FEATURES), "dattri": dattri_scores(problem, FEATURES)},
        }
        unmeasured: dict[str, dict[str, Method | None]] = {
            KFAC: {"kronfluence, B summed": kronfluence_scores(problem, positions_summed=True)},
            TRAK: {TRAK_AGAIN: lambda: problem.trak(SJLT(FEATURES, seed=1))},
        }
        methods = ours | {name: run for of_one in others.values() for name, run in of_one.items() if run is not None}
        scores: dict[str, Tensor] = {}

        def kept(name: str, method: Method) -> Run:
            def run() -> None:
                scores[name] = method()

            return run

        seconds = in_turns({name: kept(name, method) for name, method in methods.items()}, repeats)
        ratios: dict[str, Ratio] = {}
        for own in ours:
            for name, method in (others[own] | unmeasured[own]).items():
                if method is None:
                    continue
                if name in seconds:
                    ratios[f"{name} / {own}"] = quotient(seconds[name], seconds[own])
                else:
                    scores[name] = method()
                ratios[f"agreement, {name}"] = Ratio(Estimate(agreement(scores[own], scores[name])), {"query_count": queries})
    return [speed_row(metric, value, train, draws) for metric, value in ratios.items()]
