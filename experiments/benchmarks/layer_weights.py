"""The learned weights of groups of layers, as a table and in words."""

import itertools
from collections.abc import Mapping
from typing import Any

from attribution.estimators import Estimator
from attribution.estimators.ensemble import EnsembleScores
from attribution.estimators.layer_weights import LayerWeightScores
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments.report.report import Report


def report_layer_weights(
    report: Report,
    estimators: Mapping[str, Estimator],
    nodes: Mapping[tuple[str, str], Node[Scores]],
    get: Get,
) -> None:
    """Add the table ``layer_weights`` and a sentence for each estimator in ``nodes`` that learned weights, by kind of queries.

    Those of an ensemble are of the explained model. A weight of 1 is that of an estimator without weights.
    """
    rows: list[dict[str, Any]] = []
    for (kind, name), of_models in nodes.items():
        node = of_models.members[0] if isinstance(of_models, EnsembleScores) else of_models
        if isinstance(node, LayerWeightScores):
            axes, requested = get(node).axes, estimators[name].requested()
            for point in itertools.product(*(requested.get(axis, values) for axis, values in axes.items())):
                place = tuple(list(values).index(value) for values, value in zip(axes.values(), point, strict=True))
                weights = dict(zip(node.weights.groups, get(node.weights).values[place].tolist(), strict=True))
                at = dict(zip(axes, point, strict=True))
                rows += [{"queries": kind, "estimator": name, **at, "layers": group, "weight": w} for group, w in weights.items()]
                listed = ", ".join(f"{group} {weight:.2f}" for group, weight in weights.items())
                where = ", ".join(f"{axis}={value:g}" for axis, value in at.items() if len(requested.get(axis, ())) > 1)
                report.note(f"weights of layers of {name}{f' at {where}' if where else ''}, {kind} queries: {listed}")
    if rows:
        report.table("layer_weights", rows)
