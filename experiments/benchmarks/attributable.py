"""Can a query be attributed? The effect of removing its top images against the noise of retraining, by group and training size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from attribution.checks import FieldError, listed, number, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Get, Node
from attribution.precision import FLOAT32
from attribution.retraining.modes import Mode
from experiments import figures
from experiments.benchmarks import attributable_parts as parts
from experiments.benchmarks.attributable_table import attributable_table
from experiments.benchmarks.base import QueryBenchmark, check_measuring
from experiments.benchmarks.removals import Ranking, Removals
from experiments.benchmarks.variants import computed, scores_under, variants_for
from experiments.datasets import Split
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.models.experiment import Experiment
from experiments.models.quadrature import quadrature_notes
from experiments.models.trained import TrainedModel
from experiments.report.attributions import Attributions
from experiments.report.report import Report

FEWEST_SEEDS, FEWEST_RANDOM = 2, 3

AllScores = Mapping[tuple[str, str], Node[Scores]]


@dataclass(frozen=True, kw_only=True)
class Attributable(QueryBenchmark):
    """Which queries can be attributed, to how many of their top images, and for how many training images.

    The model is trained on random subsets of the training images of ``training_sizes``, each contained in the next, and the
    estimators score each subset. A query's top groups of ``sizes`` are removed, and the model is trained again with each of
    ``seeds`` seeds. The change of ``measurement`` (a mean over ``draws``, the same under all models, in ``precision``) is compared
    with that of ``random`` random groups of the same size at ``significance`` (``experiments.metrics.attributable``). Numbers in
    ``sizes`` below 1 are shares of the subset, those in ``training_sizes`` up to 1 shares of all training images.

    Models train for ``steps`` steps; None: for as many epochs as the run's model. At most ``budget`` models are trained. Intervals
    of means are from ``resamples`` bootstrap resamples. Without ``keep_models`` a retrained model is deleted when it is measured.
    """

    sizes: Sequence[float]
    training_sizes: Sequence[float]
    seeds: int
    random: int
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    significance: float = 0.05
    steps: int | None = None
    budget: int = 600
    precision: str = FLOAT32
    keep_models: bool = True
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("budget", "resamples"):
            whole(self, name, least=1)
        if self.steps is not None:
            whole(self, "steps", least=1)
        for name, least, why in (
            ("seeds", FEWEST_SEEDS, "training runs, whose differences are the noise of retraining"),
            ("random", FEWEST_RANDOM, "random groups to compare with"),
        ):
            whole(self, name, least=1)
            if getattr(self, name) < least:
                raise FieldError(self, name, f"give at least {least} {why}")
        number(self, "significance", least=0, below=0.5)
        if self.significance == 0:
            raise FieldError(self, "significance", "must be above 0 and below 0.5, such as 0.05")
        for name in ("sizes", "training_sizes"):
            listed(self, name, partial(number, least=0))
        check_measuring(self)

    def notes(self) -> list[str]:
        return quadrature_notes(self.measurement, self.draws)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        for queries in self.queries.values():
            self.measurement.subject(queries.node(experiment))
        found: list[Node] = []
        models = 0
        for N in self.numbers_of_images(experiment):
            scores = self._scores(experiment, estimators, N)
            removals = self._removals(experiment, estimators, scores, N)
            each = [math.prod(map(len, estimators[name].requested().values())) for _, name in scores]  # variants
            of_rankings = sum(n * ranking.queries.count for n, ranking in zip(each, removals.rankings, strict=True))
            models += 1 + self.seeds * (1 + len(self._groups(experiment, N)) * (self.random + of_rankings))
            found += [*scores.values(), removals]
        if models > self.budget:
            message = (
                f"up to {models} models would be trained: compare fewer estimators, take fewer queries (benchmark.queries.*.n), "
                "sizes, training_sizes, seeds or random groups, or raise the budget"
            )
            raise FieldError(self, "budget", message)
        return found

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        bootstrap, found = Bootstrap(self.resamples, self.seed), []
        for N in self.numbers_of_images(experiment):
            nodes = self._scores(experiment, estimators, N)
            scores, removals = computed(nodes, get), self._removals(experiment, estimators, nodes, N)
            sets, measured = removals.sets(get), get(removals).measured
            for kind, choice in self.queries.items():
                queries = choice.node(experiment)
                variants = [v for v in variants_for(kind, estimators, nodes, scores, get) if v.all_timesteps]
                pairs = zip(nodes, sets.top, strict=True)
                top = [array for (of, _), arrays in pairs if of == kind for array in arrays]  # [variant] of [F, Q]
                of_kind = measured[:, removals.place(queries)]
                found += [
                    parts.Finding.of(kind, variant, self._groups(experiment, N), of_kind, sets_of, sets.random, self.significance)
                    for variant, sets_of in zip(variants, top, strict=True)
                ]
                shown = {variant.label: variant.scores.values for variant in variants}
                if experiment.train.count == N:
                    report.attribute(Attributions(kind, get(queries), get(experiment.train), shown))
        once = parts.once(found)
        rows = report.add(row for finding in found for row in parts.rows(finding, bootstrap, finding in once))
        images = {kind: get(choice.node(experiment)) for kind, choice in self.queries.items()}
        report.table("attributable_queries", [line for finding in found for line in parts.lines(finding, images[finding.kind])])
        for note in parts.verdicts(found):
            report.note(note)
        report.replace_table(parts.BENCHMARK, attributable_table(found, images, report.data))
        for kind, label in dict.fromkeys((finding.kind, finding.variant.label) for finding in found):
            of_label = [finding for finding in found if (finding.kind, finding.variant.label) == (kind, label)]
            names = [images[kind].name(row) for row in range(len(images[kind]))]
            title = f"{label}, {kind} queries: effect of the top images beyond that of random ones"
            report.figure(f"effects_{kind}_{label}".replace(" ", "_"), figures.effects(title, parts.curves(of_label), names))
        shares = [row for row in rows if row.metric.startswith(parts.ATTRIBUTABLE)]
        report.figure("attributable", figures.curve(shares, parts.IMAGES, "training images"))

    def numbers_of_images(self, experiment: Experiment) -> list[int]:
        """The numbers of images of the training sets, in ascending order.

        Raises:
            FieldError: a training set would have fewer than two images, or more than there are.
        """
        N, found = experiment.train.count, set()
        for i, size in enumerate(self.training_sizes):
            count = round(size * N) if size <= 1 else size
            if count != int(count) or not 2 <= count <= N:
                message = f"is {count:g} of {N} training images: give shares up to 1, or numbers of images within 2..{N}"
                raise FieldError(self, f"training_sizes[{i}]", message)
            found.add(int(count))
        return sorted(found)

    def _groups(self, experiment: Experiment, N: int) -> list[parts.Group]:
        """The groups to remove of ``N`` training images, in ascending order of their size."""
        found = {}
        for i, size in enumerate(self.sizes):
            count = round(size * N) if size < 1 else size
            if count != int(count) or not 1 <= count < N:
                message = (
                    f"is {count:g} of {N} training images: give shares below 1, or numbers of images within 1..{N - 1}; every one "
                    f"of the training_sizes needs it"
                )
                raise FieldError(self, f"sizes[{i}]", message)
            found.setdefault(int(count), parts.Group(size, int(count), N, self._steps(experiment, N)))
        return [found[count] for count in sorted(found)]

    def _steps(self, experiment: Experiment, N: int) -> int:
        return self.steps or max(1, round(N / experiment.train.count * experiment.trainer.steps))

    def _training(self, experiment: Experiment, N: int) -> TrainedModel:
        """The training run on ``N`` images."""
        training, everything = experiment.training, experiment.train.count
        recipe = replace(training.recipe, steps=self._steps(experiment, N))
        if everything == N:
            return replace(training, recipe=recipe)
        rows = np.sort(np.random.default_rng([self.seed, 0xA77]).permutation(everything)[:N])
        return replace(training, recipe=recipe, data=Split(experiment.data, "train", tuple(rows.tolist())))

    def _explained(self, experiment: Experiment, N: int) -> Trained:
        """The explained model of ``N`` images; that of the run for all of them."""
        if experiment.train.count == N and self._steps(experiment, N) == experiment.trainer.steps:
            return experiment.attributed
        if not isinstance(experiment.trained, TrainedModel):
            if experiment.train.count > N:
                raise FieldError(self, "training_sizes", "the explained model is given and is not trained on fewer images: set [1]")
            message = f"the explained model is given, with trainer.steps={experiment.trainer.steps}: set null"
            raise FieldError(self, "steps", message)
        return experiment.parameters.of(self._training(experiment, N))

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator], N: int) -> AllScores:
        data = self._training(experiment, N).data
        return scores_under(self._explained(experiment, N), data, experiment, estimators, self.queries)

    def _removals(self, experiment: Experiment, estimators: Mapping[str, Estimator], scores: AllScores, N: int) -> Removals:
        training = self._training(experiment, N)
        return Removals(
            trained=training,
            rankings=[
                Ranking(self.queries[kind].node(experiment), estimators[name], node) for (kind, name), node in scores.items()
            ],
            fractions=[group.count / N for group in self._groups(experiment, N)],
            random=self.random,
            random_seed=self.seed,
            seeds=[experiment.seed + 1 + i for i in range(self.seeds)],
            steps=training.recipe.steps,
            measurement=self.measurement,
            draws=self.draws,
            mode=self.mode.choose(training.outline, experiment.shape, training.recipe),
            precision=self.precision,
            regenerate=False,
            keep_models=self.keep_models,
            execution=experiment.execution,
        )
