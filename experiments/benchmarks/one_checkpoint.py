"""Does one checkpoint decide a score (ReTrac, app. B and F.2)? A large norm at a single checkpoint may outweigh all others."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import number, whole
from attribution.estimators import Estimator
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.checkpoint_contributions import contributions_of
from experiments.benchmarks.compare import compare
from experiments.benchmarks.variants import subject_of
from experiments.metrics import checkpoints as metrics
from experiments.metrics.bootstrap import SHARE_LIMITS, Bootstrap
from experiments.metrics.ranking import generally_influential, top_k
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

NAME = "one_checkpoint"
SHARE = "largest_checkpoint_share"


@dataclass(frozen=True, kw_only=True)
class OneCheckpoint(QueryBenchmark):
    """How much of the scores of a query's top ``k`` comes from a single checkpoint, the one with the largest contribution.

    The rows also give this share for the images in the top k of more than a share ``influential`` of the queries, and how much of
    the top k one checkpoint alone would give. The random level of a share is its mean over all training images. The figure shows
    the contributions to the scores of the top ``shown`` of the first ``rows`` queries.
    """

    DRAW_GROUPS = False

    k: int = 10
    influential: float = 0.1
    seed: int = 0
    rows: int = 4
    shown: int = 10

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        self._check(experiment)
        return list(contributions_of(experiment, estimators, self.queries, NAME).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = contributions_of(experiment, estimators, self.queries, NAME)
        train = get(experiment.train)
        for kind, queries in self.queries.items():
            subjects = [subject_of(name, estimator, nodes[kind, name].scores, get) for name, estimator in estimators.items()]
            by_checkpoint = {name: get(nodes[kind, name]) for name in estimators}
            parts = [np.asarray(scores.values) for scores in by_checkpoint.values()]
            report.add(self._rows(subjects, parts, kind))
            steps = {name: scores.axes["checkpoint"] for name, scores in by_checkpoint.items()}
            images, shown = get(queries.node(experiment)), dict(zip(estimators, parts, strict=True))
            figure = figures.checkpoint_parts(images, train, shown, steps, range(min(self.rows, len(images))), self.shown)
            report.figure(f"checkpoints_{kind}", figure)

    def _rows(self, subjects: list[Subject], parts: list[np.ndarray], kind: str) -> list[Row]:
        """The rows of one kind of queries, from the contributions ``[S, Q, N]`` of each subject."""
        bootstrap, N = Bootstrap(seed=self.seed), parts[0].shape[2]
        shares = [metrics.largest_share(part) for part in parts]
        tops = [metrics.members(top_k(part.sum(0), self.k), N) for part in parts]
        general = [np.isin(np.arange(N), generally_influential(top_k(part.sum(0), self.k), self.influential)) for part in parts]
        levels = [Levels(random=float(share.mean()), maximum=1.0) for share in shares]
        about = [{"k": self.k, "checkpoints": len(part), "equal_shares": 1 / len(part)} for part in parts]
        rows = []
        for metric, chosen in {
            f"{SHARE}@{self.k}": tops,
            f"{SHARE}_of_generally_influential": [top & images for top, images in zip(tops, general, strict=True)],
        }.items():
            rows += compare(
                subjects,
                [
                    bootstrap.mean(share, ("queries", "examples"), where=mask, limits=SHARE_LIMITS)
                    for share, mask in zip(shares, chosen, strict=True)
                ],
                benchmark=NAME,
                metric=metric,
                queries=kind,
                levels=levels,
                about_each=[{**facts, "images": int(mask.any(0).sum())} for facts, mask in zip(about, chosen, strict=True)],
            )
        return rows + compare(
            subjects,
            [bootstrap.mean(metrics.overlap_with_one(part, self.k), limits=SHARE_LIMITS) for part in parts],
            benchmark=NAME,
            metric=f"top_{self.k}_from_one_checkpoint",
            queries=kind,
            levels=Levels(random=self.k / N, maximum=1.0),
            about_each=about,
        )

    def _check(self, experiment: Experiment) -> None:
        """Check the settings before anything is trained."""
        N = len(experiment.data.load().train)
        for name in ("k", "shown"):
            whole(self, name, 1, N)
        number(self, "influential", least=0, most=1)
        whole(self, "rows", least=1)
