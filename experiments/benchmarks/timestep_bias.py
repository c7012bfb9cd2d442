"""The timestep-induced norm bias (ReTrac §4.2, app. A): gradient norms depend on the timestep, and scores on the norms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import FieldError, whole
from attribution.estimators import Estimator
from attribution.estimators.retiming import AtLargestNorm, AtRandom, Retimed, Timing
from attribution.estimators.scores import Scores
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.gradients.gradient_sets import GradientsAtRecordedDraws, PipelineGradients
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import Uniform
from attribution.models.pipeline import Pipeline
from attribution.nodes import Get, Node
from attribution.training.checkpoints import select
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.timestep_bias_rows import BENCHMARK, RANDOM, STRETCHES, T_MAX, Bias, explained_row
from experiments.benchmarks.variants import require_replay, scores_of, subject_of
from experiments.datasets import Split
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Row


@dataclass(frozen=True, kw_only=True)
class TimestepBias(QueryBenchmark):
    """How gradient norms depend on the timestep, and how scores depend on these norms, at the estimators' checkpoints.

    All norms are of the training loss at the noise that an example was last trained with. Those of up to ``examples`` training
    images are taken at ``timesteps`` evenly spaced timesteps; t_max(x) is the timestep of the largest. The rows give

    - for each checkpoint, how much of the norms' variance the timestep explains, and Algorithm 1 on ``correlated`` of the examples;
    - for each estimator, the correlation of its scores with the norms, the example among the top ``k`` of the most queries, and by
      how many ranks of |τ| the ``manipulated`` examples with scores nearest 0 rise if they are given t_max, or a random timestep,
      instead of the timestep that they were trained at.

    ``pretrained`` adds the norms of another model, a diffusers pipeline.
    """

    examples: int = 2000
    timesteps: int = 50
    correlated: int = 50
    manipulated: int = 500
    k: int = 10
    resamples: int = RESAMPLES
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
        replaying, pool, train = self._checked(experiment, estimators), self._pool(experiment), get(experiment.train)
        bias = self._bias(experiment, replaying, pool, get)
        report.add(bias.norm_rows())
        self._show_norms(experiment, replaying, bias, get, report)
        nodes, retimed = scores_of(experiment, estimators, self.queries), self._retimed(experiment, replaying, pool)
        rises: list[Row] = []
        for kind in self.queries:
            subjects = {name: subject_of(name, estimator, nodes[kind, name], get) for name, estimator in estimators.items()}
            scores = {name: get(nodes[kind, name]) for name in estimators}
            changed = {(name, timing): get(retimed[kind, name, timing]) for name in estimators for timing in (T_MAX, RANDOM)}
            report.add(bias.score_rows(scores, subjects, kind))
            rises += report.add(bias.rise_rows(scores, changed, subjects, self.manipulated, kind))
            for name, subject in subjects.items():
                row, example = bias.most_frequent_row(subject, scores[name], train, self.k, kind)
                report.add([row])
                report.figure(f"influential_{kind}_{name}", self._curve_figure(experiment, replaying, bias, example, get))
        report.figure("rank_rise", figures.rank_rises([row for row in rises if row.minus is None]))
        for node in self._pretrained_norms(experiment):
            self._show_pretrained(node, experiment, get, report)

    def _show_norms(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], bias: Bias, get: Get, report: Report
    ) -> None:
        """Algorithm 1, and figures of norms at the checkpoints."""
        train = get(experiment.train)
        chosen = np.sort(np.random.default_rng([self.seed, 1]).permutation(len(bias.columns))[: self.correlated])
        correlations = bias.algorithm_1(chosen)
        report.add(bias.correlation_rows(correlations))
        scatters = [
            figures.Scatter(f"checkpoint {step}", bias.t_train[s, bias.columns], bias.norms[s, bias.columns], bias.columns)
            for s, step in enumerate(bias.steps)
        ]
        report.figure("norm_vs_timestep", figures.norms_by_timestep(scatters, bias.T, train, STRETCHES))
        report.figure("algorithm_1", figures.algorithm_1(bias.steps, correlations, len(train)))
        first = int(bias.columns[chosen[0]])
        report.figure("norm_over_timesteps", self._curve_figure(experiment, estimators, bias, first, get))

    def _bias(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], pool: ImageSet, get: Get) -> Bias:
        record = get(experiment.trained)
        steps = select(_checkpoints(estimators), record.steps, record.losses)
        return Bias(
            steps=steps,
            rates=[record.learning_rate(step) for step in steps],
            trained=get(self._at_training(experiment, estimators)),
            curves=get(self._curves(experiment, estimators, pool)),
            columns=self._columns(experiment),
            T=experiment.diffusion.process.T,
            bootstrap=self._bootstrap,
        )

    def _curve_figure(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], bias: Bias, example: int, get: Get
    ) -> Figure:
        """The norm of the training image at position ``example`` over timesteps, with the norms of the other images."""
        alone = Split(experiment.data, "train", (example,))
        norms = get(self._curves(experiment, estimators, alone)).norms[:, 0]
        curves = [
            figures.Curve(
                f"checkpoint {step}", bias.curves.timestep[s, 0], norms[s], bias.curves.norms[s], int(bias.t_train[s, example])
            )
            for s, step in enumerate(bias.steps)
        ]
        return figures.norm_curves(curves, bias.T, get(alone))

    def _show_pretrained(self, node: GradientNorms, experiment: Experiment, get: Get, report: Report) -> None:
        assert isinstance(node.gradients, PipelineGradients)
        norms, T = get(node), node.gradients.pipeline.process.T
        timestep, norm = norms.timestep[0, :, 0], norms.norms[0, :, 0]
        report.add([explained_row(timestep, norm, T, self.pretrained, self._bootstrap)])
        scatter = figures.Scatter("pretrained", timestep, norm, self._columns(experiment))
        report.figure("norm_vs_timestep_pretrained", figures.norms_by_timestep([scatter], T, get(experiment.train), STRETCHES))

    def _columns(self, experiment: Experiment) -> np.ndarray:
        """Positions of the examples whose norms are taken over all timesteps, ascending."""
        N = len(experiment.data.load().train)
        return np.sort(np.random.default_rng([self.seed, 0]).permutation(N)[: self.examples])

    def _pool(self, experiment: Experiment) -> Split:
        columns = self._columns(experiment)
        all_images = len(columns) == len(experiment.data.load().train)
        return experiment.train if all_images else Split(experiment.data, "train", tuple(columns.tolist()))

    def _at_training(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator]) -> GradientNorms:
        settings = {"trained": experiment.trained, "checkpoints": _checkpoints(estimators), "execution": experiment.execution}
        return GradientNorms(GradientsAtRecordedDraws(images=experiment.train, **settings))

    def _curves(self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], images: ImageSet) -> GradientNorms:
        return self._largest(experiment).norms(experiment.trained, images, _checkpoints(estimators))

    def _largest(self, experiment: Experiment) -> AtLargestNorm:
        grid = np.linspace(1, experiment.diffusion.process.T, self.timesteps).round().astype(int)
        return AtLargestNorm(tuple(grid.tolist()), experiment.execution)

    def _retimed(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator], pool: ImageSet
    ) -> dict[tuple[str, str, str], Node[Scores]]:
        """Scores as if the examples had been trained at other timesteps, by kind of queries, estimator and timing."""
        timings: dict[str, Timing] = {T_MAX: self._largest(experiment), RANDOM: AtRandom(self.seed)}
        records = {name: Retimed.of(experiment.trained, pool, _checkpoints(estimators), timing) for name, timing in timings.items()}
        return {
            (kind, name, timing): estimator.scores(trained, pool, queries.node(experiment))
            for timing, trained in records.items()
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
        }

    def _pretrained_norms(self, experiment: Experiment) -> list[GradientNorms]:
        """The pipeline's norms at one new draw of each example; the draws that it was trained with are unknown."""
        if self._pipeline is None:
            return []
        try:
            self._pipeline.check_shape(experiment.shape)
        except ValueError as error:
            raise FieldError(self, "pretrained", str(error)) from error
        images, scheme = self._pool(experiment), Uniform(1, self.seed)
        return [
            GradientNorms(PipelineGradients(images=images, pipeline=self._pipeline, scheme=scheme, execution=experiment.execution))
        ]

    @cached_property
    def _pipeline(self) -> Pipeline | None:
        return None if self.pretrained is None else Pipeline(self.pretrained)

    @property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(self.resamples, self.seed)

    def _checked(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, TrajectoryEstimator]:
        """Check early what would otherwise fail only after training; return the estimators."""
        N, T = len(experiment.data.load().train), experiment.diffusion.process.T
        whole(self, "examples", least=2)
        for name, (least, most) in {
            "timesteps": (2, T),
            "correlated": (3, min(self.examples, N)),
            "manipulated": (1, None),
            "k": (1, N),
            "resamples": (1, None),
        }.items():
            whole(self, name, least, most)
        replaying = require_replay(estimators, BENCHMARK)
        if len({str(estimator.checkpoints) for estimator in replaying.values()}) > 1:
            listed = ", ".join(f"{name} {estimator.checkpoints}" for name, estimator in replaying.items())
            raise ValueError(
                f"benchmark={BENCHMARK}: different checkpoints ({listed}): give all estimators the same (estimator.checkpoints)"
            )
        self._pretrained_norms(experiment)
        return replaying


def _checkpoints(estimators: Mapping[str, TrajectoryEstimator]) -> int | str | Sequence[int]:
    """The choice that all estimators share."""
    return next(iter(estimators.values())).checkpoints
