"""Were the influential outliers trained near their timestep of largest norm (ReTrac §6.1)?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, whole
from attribution.estimators import Estimator
from attribution.gradients.norms import GradientNorms
from attribution.nodes import Get, Node
from attribution.training.checkpoints import select
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.checkpoint_contributions import contributions_of
from experiments.benchmarks.compare import compare
from experiments.benchmarks.norm_study import at_largest_norm, common_checkpoints
from experiments.benchmarks.variants import require_replay, subject_of
from experiments.datasets import Split
from experiments.metrics import checkpoints as metrics
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.ranking import top_k
from experiments.models.experiment import Experiment
from experiments.queries.pixel_classifier import PixelClassifier
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

NAME = "influential_timesteps"
DISTANCE = "distance_to_t_max"


@dataclass(frozen=True, kw_only=True)
class InfluentialTimesteps(QueryBenchmark):
    """|t_train − t_max| of the outliers, training images of label ``outlier``, among the top ``k`` of queries of other labels.

    t_max(z) is the timestep, of ``timesteps`` even ones, with the largest gradient norm at the noise that z was last trained with.
    Both timesteps are those of the checkpoint that contributes most to the score of z for the query. The distance of all outliers,
    at the same checkpoints, is the random level, and the rows compare the two.
    """

    DRAW_GROUPS = False

    outlier: int
    k: int = 20
    timesteps: int = 50
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        self._check(experiment)
        contributions = contributions_of(experiment, estimators, self.queries, NAME)
        return [*contributions.values(), self._norms(experiment, estimators)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = contributions_of(experiment, estimators, self.queries, NAME)
        outliers, distance = self._positions(experiment), self._distances(experiment, estimators, get)
        classifier, panels = PixelClassifier(get(experiment.train)), []
        for kind, queries in self.queries.items():
            others = np.flatnonzero(classifier.labels(get(queries.node(experiment))) != self.outlier)
            if not len(others):
                print(f"{kind} queries: every query is an outlier; skipping {kind}")
                continue
            subjects = [subject_of(name, estimator, nodes[kind, name].scores, get) for name, estimator in estimators.items()]
            chosen, distances = [], []  # [Q, P] each, of the P outliers
            for name in estimators:
                parts = np.asarray(get(nodes[kind, name]).values)[:, others]
                chosen.append(metrics.members(top_k(parts.sum(0), self.k), parts.shape[2])[:, outliers])
                distances.append(metrics.at_checkpoint(distance, metrics.largest_checkpoint(parts[:, :, outliers])))
            report.add(self._rows(subjects, distances, chosen, kind, experiment.diffusion.process.T))
            panels += [
                figures.Influential(f"{name}, {kind} queries", metrics.mean_where(far, inside), inside.mean(0))
                for name, far, inside in zip(estimators, distances, chosen, strict=True)
            ]
        if panels:
            report.figure(DISTANCE, figures.distance_to_t_max(panels, self.k))

    def _rows(self, subjects: list[Subject], distances: list[np.ndarray], chosen: list[np.ndarray], kind: str, T: int) -> list[Row]:
        """The rows of one kind of queries, from the distances of the outliers ``[Q, P]`` and which are in the top k."""
        bootstrap, axes, limits = Bootstrap(seed=self.seed), ("queries", "examples"), (0.0, T - 1.0)
        influential = [bootstrap.mean(far, axes, inside, limits) for far, inside in zip(distances, chosen, strict=True)]
        everything = [bootstrap.mean(far, axes, limits=limits) for far in distances]
        rows = compare(
            subjects,
            influential,
            benchmark=NAME,
            metric=DISTANCE,
            queries=kind,
            levels=[Levels(random=float(mean.value)) for mean in everything],
            about={"k": self.k, "queries_n": len(chosen[0]), "outliers": chosen[0].shape[1]},
            about_each=[{"influential": int(inside.any(0).sum())} for inside in chosen],
        )
        for subject, near, mean in zip(subjects, influential, everything, strict=True):
            sides = [Subject(subject.name, {"outliers": which}) for which in (f"in the top {self.k}", "all")]
            rows.append(
                Row(
                    benchmark=NAME,
                    metric=DISTANCE,
                    queries=kind,
                    subject=sides[0],
                    minus=sides[1],
                    estimate=(near - mean).estimate(),
                )
            )
        return rows

    def _distances(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get) -> np.ndarray:
        """|t_train − t_max| of the P outliers at each of S checkpoints, ``[S, P]``."""
        norms, record, ids = (
            get(self._norms(experiment, estimators)),
            get(experiment.recorded),
            get(self._outliers(experiment)).index,
        )
        steps = select(self._checkpoints(estimators), record.steps, record.losses)
        trained = np.stack([record.latest_timesteps(step, np.array(ids)).numpy() for step in steps])
        largest = np.take_along_axis(norms.timestep, norms.norms.argmax(2)[..., None], 2)[..., 0]
        return np.abs(trained - largest)

    def _norms(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> GradientNorms:
        """The norms of the outliers over timesteps."""
        largest = at_largest_norm(experiment, self.timesteps)
        return largest.norms(experiment.recorded, self._outliers(experiment), self._checkpoints(estimators))

    def _outliers(self, experiment: Experiment) -> Split:
        return Split(experiment.data, "train", tuple(self._positions(experiment).tolist()))

    def _positions(self, experiment: Experiment) -> np.ndarray:
        """The positions of the P outliers among the training images."""
        return np.flatnonzero(experiment.data.load().train.label == self.outlier)

    def _checkpoints(self, estimators: Mapping[str, Estimator]) -> int | str | Sequence[int]:
        return common_checkpoints(list(require_replay(estimators, NAME).items()), NAME)

    def _check(self, experiment: Experiment) -> None:
        """Check the settings before anything is trained."""
        train = experiment.data.load().train
        labels = np.unique(train.label).tolist()
        if self.outlier not in labels or len(labels) < 2:
            raise FieldError(self, "outlier", f"the training images have labels {labels}; choose one of at least two")
        whole(self, "k", 1, len(train))
        whole(self, "timesteps", 2, experiment.diffusion.process.T)
