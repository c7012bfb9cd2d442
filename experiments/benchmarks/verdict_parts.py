"""The parts of the verdict: rows, and values of single queries, from scores and what retrained models measure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from attribution.images import Images
from experiments.benchmarks.compare import compare, pairs
from experiments.benchmarks.counterfactual_effects import RANDOM
from experiments.benchmarks.draw_noise import lds_of
from experiments.benchmarks.subset_benchmark import CEILING, levels
from experiments.benchmarks.variants import Variant
from experiments.metrics import counterfactual
from experiments.metrics import lds as lds_metrics
from experiments.metrics.bootstrap import CORRELATION_LIMITS, SHARE_LIMITS, Bootstrap, Statistic
from experiments.metrics.correlation import spearman
from experiments.metrics.estimate import PERCENT, Estimate, ratio
from experiments.metrics.precision import average_precision, random_average_precision, recall
from experiments.metrics.ranking import ranks
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "verdict"
LDS, OF_CEILING = "lds_%", "lds_%_of_ceiling"
VARIED, WITHOUT_SIZE = "lds_%_of_varied_sizes", "lds_%_without_size"
RECALL, AVERAGE_PRECISION = "planted_recall", "planted_average_precision"
CONSISTENCY = "spearman_between_trainings"
COUNT = Subject("τ = 1")
"""Scores that are all 1: they count the images that a subset leaves out."""


@dataclass(frozen=True, eq=False)
class Findings:
    """``rows`` of a part, and by column the values of single queries, ``[Q]`` for each variant."""

    rows: Sequence[Row]
    of_queries: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)


def deletion_metric(k: int) -> str:
    """The metric of removing the top ``k``."""
    return f"deletion_%@{k}"


def insertion_metric(k: int) -> str:
    """The metric of training on the top ``k``."""
    return f"insertion_%@{k}"


def lds(
    kind: str,
    variants: Sequence[Variant],
    target: np.ndarray,
    removed: np.ndarray,
    ceiling: Estimate | None,
    bootstrap: Bootstrap,
    seeds: int,
) -> Findings:
    """The LDS of ``benchmark=lds``, and in per cent of the ``ceiling``; ``target [Q, M]``, ``removed [M, N]``."""
    values, per_query, _ = lds_of(variants, removed, target, bootstrap)
    statistics, about = [value * PERCENT for value in values], {"subsets": len(removed), "seeds": seeds}
    rows = _compared(kind, LDS, _subjects(variants), statistics, levels(ceiling), about, _all_pairs(len(variants)))
    if ceiling is not None:
        shared = {"benchmark": BENCHMARK, "queries": kind, "about": about}
        rows.append(Row(metric=LDS, subject=Subject(CEILING), estimate=ceiling, **shared))
        for variant, statistic in zip(variants, statistics, strict=True):
            share, at = ratio(statistic.estimate(), ceiling).scaled(PERCENT), Levels(random=0.0, ceiling=float(PERCENT))
            rows.append(Row(metric=OF_CEILING, subject=variant.subject, estimate=share, levels=at, **shared))
    return Findings(rows, {LDS: list(PERCENT * per_query)})


def deletion(
    kind: str,
    variants: Sequence[Variant],
    measured: np.ndarray,
    top: Sequence[np.ndarray],
    random: np.ndarray,
    k: Sequence[int],
    bootstrap: Bootstrap,
) -> Findings:
    """The rise of the measurement without the top k, in per cent of its mean under models of all images.

    ``measured [K, Q, M]`` is under models without each of M sets, the first of them empty; ``top [F, Q]`` and ``random [F, R]`` are
    the sets of each variant and at random, for each number of images in ``k``.
    """
    changes, unit = counterfactual.changes(measured), abs(float(measured[..., 0].mean()))
    seeds, queries, _ = measured.shape
    rows: list[Row] = []
    of_queries: dict[str, Sequence[np.ndarray]] = {}
    for f, count in enumerate(k):
        at_random = counterfactual.effect(changes, np.broadcast_to(random[f], (queries, random.shape[1])))
        effects = [*(counterfactual.effect(changes, sets[f][:, None]) for sets in top), at_random]
        statistics = [bootstrap.mean(effect, counterfactual.AXES) * (PERCENT / unit) for effect in effects]
        last = len(variants)
        rows += _compared(
            kind,
            deletion_metric(count),
            [*_subjects(variants), RANDOM],
            statistics,
            Levels(random=PERCENT * float(at_random.mean()) / unit),
            {"k": count, "seeds": seeds, "n": queries, "measurement_of_all": unit},
            [*_all_pairs(last), *((place, last) for place in range(last))],
        )
        of_queries[f"delta_measurement@{count}"] = [effect.mean((1, 2)) for effect in effects[:-1]]
        of_queries[f"delta_measurement_random@{count}"] = [at_random.mean((1, 2))] * last
    return Findings(rows, of_queries)


def insertion(
    kind: str,
    variants: Sequence[Variant],
    measured: np.ndarray,
    top: Sequence[np.ndarray],
    random: np.ndarray,
    k: int,
    bootstrap: Bootstrap,
) -> Findings:
    """The measurement under models of ``random [R]`` sets minus that of a query's top k ``[Q]``, in per cent of the first.

    ``measured [K, Q, M]`` is under models of each of M sets only.
    """
    seeds, queries, _ = measured.shape
    at_random = counterfactual.effect(measured, np.broadcast_to(random, (queries, len(random))))
    own = [counterfactual.effect(measured, sets[:, None]) for sets in top]
    unit = abs(float(at_random.mean()))
    level = bootstrap.mean(at_random, counterfactual.AXES)
    statistics = [(level - bootstrap.mean(effect, counterfactual.AXES)) * (PERCENT / unit) for effect in own]
    about = {"k": k, "seeds": seeds, "n": queries, "measurement_of_random": unit}
    rows = _compared(kind, insertion_metric(k), _subjects(variants), statistics, Levels(random=0.0), about)
    return Findings(rows, {f"insertion_gain@{k}": [(at_random.mean(1) - effect.mean(1)).mean(1) for effect in own]})


def sizes(kind: str, variants: Sequence[Variant], target: np.ndarray, removed: np.ndarray, bootstrap: Bootstrap) -> Findings:
    """The LDS on subsets of varied size, that of scores that are all 1, and what is left without the effect of size.

    ``target [Q, M]``, ``removed [M, N]``.
    """
    predictions = [lds_metrics.predicted(variant.scores.values, removed) for variant in variants]
    size = removed.sum(1)
    counted = np.stack([*predictions, np.broadcast_to(size, target.shape)])
    values = lds_metrics.lds(counted, target[None], bootstrap) * PERCENT
    partial = lds_metrics.without(size, np.stack(predictions), target, bootstrap) * PERCENT
    about, subjects, last = {"subsets": len(removed)}, _subjects(variants), len(variants)
    differences = [*pairs(subjects), *((place, last) for place in range(last))]
    statistics = [values[place, 0] for place in range(last + 1)]
    rows = _compared(kind, VARIED, [*subjects, COUNT], statistics, levels(None), about, differences)
    rows += _compared(kind, WITHOUT_SIZE, subjects, [partial[place] for place in range(last)], levels(None), about)
    return Findings(rows)


def planted(
    kind: str,
    variants: Sequence[Variant],
    of_planted: Sequence[Variant],
    rows: np.ndarray,
    k: int,
    bootstrap: Bootstrap,
) -> Findings:
    """Recall of a query's copies, in the training ``rows [Q, copies]``, among its top k, and their average precision."""
    subjects, copies = _subjects(variants), rows.shape[1]
    scores = [np.asarray(variant.scores.values) for variant in of_planted]
    queries, N = scores[0].shape
    chosen = np.zeros((queries, N), dtype=bool)
    np.put_along_axis(chosen, rows, True, axis=1)
    about = {"copies": copies, "n": queries}
    found = [recall(values, chosen, k) for values in scores]
    precision = [average_precision(values, chosen) for values in scores]
    result: list[Row] = []
    for metric, of_queries, random in (
        (f"{RECALL}@{k}", found, k / N),
        (AVERAGE_PRECISION, precision, random_average_precision(copies, N)),
    ):
        statistics = [bootstrap.mean(values, limits=SHARE_LIMITS) for values in of_queries]
        result += _compared(kind, metric, subjects, statistics, Levels(random=random, maximum=1.0), about)
    places = [np.sort(np.stack([ranks(of_query) for of_query in values])[chosen].reshape(queries, copies), 1) for values in scores]
    columns: dict[str, Sequence[np.ndarray]] = {f"planted_rank_{c + 1}": [place[:, c] for place in places] for c in range(copies)}
    return Findings(result, {**columns, AVERAGE_PRECISION: precision})


