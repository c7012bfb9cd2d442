"""What plans count for nodes that are computed in one call."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from attribution.curvature import KFAC
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.lissa import LiSSA
from attribution.estimators.retrac import ReTrac
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.tracin import TracIn
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.nodes import Cost, Node
from attribution.projection import Gaussian, Identity
from experiments.store.plan import plan
from experiments.store.store import Store
from tests.experiments.store.nodes_for_store import Crowd
from tests.worlds import PROCESS, Blobs, trained

TRAIN, QUERIES = Blobs(8), Blobs(3, first=7)
DRAWS = Uniform(6, seed=1, train=4)
CPU, LOSS = Execution(device="cpu"), Loss(PROCESS)
ESTIMATORS = {
    "kfac": KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=KFAC(draws=Uniform(2)), damping=1e-3, execution=CPU),
    "grad_dot": GradientSimilarity(measurement=LOSS, draws=DRAWS, projection=Gaussian(4), cosine=False, execution=CPU),
    "trak": TRAK(measurement=LOSS, draws=DRAWS, projection=Gaussian(4), damping=1e-3, execution=CPU),
    "retrac": ReTrac(measurement=LOSS, draws=Uniform(6, seed=1), checkpoints=2, execution=CPU),
}


def in_groups(estimator: Any, R: int) -> Any:
    return replace(estimator, draws=replace(estimator.draws, replicates=R))


@pytest.fixture(scope="module")
def model():
    return trained(data=TRAIN)


@pytest.fixture(scope="module")
def root(model, tmp_path_factory):
    """A store that has the trained model."""
    folder = tmp_path_factory.mktemp("store")
    Store(folder)(model)
    return folder


def passes(nodes: Sequence[Node], root) -> float:
    return plan(nodes, Store(root))[-1]["passes"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_groups_of_draws_share_their_passes(name, model, root, tmp_path):
    """Claim: a plan counts them once, whether or not the model, which decides the parts, is stored; so do tables of scores."""
    plain, grouped = (each.scores(model, TRAIN, QUERIES) for each in (ESTIMATORS[name], in_groups(ESTIMATORS[name], 2)))
    assert passes([grouped], root) == passes([plain], root) > 0
    assert passes([grouped], tmp_path) == passes([plain], tmp_path)
    assert grouped.passes(Store(root)) == plain.passes(Store(root))


@pytest.mark.parametrize("names", [["kfac"], ["retrac"], ["tracin", "plain"], ["products"]])
def test_passes_of_a_plan_are_those_of_the_run(names, model, root, monkeypatch):
    """Claim: the inputs that are differentiated are those of the plan, for groups of draws, and for two estimators together."""
    estimators = {name: in_groups(each, 2) for name, each in ESTIMATORS.items()}
    estimators["plain"] = replace(ESTIMATORS["retrac"], draws=Uniform(4, seed=2))
    estimators["tracin"] = TracIn(measurement=LOSS, draws=Uniform(4, seed=2), checkpoints=2, execution=CPU)
    estimators["products"] = replace(estimators["grad_dot"], projection=Identity())  # of queries' gradients with two groups
    nodes, store = [estimators[name].scores(model, TRAIN, QUERIES) for name in names], Store(root)
    if names == ["kfac"]:
        store(estimators["kfac"].basis(model, TRAIN))
    planned, inputs = passes(nodes, root), []
    original = PerExampleGradients.capture

    def counted(self, measure, x0, draws, condition=None):
        inputs.append(len(x0) * draws.count)
        return original(self, measure, x0, draws, condition)

    monkeypatch.setattr(PerExampleGradients, "capture", counted)
    store.many(nodes)
    assert sum(inputs) == planned


def test_lissa_s_queries_share_the_recursion(model, root):
    """Claim: its passes count once for all blocks of queries, and its vectors are those of all blocks together."""
    estimator = LiSSA(measurement=LOSS, draws=Uniform(2), depth=5, batch_size=4, execution=replace(CPU, query_shard=1))
    rows = {row["class"]: row for row in plan([estimator.scores(model, TRAIN, QUERIES)], Store(root))}
    assert rows["LissaQueryBlock"]["nodes"] == 3
    assert rows["LissaQueryBlock"]["passes"] == 3 * 2 + 5 * 4
    assert rows["LissaQueryBlock"]["memory"] == (4 * 3 + 4) * 4 * model.parameter_count
    assert rows["LissaTrainingBlock"]["memory"] == (3 + 8) * 4 * model.parameter_count


@dataclass(frozen=True, kw_only=True)
class Sharing(Crowd):
    """Those of a parity share ten passes."""

    def cost(self) -> Cost:
        return self.cost_together([self])

    @classmethod
    def cost_together(cls, nodes) -> Cost:
        return Cost(passes=10.0, memory=sum(node.number for node in nodes), disk=8.0 * len(nodes))


def test_times_follow_from_shares_of_passes(tmp_path):
    """Claim: a record has the node's share of passes, so that the time of others follows from the passes that these share."""
    store = Store(tmp_path)
    store.many([Sharing(number=i) for i in (1, 3, 5, 7)])
    for path in tmp_path.glob("*/*/node.json"):
        record = json.loads(path.read_text())
        assert (record["cost"]["passes"], record["cost"]["memory"], record["cost"]["disk"]) == (2.5, 16, 8.0)
        path.write_text(json.dumps({**record, "seconds": 3.0}))  # 12 seconds for 10 passes
    row, _ = plan([Sharing(number=i) for i in (2, 4, 9)], store)
    assert (row["nodes"], row["passes"], row["memory"], row["disk"]) == (3, 20.0, 9, 24.0)
    assert (row["seconds"], row["unknown"]) == (24.0, 0)
