"""The timestep-induced norm bias (ReTrac §4.2, app. A): gradient norms follow the timestep, and scores follow the norms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.estimators.retiming import AtLargestNorm, AtRandom, Retimed, Timing
from attribution.estimators.scores import Scores
from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.gradients.gradient_sets import GradientsAtRecordedDraws, PipelineGradients
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import Uniform
from attribution.models.pipeline import Pipeline
from attribution.nodes import Get, Node
from attribution.training.checkpoints import select
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.bias_rows import RANDOM, RISE, STRETCHES, T_MAX, Bias, explained
from experiments.benchmarks.variants import scores_of
from experiments.datasets import Split
from experiments.figures import norms as figures
from experiments.figures.mappings import mappings
from experiments.figures.shifts import rank_rises
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.report import Report

NAME = "timestep_bias"


@dataclass(frozen=True, kw_only=True)
class TimestepBias(Benchmark):
    """How much of a gradient's norm is its timestep, and how much of a score is that norm, at the estimators' checkpoints.

    All norms are of the training loss at the noise that an example was last trained with. Those of up to ``examples`` training
    images are known at ``timesteps`` even timesteps; t_max(x) is the one with the largest. Reported are, for each checkpoint, what
    the timestep explains of the norms, and Algorithm 1 on ``correlated`` of the examples; for each estimator, how its scores go
    with the norms, the example among the top ``k`` of the most queries, and by how many ranks of |τ| the ``manipulated`` examples
    with scores nearest 0 rise if they are given t_max, or a random timestep, in place of the one that they were trained at.
    ``pretrained``: the norms of another model too, a pipeline of diffusers.
    """

    queries: Mapping[str, Queries]
    examples: int = 2000
    timesteps: int = 50
    correlated: int = 50
    manipulated: int = 500
    k: int = 10
    resamples: int = 1000
    pretrained: str | None = None
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        replaying = self._checked(experiment, estimators)
        pool = self._pool(experiment)
        return [
            *scores_of(experiment, estimators, self.queries).values(),
            self._at_training(experiment, replaying),
            self._curves(experiment, replaying, pool),
            *self._retimed(experiment, replaying, pool).values(),
            *self._pretrained_norms(experiment),
        ]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        replaying, pool = self._checked(experiment, estimators), self._pool(experiment)
        bias = self._bias(experiment, replaying, pool, get)
        train = get(experiment.train)
        chosen = np.sort(np.random.default_rng([self.seed, 1]).permutation(len(bias.columns))[: self.correlated])
        correlations = bias.algorithm_1(chosen)
        report.add(
            {"benchmark": NAME, "estimator": "none", **row} for row in [*bias.of_norms(), *bias.of_correlations(correlations)]
        )
        scatters = [
            figures.Scatter(f"checkpoint {step}", bias.t_train[s, bias.columns], bias.norms[s, bias.columns], bias.columns)
            for s, step in enumerate(bias.steps)
        ]
        report.figure("norm_vs_timestep", figures.norms_by_timestep(scatters, bias.T, train, STRETCHES))
        report.figure("algorithm_1", figures.algorithm_1(bias.steps, correlations, len(train)))
        one = int(bias.columns[chosen[0]])
        report.figure("norm_over_timesteps", self._curve_figure(experiment, replaying, bias, one, get))
        nodes, retimed = scores_of(experiment, estimators, self.queries), self._retimed(experiment, replaying, pool)
        for kind in self.queries:
            scores = {name: get(nodes[kind, name]) for name in estimators}
            new = {(name, timing): get(node) for (of, name, timing), node in retimed.items() if of == kind}
            common = {"benchmark": NAME, "queries": kind}
            report.add({**common, **row} for row in bias.of_scores(scores))
            report.add({**common, **row} for row in bias.of_shifts(scores, new, self.manipulated))
            for name in estimators:
                row, example = bias.of_influential(name, scores[name], self.k)
                report.add([{**common, **row, "scores": nodes[kind, name].fingerprint}])
                figure = self._curve_figure(experiment, replaying, bias, example, get)
                report.figure(f"influential_{kind}_{name}", figure)
        report.figure("rank_rise", rank_rises([row for row in mappings(report.rows) if row["metric"] == RISE]))
        for node in self._pretrained_norms(experiment):
            self._show_pretrained(node, experiment, get, report)

    def _bias(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], pool: ImageSet, get: Get) -> Bias:
        record, wanted = get(experiment.record), _checkpoints(estimators)
        steps = select(wanted, record.steps, record.losses)
        return Bias(
            steps=steps,
            rates=[record.learning_rate(step) for step in steps],
            trained=get(self._at_training(experiment, estimators)),
            curves=get(self._curves(experiment, estimators, pool)),
            columns=self._columns(experiment),
            T=experiment.diffusion.process.T,
            resamples=self.resamples,
            seed=self.seed,
        )

    def _curve_figure(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], bias: Bias, example: int, get: Get
    ) -> figures.Figure:
        """The norm over timesteps of the training image at a position, beside that of the others."""
        alone = Split(experiment.data, "train", (example,))
        own = get(self._curves(experiment, estimators, alone)).norms[:, 0]
        curves = [
            figures.Curve(
                f"checkpoint {step}", bias.curves.timestep[s, 0], own[s], bias.curves.norms[s], int(bias.t_train[s, example])
            )
            for s, step in enumerate(bias.steps)
        ]
        return figures.norm_curves(curves, bias.T, get(alone))

    def _show_pretrained(self, node: GradientNorms, experiment: Experiment, get: Get, report: Report) -> None:
        assert isinstance(node.of, PipelineGradients)
        norms, T = get(node), node.of.pipeline.process.T
        timestep, norm = norms.timestep[0, :, 0], norms.norms[0, :, 0]
        row = explained(timestep, norm, T, self.resamples, self.seed)
        report.add([{"benchmark": NAME, "estimator": "none", **row, "n": len(norm), "swept": {"checkpoint": self.pretrained}}])
        scatter = figures.Scatter("pretrained", timestep, norm, self._columns(experiment))
        report.figure("norm_vs_timestep_pretrained", figures.norms_by_timestep([scatter], T, get(experiment.train), STRETCHES))

    def _columns(self, experiment: Experiment) -> np.ndarray:
        """Positions of the examples that are looked at over all timesteps, ascending."""
        N = len(experiment.data.load().train)
        return np.sort(np.random.default_rng([self.seed, 0]).permutation(N)[: self.examples])

    def _pool(self, experiment: Experiment) -> Split:
        columns = self._columns(experiment)
        everybody = len(columns) == len(experiment.data.load().train)
        return experiment.train if everybody else Split(experiment.data, "train", tuple(columns.tolist()))

    def _at_training(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator]) -> GradientNorms:
        settings = {"record": experiment.record, "checkpoints": _checkpoints(estimators), "execution": experiment.execution}
        return GradientNorms(GradientsAtRecordedDraws(images=experiment.train, **settings))

    def _curves(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], images: ImageSet) -> GradientNorms:
        return self._largest(experiment).norms(experiment.record, images, _checkpoints(estimators))

    def _largest(self, experiment: Experiment) -> AtLargestNorm:
        grid = np.linspace(1, experiment.diffusion.process.T, self.timesteps).round().astype(int)
        return AtLargestNorm(tuple(grid.tolist()), experiment.execution)

    def _retimed(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], pool: ImageSet
    ) -> dict[tuple[str, str, str], Node[Scores]]:
        """Scores of the examples at other timesteps of training, by kind of queries, estimator and timing."""
        timings: dict[str, Timing] = {T_MAX: self._largest(experiment), RANDOM: AtRandom(self.seed)}
        records = {name: Retimed.of(experiment.record, pool, _checkpoints(estimators), timing) for name, timing in timings.items()}
        return {
            (kind, name, timing): estimator.scores(record, pool, queries.node(experiment))
            for timing, record in records.items()
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
        }

    def _pretrained_norms(self, experiment: Experiment) -> list[GradientNorms]:
        """At one draw of each of the examples: nobody knows those of its training."""
        if self._pipeline is None:
            return []
        try:
            self._pipeline.check_shape(experiment.shape)
        except ValueError as error:
            raise ValueError(f"benchmark.pretrained={self.pretrained}: {error}") from error
        images, scheme = self._pool(experiment), Uniform(1, self.seed)
        return [
            GradientNorms(PipelineGradients(images=images, pipeline=self._pipeline, scheme=scheme, execution=experiment.execution))
        ]

    @cached_property
    def _pipeline(self) -> Pipeline | None:
        return None if self.pretrained is None else Pipeline(self.pretrained)

    def _checked(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, TrajectoryEstimator]:
        """Before anything is trained: what would fail at the end."""
        N, T = len(experiment.data.load().train), experiment.diffusion.process.T
        whole("benchmark.examples", self.examples, 2)
        for name, (least, most) in {
            "timesteps": (2, T),
            "correlated": (3, min(self.examples, N)),
            "manipulated": (1, None),
            "k": (1, N),
            "resamples": (1, None),
        }.items():
            whole(f"benchmark.{name}", getattr(self, name), least, most)
        replaying = replaying_only(estimators, NAME)
        if len({str(estimator.checkpoints) for estimator in replaying.values()}) > 1:
            told = ", ".join(f"{name} {estimator.checkpoints}" for name, estimator in replaying.items())
            raise ValueError(
                f"benchmark={NAME}: different checkpoints ({told}): give all estimators the same (estimator.checkpoints)"
            )
        self._pretrained_norms(experiment)
        return replaying


def replaying_only(estimators: Mapping[str, Estimator], benchmark: str) -> dict[str, TrajectoryEstimator]:
    """The estimators, if they replay training, which is what ``benchmark`` looks at.

    Raises:
        ValueError: one that does not, or one that answers for several numbers of draws or bins of timesteps.
    """
    found = {}
    for name, estimator in estimators.items():
        if not isinstance(estimator, TrajectoryEstimator):
            raise ValueError(f"benchmark={benchmark}: estimator={name} does not replay training; choose tracin or retrac")
        estimator.draws.refuse_lists("estimator.draws", f"benchmark={benchmark}")
        found[name] = estimator
    return found


def _checkpoints(estimators: Mapping[str, TrajectoryEstimator]) -> int | str | Sequence[int]:
    """The one choice of all."""
    return next(iter(estimators.values())).checkpoints