def consistency(kind: str, variants: Sequence[Variant], others: Sequence[Variant], bootstrap: Bootstrap) -> Findings:
    """Spearman's correlation over training images of the scores under two training runs, the mean over queries."""
    correlations = [spearman(a.scores.values, b.scores.values) for a, b in zip(variants, others, strict=True)]
    statistics = [bootstrap.mean(values, limits=CORRELATION_LIMITS) for values in correlations]
    rows = _compared(kind, CONSISTENCY, _subjects(variants), statistics, Levels(random=0.0, maximum=1.0))
    return Findings(rows, {CONSISTENCY: correlations})


def lines_of_queries(
    kind: str, images: Images, variants: Sequence[Variant], of_queries: Mapping[str, Sequence[np.ndarray]]
) -> Iterator[dict[str, object]]:
    """The lines of the CSV: every value of every query."""
    for place, variant in enumerate(variants):
        for row in range(len(images)):
            values = {column: each[place][row].item() for column, each in of_queries.items()}
            yield {
                "queries": kind,
                "query": int(images.index[row]),
                "query_name": images.name(row),
                "estimator": variant.label,
                **values,
            }


def _compared(
    kind: str,
    metric: str,
    subjects: Sequence[Subject],
    statistics: Sequence[Statistic],
    reference: Levels,
    about: Mapping[str, object] | None = None,
    differences: Sequence[tuple[int, int]] | None = None,
) -> list[Row]:
    return compare(
        subjects,
        statistics,
        benchmark=BENCHMARK,
        metric=metric,
        queries=kind,
        levels=reference,
        about=about,
        differences=differences,
    )


def _subjects(variants: Sequence[Variant]) -> list[Subject]:
    return [variant.subject for variant in variants]


def _all_pairs(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(count) for b in range(a + 1, count)]
