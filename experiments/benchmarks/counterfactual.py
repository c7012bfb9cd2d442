"""Counterfactuals: a query's top proponents are removed and the model is trained again (K-FAC influence, fig. 3; D-TRAK)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from attribution.retraining.modes import Mode
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.regenerated import Distance, Regenerated
from experiments.benchmarks.removals import Ranking, Removals, RemovedSets, removed_count
from experiments.benchmarks.variants import Variant, scores_of, variants_of
from experiments.figures.mappings import mappings
from experiments.metrics import counterfactual as metrics
from experiments.metrics.counterfactual import Resamples
from experiments.models.experiment import Experiment
from experiments.models.samples import Samples
from experiments.queries import Queries
from experiments.report.report import Report

DELTA, PIXELS, EMBEDDED = "delta_measurement", "image_l2", "embedding_distance"
RANDOM, NOTHING, OTHERS = "random removal", "nothing removed", ", for another query"
X = "training images removed, %"
MEASURED, ORIGINAL, INTACT = "counterfactual", "counterfactual images", "counterfactual images of the same seed"
"""What rows call their benchmark: a table each."""
FROM = {ORIGINAL: " from the original", INTACT: ", same seed"}
TITLES = {DELTA: "Δ measurement", PIXELS: "image ℓ2", EMBEDDED: "embedding"}

Top = tuple[Variant, np.ndarray]
"""An estimator at one value of its settings, and the numbers ``[F, Q]`` of the sets that it has removed."""


@dataclass(frozen=True, kw_only=True)
class Counterfactual(Benchmark):
    """What a query measures, and how it looks generated anew, when its top ``fractions`` of the training images are removed.

    Every set is left out of ``seeds`` trainings of ``steps`` steps. Δ is ``measurement`` (a mean over ``draws``, the same under all
    models) minus that of a model trained on all images with the same seed. A query that the model generated is sampled again from
    the same noise. Its distance from the original, and from what the model of all images with the same seed makes, is ℓ2 over
    pixels in [0, 1], and 1 - cosine under ``embedding`` if there is one.

    Levels: ``random`` random removals; what was removed for the other queries; nothing removed. Intervals are bootstraps over
    queries, seeds and random removals.
    """

    queries: Mapping[str, Queries]
    fractions: Sequence[float]
    random: int
    seeds: int
    steps: int
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    embedding: Embedding | None = None
    resamples: int = 1000
    seed: int = 0
    shown: int = 5

    def __post_init__(self):
        for name in ("random", "seeds", "steps", "resamples", "shown"):
            whole(f"benchmark.{name}", getattr(self, name), 1)
        listed("benchmark.fractions", self.fractions, partial(number, least=0, below=1))
        if not self.queries:
            raise ValueError("benchmark.queries={}: name at least one kind of queries")

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        removals = self._removals(experiment, estimators)
        return [*(ranking.scores for ranking in removals.rankings), removals]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        removals = self._removals(experiment, estimators)
        sets, changes = removals.sets(get), metrics.changes(get(removals).measured)
        asked = dict(
            zip(scores_of(experiment, estimators, self.queries), zip(removals.rankings, sets.top, strict=True), strict=True)
        )
        for kind, chosen in self.queries.items():
            queries = chosen.node(experiment)
            tops = [pair for name in estimators for pair in _tops(name, *asked[kind, name], get)]
            numbers = {(MEASURED, DELTA): changes[:, removals.place(queries)]}
            if isinstance(queries, Samples):
                anew = Regenerated.of(removals, queries, sets, get)
                numbers |= _distances(anew, PIXELS, metrics.pixel_distance)
                if self.embedding is not None:
                    vectors = anew.embedded(self.embedding, experiment.execution.torch_device())
                    numbers |= _distances(vectors, EMBEDDED, metrics.cosine_distance)
                report.figure(f"regenerated_{kind}", self._pictures(get(queries), anew, tops, sets))
            for (table, metric), values in numbers.items():
                report.add({"benchmark": table, "queries": kind, **row} for row in self._rows(metric, values, tops, sets))
        for name, tables in (("counterfactual", [MEASURED]), ("regenerated", [ORIGINAL, INTACT])):
            if rows := [row for row in mappings(report.rows) if row["benchmark"] in tables]:
                report.figure(name, figures.curve(_curves(rows), X))

    def _rows(self, metric: str, values: np.ndarray, tops: Sequence[Top], sets: RemovedSets) -> Iterator[dict[str, Any]]:
        """Of values ``[K, Q, M]``, at each fraction."""
        K, Q, _ = values.shape
        resamples = Resamples.draw(Q, self.random, K, self.resamples, self.seed)
        for f, fraction in enumerate(self.fractions):
            removed = len(sets.rows[sets.random[f, 0]])
            common = {"metric": f"{metric}@{_percent(fraction)}", "fraction": fraction, "removed": removed, "n": Q, "seeds": K}
            random = metrics.effect(values, np.broadcast_to(sets.random[f], (Q, self.random)))
            levels = {**common, "random": random.mean()}
            own = [metrics.effect(values, numbers[f, :, None]) for _, numbers in tops]
            for (variant, _), effect in zip(tops, own, strict=True):
                yield {**variant.row, **levels, **metrics.mean(effect, resamples)._asdict()}
            yield {"estimator": RANDOM, **levels, **metrics.mean(random, resamples)._asdict()}
            nothing = metrics.effect(values, np.zeros((Q, 1), np.int64))
            yield {"estimator": NOTHING, **levels, **metrics.mean(nothing, resamples)._asdict()}
            for variant, numbers in tops if Q > 1 else ():
                others = metrics.effect(values, metrics.of_others(numbers[f])).mean(1, keepdims=True)
                estimate = metrics.mean(others, resamples)
                yield {**variant.row, "estimator": f"{variant.estimator}{OTHERS}", **levels, **estimate._asdict()}
            pairs = [(tops[0][0].label, variant.label, own[0] - effect) for (variant, _), effect in zip(tops, own, strict=True)][1:]
            pairs += [(variant.label, RANDOM, effect - random) for (variant, _), effect in zip(tops, own, strict=True)]
            for first, second, difference in pairs:
                yield {"estimator": f"{first} − {second}", **common, **metrics.mean(difference, resamples)._asdict()}

    def _pictures(self, original: Images, anew: Regenerated, tops: Sequence[Top], sets: RemovedSets) -> Figure:
        """Queries generated anew under models of the first seed, after the largest removal."""
        f = int(np.argmax(self.fractions))
        removed = {
            NOTHING: np.zeros(len(original), np.int64),
            RANDOM: np.repeat(sets.random[f, :1], len(original)),
            **{variant.label: numbers[f] for variant, numbers in tops},
        }
        images = {label: dataclasses.replace(original, pixels=anew.under(numbers)) for label, numbers in removed.items()}
        distances = {label: metrics.pixel_distance(of.pixels, original.pixels) for label, of in images.items()}
        title = f"Generated from the same noise after {_percent(self.fractions[f])} of the training images were removed"
        return figures.regenerated(title, original, images, distances, range(min(self.shown, len(original))))

    def _removals(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> Removals:
        self._check(experiment)
        nodes = scores_of(experiment, estimators, self.queries)
        return Removals(
            record=experiment.record,
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
            mode=self.mode,
            execution=experiment.execution,
        )

    def _check(self, experiment: Experiment) -> None:
        """Before anything is trained: what would fail at the end."""
        train = experiment.data.load().train
        for fraction in self.fractions:
            removed_count(fraction, len(train))
        for queries in self.queries.values():
            self.measurement.subject(queries.node(experiment))
        with torch.device("meta"):
            self.mode.prepare(experiment.model())
        if self.embedding is not None:
            self.embedding.embed(train.take([0]), torch.device("cpu"))


def _tops(name: str, ranking: Ranking, numbers: Sequence[np.ndarray], get: Get) -> list[Top]:
    variants = variants_of(name, ranking.estimator, ranking.scores, get(ranking.scores))
    return list(zip([variant for variant in variants if variant.whole], numbers, strict=True))


def _distances(anew: Regenerated, metric: str, distance: Distance) -> dict[tuple[str, str], np.ndarray]:
    references = {ORIGINAL: anew.original, INTACT: anew.intact}
    return {(table, metric): anew.distances(reference, distance) for table, reference in references.items()}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as lines over the share that was removed; what nothing removed gives is a level all across."""
    drawn, levels = [], {}
    for row in rows:
        metric = TITLES[row["metric"].partition("@")[0]] + FROM.get(row["benchmark"], "")
        settings = {name: value for name, value in (row.get("swept") or {}).items() if name != "benchmark.fractions"}
        line = {**row, "metric": metric, "random": None, "swept": settings}
        if row["estimator"] == NOTHING:
            levels[metric, row["queries"]] = line
        elif "−" not in row["estimator"] and not row["estimator"].endswith(OTHERS):
            drawn.append({**line, "swept": {**settings, X: 100 * row["fraction"]}})
    return [*drawn, *levels.values()]
