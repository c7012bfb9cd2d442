"""Learned weights of layers in a report."""

import csv

import pytest

from attribution.estimators.influence import KFACInfluence
from attribution.estimators.layer_weights import LayerWeights, LayerWeightScores
from attribution.nodes import InMemory
from experiments.benchmarks.layer_weights import report_layer_weights
from experiments.report.report import Report
from tests.attribution.estimators.test_layer_weights import CURVED
from tests.attribution.estimators.test_lissa import QUERIES, RECORD, TRAIN


@pytest.mark.parametrize("damping", [0.01, [0.01, 0.1]])
def test_weights_of_requested_dampings_are_reported(tmp_path, damping):
    """Claim: the table has the weight of every group at the requested dampings, and nothing of estimators without weights."""
    get, report = InMemory(), Report(tmp_path, "blobs", 0, command="python run.py")
    layers = LayerWeights("layer", top=2)
    estimators = {"layer_weights": KFACInfluence(**CURVED, damping=damping, layers=layers), "kfac": KFACInfluence(**CURVED)}
    nodes = {("validation", name): estimator.scores(RECORD, TRAIN, QUERIES) for name, estimator in estimators.items()}
    report_layer_weights(report, estimators, nodes, get)
    node = nodes["validation", "layer_weights"]
    assert isinstance(node, LayerWeightScores)
    grid, expected = list(get(node).axes["damping"]), get(node.weights).values
    rows = list(csv.DictReader((report.folder / "layer_weights.csv").read_text().splitlines()))
    found = {(float(row["damping"]), row["layers"]): float(row["weight"]) for row in rows}
    dampings = damping if isinstance(damping, list) else [damping]
    assert found == {(d, name): expected[grid.index(d), 0, g] for d in dampings for g, name in enumerate(node.weights.groups)}
    assert len(report.notes) == len(dampings)
    assert f"first {expected[grid.index(0.01), 0, 0]:.2f}" in report.notes[0]
    assert ("at damping=0.01" in report.notes[0]) == (len(dampings) > 1)
