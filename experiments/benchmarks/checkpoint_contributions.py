"""The contributions of checkpoints to scores, as several benchmarks need them."""

from collections.abc import Mapping

from attribution.estimators import Estimator
from attribution.estimators.checkpoint_scores import CheckpointScores
from attribution.estimators.training_trajectory import TrajectoryScores
from experiments.benchmarks.variants import require_replay
from experiments.models.experiment import Experiment
from experiments.queries import Queries


def contributions_of(
    experiment: Experiment, estimators: Mapping[str, Estimator], queries: Mapping[str, Queries], benchmark: str
) -> dict[tuple[str, str], CheckpointScores]:
    """The scores by checkpoint that a benchmark needs, by (kind of queries, estimator).

    Raises:
        ValueError: an estimator does not replay training.
    """
    nodes = {}
    for name, estimator in require_replay(estimators, benchmark).items():
        for kind, choice in queries.items():
            scores = estimator.scores(experiment.checkpointed, experiment.train, choice.node(experiment))
            assert isinstance(scores, TrajectoryScores)
            nodes[kind, name] = CheckpointScores(scores)
    return nodes
