"""What is found about single queries: tests of their top groups, rows, lines of the CSV, and verdicts in words."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attribution.images import Images
from experiments import figures
from experiments.benchmarks.counterfactual_effects import percent
from experiments.benchmarks.variants import Variant
from experiments.metrics import attributable as metrics
from experiments.metrics import counterfactual
from experiments.metrics.attributable import GroupTest
from experiments.metrics.bootstrap import SHARE_LIMITS, Bootstrap
from experiments.metrics.estimate import PERCENT
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "attributable"
ATTRIBUTABLE, EFFECT, SIGNAL = "attributable_%", "effect_%", "signal_to_noise"
IMAGES = "images"
"""The swept value: the number of training images."""
RANDOM_GROUP = Subject("random group")
"""Each random group in the place of a query's own."""


@dataclass(frozen=True)
class Group:
    """A group of ``count`` of ``images`` training images, given as ``size``; models train for ``steps`` steps."""

    size: float
    count: int
    images: int
    steps: int

    @property
    def label(self) -> str:
        """The size as it was given, "12.5%" or "8"."""
        return percent(self.size) if self.size < 1 else f"{self.count}"


@dataclass(frozen=True, eq=False)
class Finding:
    """The tests of one variant's top ``groups`` (F, in ascending order) of one kind of queries, at one number of training images.

    ``own [F, Q, K]`` and ``random [F, Q, R, K]`` are measurements without a query's own and without random groups, ``whole [Q, K]``
    those under models of all images; K seeds.
    """

    kind: str
    variant: Variant
    groups: Sequence[Group]
    own: np.ndarray
    random: np.ndarray
    whole: np.ndarray
    significance: float

    @classmethod
    def of(
        cls,
        kind: str,
        variant: Variant,
        groups: Sequence[Group],
        measured: np.ndarray,
        top: np.ndarray,
        random: np.ndarray,
        significance: float,
    ) -> "Finding":
        """From measurements ``[K, Q, M]`` without each of M sets, the first empty; ``top [F, Q]``, ``random [F, R]``: sets."""
        Q = measured.shape[1]
        own = [counterfactual.effect(measured, sets[:, None])[:, 0] for sets in top]
        at_random = [counterfactual.effect(measured, np.broadcast_to(sets, (Q, len(sets)))) for sets in random]
        return cls(kind, variant, groups, np.stack(own), np.stack(at_random), measured[..., 0].T, significance)

    @property
    def images(self) -> int:
        """The number of training images."""
        return self.groups[0].images

    @cached_property
    def test(self) -> GroupTest:
        """The test of every query's own groups, ``[F, Q]``."""
        return metrics.against_random(self.own, self.random)

    @cached_property
    def found(self) -> np.ndarray:
        """Which groups of each query do more than random ones, bool ``[F, Q]``."""
        return metrics.significant(self.test.p, self.significance)

    @cached_property
    def found_of_random(self) -> np.ndarray:
        """The same for each random group in the place of a query's own, ``[F, Q, R]``."""
        return metrics.significant(metrics.left_out(self.random).p, self.significance)

    @cached_property
    def smallest(self) -> np.ndarray:
        """The position of the smallest attributable group of each query, ``[Q]``; F: none."""
        return metrics.smallest(self.found)

    def verdict(self, query: int) -> str:
        """The verdict on a query: "attributable to its top 8 images", or "not attributable to its top 32 images or fewer"."""
        place = int(self.smallest[query])
        if place == len(self.groups):
            return f"not attributable to its top {images(self.groups[-1].count)} or fewer"
        return f"attributable to its top {images(self.groups[place].count)}"


