"""Fewer timesteps on the query side (ReTrac §5.1, app. E, tables 3-5): how close are the scores to those from all timesteps?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from attribution.checks import listed, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.images import Images
from attribution.images.at_checkpoints import UniformAtCheckpoints
from attribution.images.bins import ALL
from attribution.images.draws import DrawScheme, Even, Fixed
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare, pairs
from experiments.benchmarks.source_precision import has_two_sources, precision_rows, source_queries
from experiments.benchmarks.variants import Variant, require_replay, subject_of
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap
from experiments.metrics.correlation import spearman, split_half_spearman
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject
from experiments.speed.queries import query_seconds
from experiments.speed.timing import quotient

NAME = "sparse_timesteps"
SETTING = "timesteps"
"""The name that rows give to the choice of timesteps."""
SPEARMAN, FASTER = "spearman_with_all", "times_faster"


@dataclass(frozen=True, kw_only=True)
class SparseTimesteps(QueryBenchmark):
    """Each estimator with ``n`` even timesteps, with the one timestep ``fixed``, and with one random timestep for each query
    and checkpoint.

    Only the estimator's draws are replaced; there are ``noises`` draws at each timestep. The rows are Spearman's correlation over
    training examples with the scores from all T timesteps, a mean over queries; how many times faster the query side is than with
    all T (``repeats`` rounds, in each of which all are timed in turn with the first query); and for data of two labels the share of
    the top ``k`` proponents that have the query's label.
    """

    DRAW_GROUPS = False

    n: Sequence[int] = (50, 100, 200)
    fixed: int = 500
    noises: int = 1
    k: int = 200
    repeats: int = 5
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, self._checked(experiment, estimators)).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        replaying, bootstrap = self._checked(experiment, estimators), Bootstrap(seed=self.seed)
        nodes, train = self._scores(experiment, replaying), get(experiment.train)
        schemes, rows = self._schemes(experiment.diffusion.process.T), []
        for kind, queries in self.queries.items():
            variants = [
                Variant(
                    replace(subject_of(name, replace(estimator, draws=draws), node, get), settings={SETTING: scheme}), get(node)
                )
                for name, estimator in replaying.items()
                for scheme, draws in schemes.items()
                for node in [nodes[kind, name, scheme]]
            ]
            rows += report.add(_agreement(variants, kind, bootstrap))
            if has_two_sources(train):
                rows += report.add(self._precisions(variants, kind, train, get(queries.node(experiment)), bootstrap))
        for name, estimator in replaying.items():
            rows += report.add(self._times(experiment, name, estimator, get))
        shown = [row for row in rows if row.minus is None]
        report.figure(NAME, figures.sparse_timesteps(shown, SPEARMAN, FASTER))

    def _precisions(
        self, variants: Sequence[Variant], kind: str, train: Images, images: Images, bootstrap: Bootstrap
    ) -> Iterator[Row]:
        """Precision by source for the queries of each label.

        Differences: between estimators, and for each estimator between all timesteps and fewer.
        """
        subjects = [variant.subject for variant in variants]
        full = {subject.name: a for a, subject in enumerate(subjects) if subject.settings[SETTING] == ALL}
        fewer = [(full[subject.name], b) for b, subject in enumerate(subjects) if b not in full.values()]
        for label in np.unique(train.label).tolist():
            rows = np.flatnonzero(images.label == label)
            if len(rows):
                yield from precision_rows(
                    variants,
                    rows,
                    train.label == label,
                    [self.k],
                    bootstrap,
                    benchmark=NAME,
                    queries=source_queries(kind, label),
                    differences=[*pairs(subjects), *fewer],
                )

    def _times(self, experiment: Experiment, name: str, estimator: TrajectoryEstimator, get: Get) -> Iterator[Row]:
        """The median of the ratios in all rounds with their quartiles. The maximum is the ratio of passes.

        Every run measures the times again: they depend on the machine's load and are not stored.
        """
        schemes = self._schemes(experiment.diffusion.process.T)
        queries = next(iter(self.queries.values())).node(experiment)
        seconds = query_seconds(estimator, experiment.checkpointed, queries, schemes, self.repeats, get)
        for scheme in list(schemes)[1:]:
            ratio = quotient(seconds[ALL], seconds[scheme])
            times = {"seconds": ratio.about["reference_seconds"], "seconds_with_all": ratio.about["seconds"]}
            yield Row(
                benchmark=NAME,
                metric=FASTER,
                subject=Subject(name, {SETTING: scheme}),
                estimate=ratio.estimate,
                levels=Levels(maximum=schemes[ALL].count / schemes[scheme].count),
                about={**times, "repeats": ratio.about["repeats"]},
            )

    def _schemes(self, T: int) -> dict[str, DrawScheme]:
        """The choices of timesteps by name, first all T."""
        return {
            ALL: Even(T, self.noises, self.seed),
            **{f"{n} even": Even(n, self.noises, self.seed) for n in sorted(self.n, reverse=True)},
            f"only {self.fixed}": Fixed((self.fixed,), self.noises, self.seed),
            "1 random": UniformAtCheckpoints(1, self.seed),
        }

    def _scores(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator]
    ) -> dict[tuple[str, str, str], Node[Scores]]:
        """The scores by kind of queries, estimator and choice of timesteps."""
        return {
            (kind, name, scheme): replace(estimator, draws=draws).scores(
                experiment.checkpointed, experiment.train, queries.node(experiment)
            )
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
            for scheme, draws in self._schemes(experiment.diffusion.process.T).items()
        }

    def _checked(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, TrajectoryEstimator]:
        """Check the settings before anything is trained."""
        T, train = experiment.diffusion.process.T, experiment.data.load().train
        listed(self, "n", partial(whole, least=1, most=T - 1))
        whole(self, "fixed", least=1, most=T)
        whole(self, "k", least=1, most=len(train) if has_two_sources(train) else None)
        for name in ("noises", "repeats"):
            whole(self, name, least=1)
        return require_replay(estimators, NAME)


def _agreement(variants: Sequence[Variant], kind: str, bootstrap: Bootstrap) -> list[Row]:
    """Spearman's correlation with the scores of the same estimator from all timesteps."""
    full = {variant.subject.name: variant.scores for variant in variants if variant.subject.settings[SETTING] == ALL}
    fewer = [variant for variant in variants if variant.subject.settings[SETTING] != ALL]
    ceilings = {name: _ceiling(scores) for name, scores in full.items()}
    return compare(
        [variant.subject for variant in fewer],
        [bootstrap.mean(spearman(v.scores.values, full[v.subject.name].values), limits=CORRELATION_LIMITS) for v in fewer],
        benchmark=NAME,
        metric=SPEARMAN,
        queries=kind,
        levels=[Levels(random=0.0, ceiling=ceilings[variant.subject.name], maximum=1.0) for variant in fewer],
    )


def _ceiling(scores: Scores) -> float:
    """The agreement 2 r / (1 + r) of two independent scores, from the agreement r of halves (Spearman-Brown); mean over queries."""
    assert scores.halves is not None  # T is at least 2
    halves = split_half_spearman(scores.halves)
    return float((2 * halves / (1 + halves)).mean())
