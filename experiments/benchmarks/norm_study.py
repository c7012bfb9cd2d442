"""Gradient norms over timesteps (ReTrac §4.2, app. A), as several benchmarks report them: nodes, rows, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import FieldError, whole
from attribution.estimators.retiming import AtLargestNorm
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.gradients.gradient_sets import GradientsAtRecordedDraws, PipelineGradients
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import Uniform
from attribution.models.pipeline import Pipeline
from attribution.nodes import Get, Node
from attribution.training.checkpoints import select
from experiments import figures
from experiments.benchmarks.timestep_bias_rows import STRETCHES, Bias, explained_row
from experiments.datasets import Split
from experiments.metrics.bootstrap import Bootstrap
from experiments.models.experiment import Experiment
from experiments.report.report import Report


@dataclass(frozen=True, kw_only=True)
class NormSettings:
    """What a benchmark of gradient norms measures.

    Norms are of the training loss at the noise that an example was last trained with. Those of up to ``examples`` training images
    are taken at ``timesteps`` evenly spaced timesteps; t_max(x) is the timestep of the largest. Algorithm 1 is computed for
    ``correlated`` of the examples. ``pretrained`` adds the norms of another model, a diffusers pipeline.
    """

    examples: int
    timesteps: int
    correlated: int
    resamples: int
    seed: int
    pretrained: str | None

    @classmethod
    def of(cls, benchmark: Any) -> Self:
        """Return the settings of a benchmark that has fields of the same names."""
        return cls(**{field.name: getattr(benchmark, field.name) for field in fields(cls)})

    @cached_property
    def pipeline(self) -> Pipeline | None:
        """The pretrained pipeline."""
        return None if self.pretrained is None else Pipeline(self.pretrained)

    def check(self, benchmark: Any, experiment: Experiment) -> None:
        """Check the settings, which are those of ``benchmark``, before anything is trained.

        Raises:
            FieldError: a number is out of range, or the pipeline does not take the experiment's images.
        """
        N, T = len(experiment.data.load().train), experiment.diffusion.process.T
        whole(benchmark, "examples", least=2)
        whole(benchmark, "timesteps", 2, T)
        whole(benchmark, "correlated", 3, min(self.examples, N))
        whole(benchmark, "resamples", least=1)
        try:
            if self.pipeline is not None:
                self.pipeline.check_shape(experiment.shape)
        except ValueError as error:
            raise FieldError(benchmark, "pretrained", str(error)) from error


@dataclass(frozen=True, kw_only=True)
class NormStudy:
    """The norms of an experiment at ``checkpoints``, which takes the same values as that of an estimator, for ``benchmark``."""

    experiment: Experiment
    checkpoints: int | str | Sequence[int]
    settings: NormSettings
    benchmark: str

    @property
    def nodes(self) -> list[Node]:
        """The nodes of all norms, except those of single images in figures."""
        return [self._at_training, self._curves(self.pool), *self._pretrained]

    @property
    def largest(self) -> AtLargestNorm:
        """The choice of t_max among the compared timesteps."""
        return at_largest_norm(self.experiment, self.settings.timesteps)

    @cached_property
    def columns(self) -> np.ndarray:
        """Positions of the examples whose norms are taken over all timesteps, ascending."""
        N = len(self.experiment.data.load().train)
        return np.sort(np.random.default_rng([self.settings.seed, 0]).permutation(N)[: self.settings.examples])

    @property
    def pool(self) -> Split:
        """These examples."""
        all_images = len(self.columns) == len(self.experiment.data.load().train)
        return self.experiment.train if all_images else Split(self.experiment.data, "train", tuple(self.columns.tolist()))

    @property
    def correlated(self) -> np.ndarray:
        """Positions among ``columns`` of the examples that enter Algorithm 1, ascending."""
        chosen = np.random.default_rng([self.settings.seed, 1]).permutation(len(self.columns))
        return np.sort(chosen[: self.settings.correlated])

    def bias(self, get: Get) -> Bias:
        """The norms that are measured."""
        record = get(self.experiment.recorded)
        steps = select(self.checkpoints, record.steps, record.losses)
        return Bias(
            steps=steps,
            rates=[record.learning_rate(step) for step in steps],
            trained=get(self._at_training),
            curves=get(self._curves(self.pool)),
            columns=self.columns,
            T=self.experiment.diffusion.process.T,
            bootstrap=self._bootstrap,
            benchmark=self.benchmark,
        )

    def report(self, bias: Bias, example: int, get: Get, report: Report) -> None:
        """Add the rows of norms and of Algorithm 1, and figures. ``example``: position of the training image of the curves."""
        train = get(self.experiment.train)
        report.add(bias.norm_rows())
        correlations = bias.algorithm_1(self.correlated)
        report.add(bias.correlation_rows(correlations))
        scatters = [
            figures.Scatter(f"checkpoint {step}", bias.t_train[s, bias.columns], bias.norms[s, bias.columns], bias.columns)
            for s, step in enumerate(bias.steps)
        ]
        report.figure("norm_vs_timestep", figures.norms_by_timestep(scatters, self._log_snr, train, STRETCHES))
        report.figure("algorithm_1", figures.algorithm_1(bias.steps, correlations, len(train)))
        report.figure("norm_over_timesteps", self.curve_figure(bias, example, get))
        for node in self._pretrained:
            self._report_pretrained(node, get, report)

    def curve_figure(self, bias: Bias, example: int, get: Get) -> Figure:
        """The norm of the training image at position ``example`` over timesteps, with the norms of the other images."""
        alone = Split(self.experiment.data, "train", (example,))
        norms = get(self._curves(alone)).norms[:, 0]
        curves = [
            figures.Curve(
                f"checkpoint {step}", bias.curves.timestep[s, 0], norms[s], bias.curves.norms[s], int(bias.t_train[s, example])
            )
            for s, step in enumerate(bias.steps)
        ]
        return figures.norm_curves(curves, self._log_snr, get(alone))

    def _report_pretrained(self, node: GradientNorms, get: Get, report: Report) -> None:
        assert isinstance(node.gradients, PipelineGradients)
        norms, process = get(node), node.gradients.pipeline.process
        timestep, norm = norms.timestep[0, :, 0], norms.norms[0, :, 0]
        report.add([explained_row(timestep, norm, process.T, self.settings.pretrained, self._bootstrap, self.benchmark)])
        scatter = figures.Scatter("pretrained", timestep, norm, self.columns)
        train = get(self.experiment.train)
        report.figure("norm_vs_timestep_pretrained", figures.norms_by_timestep([scatter], process.log_snr, train, STRETCHES))

    @property
    def _log_snr(self) -> np.ndarray:
        return self.experiment.diffusion.process.log_snr

    @property
    def _at_training(self) -> GradientNorms:
        gradients = GradientsAtRecordedDraws(
            images=self.experiment.train,
            trained=self.experiment.recorded,
            checkpoints=self.checkpoints,
            execution=self.experiment.execution,
        )
        return GradientNorms(gradients)

    def _curves(self, images: ImageSet) -> GradientNorms:
        return self.largest.norms(self.experiment.recorded, images, self.checkpoints)

    @property
    def _pretrained(self) -> list[GradientNorms]:
        """The pipeline's norms at one new draw of each example; the draws that it was trained with are unknown."""
        if self.settings.pipeline is None:
            return []
        scheme, execution = Uniform(1, self.settings.seed), self.experiment.execution
        gradients = PipelineGradients(images=self.pool, pipeline=self.settings.pipeline, scheme=scheme, execution=execution)
        return [GradientNorms(gradients)]

    @property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(self.settings.resamples, self.settings.seed)


def at_largest_norm(experiment: Experiment, timesteps: int) -> AtLargestNorm:
    """The choice of t_max among ``timesteps`` even ones, from 1 to T."""
    grid = np.linspace(1, experiment.diffusion.process.T, timesteps).round().astype(int)
    return AtLargestNorm(tuple(grid.tolist()), experiment.execution)


def common_checkpoints(estimators: Sequence[tuple[str, TrajectoryEstimator]], benchmark: str) -> int | str | Sequence[int]:
    """The checkpoints that all estimators share.

    Raises:
        ValueError: they have different ones.
    """
    if len({str(estimator.checkpoints) for _, estimator in estimators}) > 1:
        listed = ", ".join(f"{name} {estimator.checkpoints}" for name, estimator in estimators)
        raise ValueError(
            f"benchmark={benchmark}: different checkpoints ({listed}): give all estimators the same (estimator.checkpoints)"
        )
    return estimators[0][1].checkpoints
