"""Linear datamodeling score (Park et al. 2023): do scores predict what retraining on subsets does to a query?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from attribution.checks import FieldError, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.compare import compare
from experiments.benchmarks.draw_noise import DrawNoise, noise_bands, of_variants
from experiments.benchmarks.proponents import report_proponents
from experiments.benchmarks.selection import Selection, Selective
from experiments.benchmarks.subset_benchmark import CEILING, MIN_SUBSETS, RETRAINING, SubsetBenchmark, levels
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, computed, scores_of, subject_of, variants_for
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import Statistic
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Effort, Row, Subject

BENCHMARK = "lds"
METRIC = "lds_%"
HELD_OUT = "lds_%_held_out_damping"
BEST = "lds_%_best_damping"
CHOICE = "as published: chosen where reported"
"""How the damping of ``BEST`` is chosen: on the subsets that report it."""
_OTHERS = 1000
"""Added to the seeds of further trainings of the explained model, because retrained models have the next seeds."""
HELD_OUT_SUBSETS = "lds_%_held_out_subsets"


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


@dataclass(frozen=True, kw_only=True)
class LDS(SubsetBenchmark, Selective):
    """Spearman's correlation over subsets between Σ_{i∉S} τ[q, i] and the measurement of q under models trained on S.

    The rows are means over queries with intervals over subsets and queries: at the chosen dampings, at the damping that is best on
    the other half of the subsets, and, as papers report it, at the one that is best on all subsets. Scores that are not finite have
    NaN. Exact retraining as an estimator and the noise ceiling are computed from all
    subsets if ``seeds`` is at least 2, and from the repeated ones otherwise. The figures show ``rows`` queries, each with ``shown``
    proponents. Scores with replicates (``estimator.draws.replicates``) have intervals over their draws too, and the table
    ``expected_lds`` says what other numbers of draws would give.

    ``trainings``: how many times the explained model is trained, with the seeds seed, seed + 1001, seed + 1002, ... All are scored
    for the same queries; LDS at the chosen dampings are means over them, with intervals over trainings too.
    """

    rows: int = 4
    shown: int = 6
    trainings: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("rows", "shown", "trainings"):
            whole(self, name, least=1)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        measured = [node for nodes in self._measured(experiment).values() for node in nodes]
        scores = [node for nodes in self._trainings(experiment, estimators) for node in nodes.values()]
        return [*scores, *measured]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        trainings, truth = self._trainings(experiment, estimators), self.truth(experiment)
        of_trainings = [computed(nodes, get) for nodes in trainings]
        nodes, scores = trainings[0], of_trainings[0]
        retrained = self._measured(experiment)
        train = get(experiment.train)
        removed = self.subsets.removed(train)
        values, held_out, table, expected = [], [], [], []
        for kind, queries in self.queries.items():
            measurements = Measurements(truth.measured(retrained[kind], get), truth.replicates(retrained[kind], get), removed)
            ceiling = self.ceiling(measurements.replicates, len(removed))
            variants = variants_for(kind, estimators, nodes, scores, get)
            images = get(queries.node(experiment))
            each = [
                variants,
                *(variants_for(kind, estimators, *of, get) for of in zip(trainings[1:], of_trainings[1:], strict=True)),
            ]
            predictions = np.stack([[metrics.predicted(v.scores.values, removed) for v in of_one] for of_one in each])
            per_query = PERCENT * metrics.per_query(predictions, measurements.target).mean(0)
            noises = [of_variants(of_one, removed) for of_one in each]
            values += report.add(self._rows(kind, variants, noises, predictions, per_query, measurements, ceiling))
            report.add(_ceiling_rows(kind, measurements.replicates, ceiling))
            swept = [
                Variant(subject_of(name, estimator, nodes[kind, name], get), scores[kind, name])
                for name, estimator in estimators.items()
                if (kind, name) in nodes and "damping" in scores[kind, name].axes
            ]
            held_out += report.add(self._tuned(kind, swept, measurements, ceiling))
            table += _table(kind, images, variants, per_query)
            for noise, value in zip(noises[0], per_query.mean(1).tolist(), strict=True):
                if noise is not None and noise.variant.all_timesteps:
                    expected += noise.expected(kind, value)
                    report.note(noise.sentence(kind, value))
            shown = {v.label: v.scores.values for v in variants if v.all_timesteps and np.isfinite(v.scores.values).all()}
            first, noise = range(min(self.rows, len(images))), noise_bands([v for v in variants if v.label in shown])
            report_proponents(report, kind, images, train, shown, first, noise, top=self.shown)
        report.table("lds_of_queries", table)
        if expected:
            report.table("expected_lds", expected)
        values = [row for row in values if row.minus is None]
        tuned = [row for row in held_out if row.metric == HELD_OUT]
        bars = [row for row in [*values, *tuned] if row.minus is None and row.subject.all_timesteps]
        report.figure("lds", figures.bars(bars, "LDS, %"))
        sweep_figures(report, values)

    def check_selection(self, experiment: Experiment) -> None:
        count = len(self.truth(experiment).selections)
        if count < 2 * MIN_SUBSETS:
            message = f"a search selects on half of the subsets and reports the other half, which needs at least {2 * MIN_SUBSETS}"
            raise FieldError(self, "subsets", message, f"{count} subsets")

    def selection(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get) -> Selection:
        """Return the LDS of the first kind of queries on the even subsets, and rows of its variant on the odd ones.

        If the estimator has several variants, it is the one with the largest LDS on the even subsets.
        """
        name, estimator = next(iter(estimators.items()))
        nodes, truth = scores_of(experiment, {name: estimator}, self.queries), self.truth(experiment)
        scores, retrained = computed(nodes, get), self._measured(experiment)
        removed = self.subsets.removed(get(experiment.train))
        even = metrics.folds(len(removed)) == 0
        best, value, rows = 0, 0.0, []
        for number, kind in enumerate(self.queries):
            variants = [v for v in variants_for(kind, {name: estimator}, nodes, scores, get) if v.all_timesteps]
            predictions = np.stack([metrics.predicted(variant.scores.values, removed) for variant in variants])
            target = truth.measured(retrained[kind], get).mean(0)
            if number == 0:
                selecting = PERCENT * metrics.per_query(predictions[..., even], target[:, even]).mean(1)
                best, value = int(selecting.argmax()), float(selecting.max())
            held_out = metrics.lds(predictions[best, None][..., ~even], target[None][..., ~even], self.bootstrap) * PERCENT
            rows.append(
                Row(
                    benchmark=BENCHMARK,
                    metric=HELD_OUT_SUBSETS,
                    queries=kind,
                    subject=variants[best].subject,
                    estimate=held_out[0, 0].estimate(),
                    levels=levels(self.ceiling(truth.replicates(retrained[kind], get), int((~even).sum()))),
                    about={
                        "subsets": int((~even).sum()),
                        "seeds": self.seeds,
                        "held_out": "odd subsets: 1, 3, 5, ...",
                        "selected_on": f"even subsets, {next(iter(self.queries))} queries",
                        "selection_lds_%": value,
                    },
                )
            )
        return Selection(value, rows)

    def _rows(
        self,
        kind: str,
        variants: Sequence[Variant],
        noises: Sequence[Sequence[DrawNoise | None]],
        predictions: np.ndarray,
        per_query: np.ndarray,
        measurements: Measurements,
        ceiling: Estimate | None,
    ) -> Iterator[Row]:
        """The rows of all variants and of exact retraining.

        ``predictions [T, P, Q, M]`` and ``noises [T][P]`` are those of the variants for each training of the explained model,
        ``per_query [P, Q]`` their LDS in per cent.
        """
        target = measurements.target
        of_trainings = []
        for of_one, of_draws in zip(predictions, noises, strict=True):
            over_subsets = metrics.lds(of_one, target[None], self.bootstrap)
            of_trainings.append(
                [
                    over_subsets[p, 0] if noise is None else noise.statistic(over_subsets[p, 0], target, self.bootstrap)
                    for p, noise in enumerate(of_draws)
                ]
            )
        values = [metrics.over_trainings(of_variant, self.bootstrap) for of_variant in zip(*of_trainings, strict=True)]
        quartiles = np.percentile(per_query, [25, 50, 75], axis=1).T
        yield from compare(
            [variant.subject for variant in variants],
            [value * PERCENT for value in values],
            benchmark=BENCHMARK,
            metric=METRIC,
            queries=kind,
            levels=levels(ceiling),
            about={"subsets": len(measurements.removed), "seeds": self.seeds, **self._several},
            about_each=[
                {"quartiles_of_queries": row, **({} if noise is None else noise.about())}
                for row, noise in zip(quartiles, noises[0], strict=True)
            ],
        )
        if len(measurements.replicates) > 1:
            seeds, _, subsets = measurements.replicates.shape
            yield Row(
                benchmark=BENCHMARK,
                metric=METRIC,
                queries=kind,
                subject=Subject(RETRAINING),
                estimate=(metrics.retraining(measurements.replicates[:, None], self.bootstrap) * PERCENT)[0, 0].estimate(),
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
            held_out = [metrics.cross_validated(sweep, target, self.bootstrap) for _, sweep in sweeps]
            chosen = [{"dampings_chosen": [d[i] for i in best]} for (d, _), (_, best) in zip(sweeps, held_out, strict=True)]
            rows += self._tuned_rows(HELD_OUT, kind, swept, [value for value, _ in held_out], chosen, ceiling)
        best = [metrics.best(sweep, target, self.bootstrap) for _, sweep in sweeps]
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

    def _trainings(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[dict[tuple[str, str], Node[Scores]]]:
        """The scores of every training of the explained model, by kind of queries and estimator."""
        members = [0, *(_OTHERS + i for i in range(1, self.trainings))]
        try:
            experiment.attributed.member(members[-1])
        except ValueError as error:
            raise FieldError(self, "trainings", "the explained model is given and cannot be trained again: set 1") from error
        return [scores_of(experiment, estimators, self.queries, member) for member in members]

    @property
    def _several(self) -> dict[str, int]:
        """A fact for rows that are means over several trainings."""
        return {"trainings": self.trainings} if self.trainings > 1 else {}

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        """The measurements under all retrained models, by kind of queries."""
        truth = self.truth(experiment)
        return {kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()}


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
