"""The rows, tables and figures of an LDS, from scores and measurements: those of benchmark=lds and of task=judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from attribution.images import Images
from experiments import figures
from experiments.benchmarks.compare import compare
from experiments.benchmarks.draw_noise import DrawNoise, draws_note, lds_of
from experiments.benchmarks.subset_benchmark import CEILING, MIN_SUBSETS, RETRAINING, ceiling_of, levels
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.report.report import Report
from experiments.report.row import Effort, Row, Subject

BENCHMARK = "lds"
METRIC = "lds_%"
HELD_OUT = "lds_%_held_out_damping"
BEST = "lds_%_best_damping"
CHOICE = "as published: chosen where reported"
"""How the damping of ``BEST`` is chosen: on the subsets that report it."""


@dataclass(frozen=True)
class Measurements:
    """The truth for one kind of queries.

    ``measured [K, Q, M]`` are the measurements under all retrained models, ``replicates [K', Q, M']`` those of the subsets trained
    most often; ``removed [M, N]``: the weight each subset removes from each example.
    """

    measured: np.ndarray
    replicates: np.ndarray
    removed: np.ndarray

    @property
    def target(self) -> np.ndarray:
        """The mean over training seeds, which scores predict: ``[Q, M]``."""
        return self.measured.mean(0)


@dataclass(frozen=True)
class LDSInputs:
    """What the LDS of one ``kind`` of queries is computed from.

    ``swept`` are the estimators with several dampings, with the scores at all of them. Only ids and names of ``queries`` count.
    ``again`` has the same variants for further trainings of the explained model, by label.
    """

    kind: str
    queries: Images
    variants: Sequence[Variant]
    swept: Sequence[Variant]
    measurements: Measurements
    again: Mapping[str, Sequence[Variant]] = field(default_factory=dict)


class LDSReport:
    """Adds the LDS of each kind of queries to ``report``; ``close`` adds what shows all kinds together.

    Intervals are from ``bootstrap``.
    """

    def __init__(self, report: Report, bootstrap: Bootstrap):
        self._report, self._bootstrap = report, bootstrap
        self._values: list[Row] = []
        self._tuned_values: list[Row] = []
        self._table: list[dict[str, object]] = []
        self._expected: list[dict[str, object]] = []

    def add(self, inputs: LDSInputs) -> list[Row]:
        """Add the LDS of all variants, and return its rows."""
        kind, variants, measurements = inputs.kind, inputs.variants, inputs.measurements
        ceiling = ceiling_of(measurements.replicates, self._bootstrap, len(measurements.measured), len(measurements.removed))
        values, per_query, noises = self._values_of(inputs)
        trainings = [1 + len(inputs.again.get(variant.label, ())) for variant in variants]
        added = self._report.add(self._rows(kind, variants, noises, values, per_query, trainings, measurements, ceiling))
        self._report.add(_ceiling_rows(kind, measurements.replicates, ceiling))
        self._values += added
        self._tuned_values += self._report.add(self._tuned(kind, inputs.swept, measurements, ceiling))
        self._table += _table(kind, inputs.queries, variants, per_query)
        self._add_noise(kind, noises, per_query.mean(1).tolist())
        return added

    def _add_noise(self, kind: str, noises: Sequence[DrawNoise | None], values: Sequence[float]) -> None:
        """Say how much of each LDS is noise of the draws."""
        known = [(noise, value) for noise, value in zip(noises, values, strict=True) if noise and noise.variant.all_timesteps]
        for noise, value in known:
            self._expected += noise.expected(kind, value)
        if known:
            self._report.note(draws_note(kind, *zip(*known, strict=True)))

    def close(self) -> None:
        """Add the tables of all queries and the figures of all rows."""
        self._report.table("lds_of_queries", self._table)
        if self._expected:
            self._report.table("expected_lds", self._expected)
        values = [row for row in self._values if row.minus is None]
        tuned = [row for row in self._tuned_values if row.metric == HELD_OUT]
        bars = [row for row in [*values, *tuned] if row.minus is None and row.subject.all_timesteps]
        self._report.figure("lds", figures.bars(bars, "LDS, %"))
        sweep_figures(self._report, values)

    def _values_of(self, inputs: LDSInputs) -> tuple[list[Statistic], np.ndarray, list[DrawNoise | None]]:
        """The LDS of each variant, that of its queries in per cent, ``[P, Q]``, and the noise of its draws.

        LDS are means over the trainings of the explained model; the noise is that of the first one.
        """
        removed, target = inputs.measurements.removed, inputs.measurements.target
        each = [[variant, *inputs.again.get(variant.label, ())] for variant in inputs.variants]
        values: list[list[Statistic]] = [[] for _ in each]
        per_query: list[list[np.ndarray]] = [[] for _ in each]
        first = []
        for training in range(max(map(len, each))):
            present = [p for p, trained in enumerate(each) if training < len(trained)]
            variants = [each[p][training] for p in present]
            statistics, of_queries, noises = lds_of(variants, removed, target, self._bootstrap)
            first = first or noises
            for p, statistic, of_variant in zip(present, statistics, PERCENT * of_queries, strict=True):
                values[p].append(statistic)
                per_query[p].append(of_variant)
        means = [metrics.over_trainings(of_variant, self._bootstrap) for of_variant in values]
        return means, np.stack([np.mean(of_variant, 0) for of_variant in per_query]), first

    def _rows(
        self,
        kind: str,
        variants: Sequence[Variant],
        noises: Sequence[DrawNoise | None],
        values: Sequence[Statistic],
        per_query: np.ndarray,
        trainings: Sequence[int],
        measurements: Measurements,
        ceiling: Estimate | None,
    ) -> Iterator[Row]:
        """The rows of all variants, with ``values`` and ``per_query [P, Q]`` of ``_values_of``, and of exact retraining."""
        several = {"trainings": trainings[0]} if set(trainings) == {trainings[0]} != {1} else {}
        quartiles = np.percentile(per_query, [25, 50, 75], axis=1).T
        yield from compare(
            [variant.subject for variant in variants],
            [value * PERCENT for value in values],
            benchmark=BENCHMARK,
            metric=METRIC,
            queries=kind,
            levels=levels(ceiling),
            about={"subsets": len(measurements.removed), "seeds": len(measurements.measured), **several},
            about_each=[
                {
                    "quartiles_of_queries": row,
                    **({} if noise is None else noise.about()),
                    **({"trainings": count} if count > 1 else {}),
                }
                for row, noise, count in zip(quartiles, noises, trainings, strict=True)
            ],
        )
        if len(measurements.replicates) > 1:
            seeds, _, subsets = measurements.replicates.shape
            yield Row(
                benchmark=BENCHMARK,
                metric=METRIC,
                queries=kind,
                subject=Subject(RETRAINING),
                estimate=(metrics.retraining(measurements.replicates[:, None], self._bootstrap) * PERCENT)[0, 0].estimate(),
                levels=levels(ceiling),
                about={"subsets": subsets, "seeds": seeds},
            )

    def _tuned(self, kind: str, swept: Sequence[Variant], measurements: Measurements, ceiling: Estimate | None) -> list[Row]:
        """The LDS at the damping that is best on the other half of the subsets, and at the one that is best on all.

        The first is left out if half of the subsets are too few for a correlation.
        """
        sweeps = [_at_dampings(variant, measurements.removed) for variant in swept]
        target, rows = measurements.target, []
        if len(measurements.removed) >= 2 * MIN_SUBSETS:
            held_out = [metrics.cross_validated(sweep, target, self._bootstrap) for _, sweep in sweeps]
            chosen = [{"dampings_chosen": [d[i] for i in best]} for (d, _), (_, best) in zip(sweeps, held_out, strict=True)]
            rows += self._tuned_rows(HELD_OUT, kind, swept, [value for value, _ in held_out], chosen, ceiling)
        best = [metrics.best(sweep, target, self._bootstrap) for _, sweep in sweeps]
        chosen = [{"damping_chosen": d[i], "choice": CHOICE} for (d, _), (_, i) in zip(sweeps, best, strict=True)]
        return rows + self._tuned_rows(BEST, kind, swept, [value for value, _ in best], chosen, ceiling)

    def _tuned_rows(
        self,
        metric: str,
        kind: str,
        swept: Sequence[Variant],
        values: Sequence[Statistic],
        chosen: Sequence[Mapping[str, object]],
        ceiling: Estimate | None,
    ) -> list[Row]:
        return compare(
            [variant.subject for variant in swept],
            [value * PERCENT for value in values],
            benchmark=BENCHMARK,
            metric=metric,
            queries=kind,
            levels=levels(ceiling),
            about_each=chosen,
        )


def _at_dampings(variant: Variant, removed: np.ndarray) -> tuple[list[float], np.ndarray]:
    """All dampings of an estimator's scores, and what the scores at each predict for ``removed [M, N]``: ``[D, Q, M]``."""
    axes = variant.scores.axes
    fixed = {axis: axes[axis][-1 if axis == "draws" else 0] for axis in axes if axis != "damping"}
    dampings = list(axes["damping"])
    scores = (variant.scores.at(damping=damping, **fixed).values for damping in dampings)
    return dampings, np.stack([metrics.predicted(values, removed) for values in scores])


def _ceiling_rows(kind: str, replicates: np.ndarray, ceiling: Estimate | None) -> Iterator[Row]:
    """The noise ceiling with its interval, if subsets were trained more than once."""
    if ceiling is not None:
        seeds, _, subsets = replicates.shape
        about = {"subsets": subsets, "seeds": seeds}
        yield Row(benchmark=BENCHMARK, metric=METRIC, queries=kind, subject=Subject(CEILING), estimate=ceiling, about=about)


def _table(kind: str, images: Images, variants: Sequence[Variant], per_query: np.ndarray) -> Iterator[dict[str, object]]:
    """The lines of the CSV: the LDS of every query with every variant."""
    for variant, values in zip(variants, per_query.tolist(), strict=True):
        effort = asdict(variant.subject.effort or Effort())
        for row, value in enumerate(values):
            query = {"query": int(images.index[row]), "query_name": images.name(row)}
            yield {"queries": kind, **query, "estimator": variant.label, METRIC: value, **effort}
