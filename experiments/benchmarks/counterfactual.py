"""Counterfactuals: a query's top proponents are removed and the model is trained again (K-FAC influence, fig. 3; D-TRAK)."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from attribution.checks import listed, number, whole
from attribution.estimators import Estimator
from attribution.estimators.embedding import Embedding
from attribution.images import Images
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Get, Node
from attribution.precision import FLOAT32, check_precision
from attribution.retraining.modes import Mode
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare, pairs
from experiments.benchmarks.counterfactual_effects import (
    DELTA,
    EMBEDDED,
    INTACT,
    MEASURED,
    NOTHING,
    ORIGINAL,
    PIXELS,
    RANDOM,
    Outcome,
    Removed,
    boxes,
    effects_of,
    percent,
)
from experiments.benchmarks.regenerated import Distance, Regenerated
from experiments.benchmarks.removals import Ranking, Removals, RemovedSets, removed_count
from experiments.benchmarks.variants import scores_of, variants_of
from experiments.metrics import counterfactual as metrics
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.models.experiment import Experiment
from experiments.models.quadrature import quadrature_notes
from experiments.models.samples import Samples
from experiments.report.attributions import Attributions
from experiments.report.report import Report
from experiments.report.row import Levels, Row

FOR_ANOTHER_QUERY = ", for another query"
PERCENT_REMOVED = "training images removed, %"


@dataclass(frozen=True, kw_only=True)
class Counterfactual(QueryBenchmark):
    """How a query's measurement and regenerated image change when its top ``fractions`` of the training images are removed.

    Models are trained without each set of images for ``steps`` steps, with each of ``seeds`` seeds. Δ is ``measurement`` (a mean
    over ``draws``, the same under all models, in ``precision``) minus that of a model trained on all images with the same seed. A
    query that the model generated is sampled again from the same noise. Its distance from the original, and from what the model of
    all images generates with the same seed, is ℓ2 over pixels in [0, 1], and 1 − cosine under ``embedding`` if there is one.

    References are ``random`` random removals, the sets that were removed for other queries, and no removal. Intervals are from
    ``resamples`` bootstrap resamples of queries, seeds and random removals. A figure shows ``shown`` generated queries.
    """

    fractions: Sequence[float]
    random: int
    seeds: int
    steps: int
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    precision: str = FLOAT32
    embedding: Embedding | None = None
    resamples: int = RESAMPLES
    seed: int = 0
    shown: int = 5

    def __post_init__(self):
        super().__post_init__()
        for name in ("random", "seeds", "steps", "resamples", "shown"):
            whole(self, name, least=1)
        check_precision(self, "precision")
        listed(self, "fractions", partial(number, least=0, below=1))
        self.draws.refuse_lists("a measurement")
        self.draws.refuse_sides("n is the number of draws of every query")

    def notes(self) -> list[str]:
        return quadrature_notes(self.measurement, self.draws)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        removals = self._removals(experiment, estimators)
        return [*(ranking.scores for ranking in removals.rankings), removals]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        removals = self._removals(experiment, estimators)
        sets, changes = removals.sets(get), metrics.changes(get(removals).measured)
        keys = scores_of(experiment, estimators, self.queries)
        top = dict(zip(keys, zip(removals.rankings, sets.top, strict=True), strict=True))
        bootstrap = Bootstrap(self.resamples, self.seed)
        measured: list[Row] = []
        images: list[Row] = []
        for kind, choice in self.queries.items():
            queries = choice.node(experiment)
            removed = [removal for name in estimators if (kind, name) in top for removal in _removed(name, *top[kind, name], get)]
            scores = {removal.variant.label: removal.variant.scores.values for removal in removed}
            report.attribute(Attributions(kind, get(queries), get(experiment.train), scores))
            change = Outcome(MEASURED, DELTA, kind, changes[:, removals.place(queries)])
            measured += self._report(change, removed, sets, bootstrap, report)
            if isinstance(queries, Samples):
                regenerated = Regenerated.of(removals, queries, sets, get)
                distances = list(self._distances(kind, regenerated, experiment))
                for outcome in distances:
                    images += self._report(outcome, removed, sets, bootstrap, report)
                report.figure(f"boxes_{kind}", boxes([change, *distances], removed, sets, self.fractions))
                report.figure(f"regenerated_{kind}", self._pictures(get(queries), regenerated, removed, sets))
        report.figure("counterfactual", figures.curve(measured, PERCENT_REMOVED))
        if images:
            report.figure("regenerated", figures.curve(images, PERCENT_REMOVED))

    def _report(
        self, outcome: Outcome, removed: Sequence[Removed], sets: RemovedSets, bootstrap: Bootstrap, report: Report
    ) -> list[Row]:
        """Add the rows of an outcome to the report, and return the curves to draw."""
        rows = report.add(self._rows(outcome, removed, sets, bootstrap))
        if outcome.values.shape[1] > 1:
            report.add(self._medians(outcome, removed, sets, bootstrap))
            report.add(self._rows_of_others(outcome, removed, sets, bootstrap))
        return _curves(outcome.title, [row for row in rows if row.minus is None])

    def _rows(self, outcome: Outcome, removed: Sequence[Removed], sets: RemovedSets, bootstrap: Bootstrap) -> Iterator[Row]:
        """Estimators, random removals and no removal at each fraction, and their differences."""
        estimators = [removal.variant.subject for removal in removed]
        against_random = [(position, len(estimators)) for position in range(len(estimators))]
        for f, fraction in enumerate(self.fractions):
            subjects, effects = zip(*effects_of(outcome, removed, sets, f), strict=True)
            yield from compare(
                subjects,
                [bootstrap.mean(effect, metrics.AXES) for effect in effects],
                benchmark=outcome.benchmark,
                metric=f"{outcome.metric}@{percent(fraction)}",
                queries=outcome.queries,
                levels=self._levels(outcome, sets, f),
                about=self._about(outcome, sets, f),
                differences=[*pairs(estimators), *against_random],
            )

    def _medians(self, outcome: Outcome, removed: Sequence[Removed], sets: RemovedSets, bootstrap: Bootstrap) -> Iterator[Row]:
        """The median over queries of the mean effect over seeds and removals, at each fraction."""
        for f, fraction in enumerate(self.fractions):
            for subject, effect in effects_of(outcome, removed, sets, f):
                yield Row(
                    benchmark=outcome.benchmark,
                    metric=f"{outcome.metric}@{percent(fraction)}_median",
                    queries=outcome.queries,
                    subject=subject,
                    estimate=bootstrap.median(effect.mean((1, 2))).estimate(),
                    about=self._about(outcome, sets, f),
                )

    def _rows_of_others(
        self, outcome: Outcome, removed: Sequence[Removed], sets: RemovedSets, bootstrap: Bootstrap
    ) -> Iterator[Row]:
        """Mean effect on a query of the sets removed for other queries. Needs two queries."""
        for f, fraction in enumerate(self.fractions):
            for removal in removed:
                subject, others = removal.variant.subject, metrics.effect(outcome.values, metrics.of_others(removal.sets[f]))
                yield Row(
                    benchmark=outcome.benchmark,
                    metric=f"{outcome.metric}@{percent(fraction)}",
                    queries=outcome.queries,
                    subject=dataclasses.replace(subject, name=f"{subject.name}{FOR_ANOTHER_QUERY}"),
                    estimate=bootstrap.mean(others.mean(1, keepdims=True), metrics.AXES).estimate(),
                    levels=self._levels(outcome, sets, f),
                    about=self._about(outcome, sets, f),
                )

    def _levels(self, outcome: Outcome, sets: RemovedSets, f: int) -> Levels:
        queries = outcome.values.shape[1]
        random = metrics.effect(outcome.values, np.broadcast_to(sets.random[f], (queries, self.random)))
        return Levels(random=float(random.mean()))

    def _about(self, outcome: Outcome, sets: RemovedSets, f: int) -> dict[str, float]:
        seeds, queries, _ = outcome.values.shape
        removed = len(sets.rows[sets.random[f, 0]])
        return {"fraction": self.fractions[f], "removed": removed, "n": queries, "seeds": seeds}

    def _distances(self, kind: str, images: Regenerated, experiment: Experiment) -> Iterator[Outcome]:
        """Distances of regenerated images, by pixels and by embedding."""
        yield from _distances(kind, images, PIXELS, metrics.pixel_distance)
        if self.embedding is not None:
            vectors = images.embedded(self.embedding, experiment.execution.torch_device())
            yield from _distances(kind, vectors, EMBEDDED, metrics.cosine_distance)

    def _pictures(self, original: Images, regenerated: Regenerated, removed: Sequence[Removed], sets: RemovedSets) -> Figure:
        """Queries regenerated by models trained with the first seed, after the largest removal."""
        f, Q = int(np.argmax(self.fractions)), len(original)
        indices = {
            NOTHING.label: np.zeros(Q, np.int64),
            RANDOM.label: np.repeat(sets.random[f, :1], Q),
            **{removal.variant.label: removal.sets[f] for removal in removed},
        }
        images = {label: dataclasses.replace(original, pixels=regenerated.under(chosen)) for label, chosen in indices.items()}
        distances = {label: metrics.pixel_distance(image.pixels, original.pixels) for label, image in images.items()}
        title = f"Generated from the same noise after {percent(self.fractions[f])} of the training images were removed"
        return figures.regenerated(title, original, images, distances, range(min(self.shown, Q)))

    def _removals(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> Removals:
        self._check(experiment)
        nodes = scores_of(experiment, estimators, self.queries)
        return Removals(
            trained=experiment.trained,
            rankings=[
                Ranking(self.queries[kind].node(experiment), estimators[name], scores) for (kind, name), scores in nodes.items()
            ],
            fractions=self.fractions,
            random=self.random,
            random_seed=self.seed,
            seeds=[experiment.seed + 1 + k for k in range(self.seeds)],
            steps=self.steps,
            measurement=self.measurement,
            draws=self.draws,
            mode=self._mode(experiment),
            precision=self.precision,
            execution=experiment.execution,
        )

    def _mode(self, experiment: Experiment) -> Mode:
        return self.mode.choose(experiment.trained.outline, experiment.shape, experiment.trainer.batch_size)

    def _check(self, experiment: Experiment) -> None:
        """Check early what would otherwise fail only after training."""
        train = experiment.data.load().train
        for fraction in self.fractions:
            removed_count(fraction, len(train))
        for queries in self.queries.values():
            self.measurement.subject(queries.node(experiment))
        with torch.device("meta"):
            self._mode(experiment).prepare(experiment.model(), experiment.trainer)
        if self.embedding is not None:
            self.embedding.embed(train.take([0]), torch.device("cpu"))


def _removed(name: str, ranking: Ranking, sets: Sequence[np.ndarray], get: Get) -> list[Removed]:
    variants = variants_of(name, ranking.estimator, ranking.scores, get(ranking.scores), get)
    return [Removed(*pair) for pair in zip([v for v in variants if v.all_timesteps], sets, strict=True)]


def _distances(kind: str, images: Regenerated, metric: str, distance: Distance) -> Iterator[Outcome]:
    for benchmark, reference in {ORIGINAL: images.original, INTACT: images.intact}.items():
        yield Outcome(benchmark, metric, kind, images.distances(reference, distance))


def _curves(title: str, rows: Iterable[Row]) -> list[Row]:
    """Rows as points over the share that was removed; the value without removal is drawn as one horizontal line."""
    points, levels = [], []
    for row in rows:
        row = dataclasses.replace(row, metric=title, levels=Levels())
        if row.subject == NOTHING:
            levels.append(row)
        else:
            points.append(row.with_swept({PERCENT_REMOVED: 100 * row.about["fraction"]}))
    return [*points, *levels[:1]]
