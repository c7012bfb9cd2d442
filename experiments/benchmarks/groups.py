"""Groups of training images as units: leaving one out, group LDS and Shapley values by retraining, against sums of scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, listed, number, whole
from attribution.estimators import Estimator
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.group_parts import (
    LDS,
    LEAVE_ONE_OUT,
    METRICS,
    PARTS,
    PREDICTORS,
    SHAPLEY,
    SURROGATE,
    Found,
    found_for_each_group,
    lines_of_groups,
    rows_of,
    surrogate,
)
from experiments.benchmarks.subset_benchmark import CEILING, RETRAINING, SubsetBenchmark
from experiments.benchmarks.variants import computed, scores_of, variants_for
from experiments.benchmarks.verdict_parts import lines_of_queries
from experiments.datasets.groups import summary
from experiments.metrics import groups as metrics
from experiments.metrics.lds import predicted
from experiments.models.experiment import Experiment
from experiments.models.group_subsets import GroupSubsets, circular_orders, with_groups
from experiments.models.truth import Truth
from experiments.report.attributions import Attributions
from experiments.report.report import Report
from experiments.report.row import Row

_TITLES = {
    "leave_one_out_spearman_%": "one group left out, Spearman, %",
    "leave_one_out_pearson_%": "one group left out, Pearson, %",
    "group_lds_%": "group LDS, %",
    "surrogate_spearman_%": "linear surrogate, Spearman, %",
    "shapley_spearman_%": "Shapley, Spearman, %",
    "shapley_pearson_%": "Shapley, Pearson, %",
}
"""The panels of the figure."""
_NAMES = {
    LEAVE_ONE_OUT: "retraining: rise without the group",
    SURROGATE: "retraining: linear surrogate",
    SHAPLEY: "retraining: Shapley values",
}


@dataclass(frozen=True, kw_only=True)
class GroupBenchmark(SubsetBenchmark):
    """How well the sums of scores over groups agree with models that are trained without groups, in the ``parts`` that are named.

    - leave_one_out: the correlation over groups of a group's score with the rise of the measurement when it is left out
    - lds: the LDS on subsets of whole groups
    - surrogate: the correlation over groups with the coefficients of a linear model of the measurements on these subsets (ridge
      regression with ``damping``), which are the Shapley values of that model
    - shapley: the correlation over groups with the Shapley values of retraining, from models of the coalitions of ``circles``
      circular orders of the groups (``experiments.metrics.groups``)

    All are means over queries. Every set of images is trained with ``seeds`` seeds; within a part, all models train for the same
    number of steps. A run that would train more than ``most_models`` is refused.
    """

    subsets: GroupSubsets
    parts: Sequence[str] = PARTS
    circles: int = 1
    damping: float = 0.0
    most_models: int = 500

    def __post_init__(self):
        super().__post_init__()
        listed(self, "parts", _known_part)
        for name in ("circles", "most_models"):
            whole(self, name, least=1)
        number(self, "damping", least=0)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        truths, choices = self._truths(experiment), self.queries.values()
        measured = [
            node
            for truth in truths.values()
            for choice in choices
            for node in truth.nodes(self.measurement, choice.node(experiment))
        ]
        return [*scores_of(experiment, estimators, self.queries).values(), *measured]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        train, nodes = get(experiment.train), scores_of(experiment, estimators, self.queries)
        groups, scores = self.subsets.groups_in(train), computed(nodes, get)
        members = metrics.indicators(groups, len(train))
        rows: list[Row] = []
        of_groups, of_queries = [], []
        for kind, choice in self.queries.items():
            images = get(choice.node(experiment))
            variants = [v for v in variants_for(kind, estimators, nodes, scores, get) if v.all_timesteps]
            found = list(self._found(kind, groups, experiment, get))
            correlations: dict[str, list[np.ndarray]] = {}
            for each in found:
                added, per_query = rows_of(each, kind, variants, members, _predictors(found, each.part), self.bootstrap)
                rows += report.add(added)
                correlations |= per_query
            sums = {variant.label: predicted(variant.scores.values, members) for variant in variants}
            by_retraining = {each.part: each.target for each in found if each.part != LDS}
            of_groups += lines_of_groups(kind, images, groups, sums, by_retraining)
            of_queries += lines_of_queries(kind, images, variants, correlations)
            report.attribute(Attributions(kind, images, train, {v.label: v.scores.values for v in variants}))
            report.figure(f"groups_{kind}", _matrices(kind, images, list(groups), by_retraining, sums))
        report.note(summary(groups, self.subsets.groups, self.subsets.distance, len(train)))
        report.table("correlations_of_queries", of_queries)
        report.table("group_scores", of_groups)
        last = {name: place for place, name in enumerate((*PREDICTORS.values(), RETRAINING, CEILING), 1)}
        report.figure("groups", figures.panels(sorted(rows, key=lambda row: last.get(row.subject.name, 0)), _TITLES))

    def _truths(self, experiment: Experiment) -> dict[str, Truth]:
        """The models without some groups, for each part that trains its own.

        Raises:
            FieldError: they are more than ``most_models``.
        """
        train = experiment.data.load().train
        groups = self.subsets.groups_in(train)
        G, N = len(groups), len(train)
        self._check_number(G)
        kept = {}
        if LEAVE_ONE_OUT in self.parts:
            kept[LEAVE_ONE_OUT] = np.concatenate([~np.eye(G, dtype=bool), np.ones((1, G), bool)])  # the last has all groups
        if SHAPLEY in self.parts:
            kept[SHAPLEY] = metrics.coalitions(self._orders(G))
        selections = {part: self.subsets.selections_of(with_groups(sets, groups, N)) for part, sets in kept.items()}
        truths = {part: self.truth_on(experiment, of_part) for part, of_part in selections.items()}
        if {LDS, SURROGATE} & set(self.parts):
            truths[LDS] = self.truth(experiment)
        return truths

    def _check_number(self, groups: int) -> None:
        arcs = self.circles * groups * (groups - 3) + 2 * groups + 1
        subsets = self.seeds * self.subsets.count + (self.repeats if self.seeds == 1 else 0)
        numbers = {
            LEAVE_ONE_OUT: self.seeds * (groups + 1) if LEAVE_ONE_OUT in self.parts else 0,
            "subsets": subsets if {LDS, SURROGATE} & set(self.parts) else 0,
            SHAPLEY: self.seeds * arcs if SHAPLEY in self.parts else 0,
        }
        if sum(numbers.values()) > self.most_models:
            each = ", ".join(f"{number:,} for {part}" for part, number in numbers.items() if number)
            message = (
                f"{groups} groups take up to {sum(numbers.values()):,} models ({each}): merge groups, leave out shapley "
                f"(benchmark.parts), take fewer seeds, circles or subsets, or raise it"
            )
            raise FieldError(self, "most_models", message)

    def _orders(self, groups: int) -> np.ndarray:
        return circular_orders(groups, self.circles, self.seed)

    def _found(self, kind: str, groups: Mapping[str, np.ndarray], experiment: Experiment, get: Get) -> Iterator[Found]:
        """What retraining finds in each part, for one kind of queries."""
        queries, G = self.queries[kind].node(experiment), len(groups)
        truths = self._truths(experiment)
        nodes = {part: truth.nodes(self.measurement, queries) for part, truth in truths.items()}
        measured = {part: truth.measured(nodes[part], get) for part, truth in truths.items()}  # [K, Q, M]
        if LEAVE_ONE_OUT in truths:
            yield found_for_each_group(LEAVE_ONE_OUT, measured[LEAVE_ONE_OUT][..., :-1] - measured[LEAVE_ONE_OUT][..., -1:])
        if LDS in truths:
            removed = (1 - self.subsets.weight) * ~self.subsets.kept_groups(G)
            if LDS in self.parts:
                yield Found(LDS, measured[LDS], removed, truths[LDS].replicates(nodes[LDS], get))
            if SURROGATE in self.parts:
                of_seeds = [surrogate(of_seed, removed, self.damping) for of_seed in measured[LDS]]
                yield found_for_each_group(SURROGATE, np.stack(of_seeds))
        if SHAPLEY in truths:
            orders = self._orders(G)
            of_circles = metrics.shapley(measured[SHAPLEY], metrics.coalitions(orders), orders)  # [C, K, Q, G]
            yield found_for_each_group(SHAPLEY, of_circles.mean(0), of_circles.mean(1))


def _predictors(found: Sequence[Found], part: str) -> dict[str, np.ndarray]:
    """What other parts than ``part`` find for each group, to predict it."""
    return {PREDICTORS[each.part]: each.target for each in found if each.part in PREDICTORS and each.part != part}


def _matrices(
    kind: str, images: Images, groups: Sequence[str], by_retraining: Mapping[str, np.ndarray], sums: Mapping[str, np.ndarray]
):
    """Queries × groups, by retraining and by each estimator; queries are in the order of their labels."""
    order = np.argsort(images.label, kind="stable")
    names = [images.name(row) if images.label[row] < 0 else str(images.label[row]) for row in order.tolist()]
    values = {_NAMES[part]: of_groups for part, of_groups in by_retraining.items()} | dict(sums)
    title = f"groups of training images and {kind} queries"
    return figures.group_matrices({name: each[order] for name, each in values.items()}, names, groups, title)


def _known_part(owner: GroupBenchmark, field: str) -> None:
    index = int(field.partition("[")[2].removesuffix("]"))
    if owner.parts[index] not in METRICS:
        raise FieldError(owner, field, f"choose from {', '.join(PARTS)}")