def rows(finding: Finding, bootstrap: Bootstrap, random_groups: bool) -> Iterator[Row]:
    """For each size: the shares of queries and of random groups that are attributable, the mean effect, and the median t.

    ``random_groups``: with rows of random groups, which one finding of several variants has (``once``).
    """
    unit, test = abs(float(finding.whole.mean())), finding.test
    Q, R, K = finding.random.shape[1:]
    # Of several sizes, each is found less often than that where there is nothing: the random groups show how often.
    level = Levels(random=PERCENT * finding.significance if len(finding.groups) == 1 else None, maximum=float(PERCENT))
    for f, group in enumerate(finding.groups):
        shared: dict[str, Any] = {
            "benchmark": BENCHMARK,
            "queries": finding.kind,
            "swept": {IMAGES: finding.images},
            "about": {"k": group.count, "steps": group.steps, "seeds": K, "random_groups": R, "n": Q},
        }
        subjects: list[tuple[Subject, np.ndarray, tuple[str, ...]]] = [(finding.variant.subject, finding.found, ("queries",))]
        if random_groups:
            subjects.append((RANDOM_GROUP, finding.found_of_random, ("queries", "removals")))
        for subject, found, axes in subjects:
            share = bootstrap.mean(found[f].astype(np.float64), axes, limits=SHARE_LIMITS).estimate().scaled(PERCENT)
            yield Row(metric=f"{ATTRIBUTABLE}@{group.label}", subject=subject, estimate=share, levels=level, **shared)
        own = bootstrap.mean(finding.own[f][:, None], counterfactual.AXES)
        effect = (own - bootstrap.mean(finding.random[f], counterfactual.AXES)) * (PERCENT / unit)
        of_estimator: dict[str, Any] = {"subject": finding.variant.subject, "levels": Levels(random=0.0), **shared}
        yield Row(metric=f"{EFFECT}@{group.label}", estimate=effect.estimate(), **of_estimator)
        yield Row(metric=f"{SIGNAL}@{group.label}", estimate=bootstrap.median(test.t[f]).estimate(), **of_estimator)


def lines(finding: Finding, queries: Images) -> Iterator[dict[str, object]]:
    """The lines of the CSV: one for each query and size. Effects and errors are in the unit of the measurement."""
    test, noise = finding.test, metrics.retraining_error(finding.random)
    before = finding.whole.mean(1)  # [Q]
    rises, at_random = finding.own.mean(-1) - before, finding.random.mean((-2, -1)) - before
    for q in range(len(queries)):
        for f, group in enumerate(finding.groups):
            estimate = GroupTest(test.effect[f], test.error[f], test.degrees).estimate(q, finding.significance)
            yield {
                "queries": finding.kind,
                "query": int(queries.index[q]),
                "query_name": queries.name(q),
                "estimator": finding.variant.label,
                "training_images": finding.images,
                "steps": group.steps,
                "size": group.label,
                "removed": group.count,
                "measurement": before[q].item(),
                "rise": rises[f, q].item(),
                "rise_random": at_random[f, q].item(),
                "effect": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "error": test.error[f, q].item(),
                "error_of_retraining": noise[f, q].item(),
                "degrees_of_freedom": test.degrees,
                "t": test.t[f, q].item(),
                "p": test.p[f, q].item(),
                "attributable": bool(finding.found[f, q]),
                "verdict": finding.verdict(q),
            }


def verdicts(findings: Sequence[Finding]) -> Iterator[str]:
    """A sentence for each finding; then how often random groups pass for a query's own."""
    for finding in findings:
        places = finding.smallest
        Q, F = len(places), len(finding.groups)
        found = Counter(places[places < F].tolist())
        each = ", ".join(f"{count} to the top {images(finding.groups[f].count)}" for f, count in sorted(found.items()))
        kept = int((places < F).sum())
        yield (
            f"{finding.variant.label}, {finding.images} training images: {kept} of {Q} {finding.kind} queries are attributable"
            f"{f' ({each})' if each else ''}, {Q - kept} not to the top {images(finding.groups[-1].count)} or fewer"
        )
    wrong, expected = of_random_groups(findings), findings[0].significance
    yield (
        f"random groups in place of a query's own pass in {PERCENT * wrong:.1f} % of cases (at most {PERCENT * expected:g} % "
        f"expected): so often a query is called attributable although its top images do no more than random ones"
    )


def once(findings: Sequence[Finding]) -> list[Finding]:
    """The first finding of each kind of queries and training size: random groups are the same for all variants."""
    return list({(finding.kind, finding.images): finding for finding in reversed(findings)}.values())


def of_random_groups(findings: Sequence[Finding]) -> float:
    """The share of random groups that pass for a query's own, over all training sizes and kinds of queries."""
    passed = [finding.found_of_random.any(0).ravel() for finding in once(findings)]
    return float(np.concatenate(passed).mean())


def curves(findings: Sequence[Finding]) -> list[figures.Effects]:
    """What the figure of one variant shows, a panel for each number of training images."""
    return [
        figures.Effects(
            title=f"{finding.images} training images",
            sizes=[group.count for group in finding.groups],
            ratios=finding.test.t / finding.test.threshold(finding.significance),
            found=finding.found,
        )
        for finding in findings
    ]


def images(count: int) -> str:
    """A number of images in words."""
    return f"{count} image{'s' * (count != 1)}"
