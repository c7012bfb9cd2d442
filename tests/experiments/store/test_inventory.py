"""Claims about listing, explaining, pruning and planning."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from attribution.nodes import Cost
from experiments.store.errors import StoreError
from experiments.store.inventory import explain, listing
from experiments.store.inventory_table import duration, show, show_explanation, size
from experiments.store.locks import locked
from experiments.store.plan import plan
from experiments.store.prune import prune
from experiments.store.storage import begin
from experiments.store.store import Store
from tests.experiments.store.nodes_for_store import Child, Draw, Failing, Fleeting, Shard, Sized, Table


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def leave_unfinished(store: Store, number: int = 1) -> Failing:
    """A node whose computation failed half-way."""
    node = Failing(number=number)
    with pytest.raises(ValueError, match="no"):
        store(node)
    return node


def make_older(store: Store, node, days: float) -> None:
    path = store.folder(node) / "node.json"
    record = json.loads(path.read_text())
    record["created"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    path.write_text(json.dumps(record))


# list


def test_the_list_tells_class_size_age_time_and_settings_and_flags_what_is_unfinished(store):
    node = Child(parent=Draw(number=1, scale=0.5), number=3)
    store(node)
    left = leave_unfinished(store)
    rows = {(row["class"], row["state"]): row for row in listing(store.root)}
    assert rows.keys() == {("Child", "stored"), ("Draw", "stored"), ("Failing", "unfinished")}
    row = rows["Child", "stored"]
    assert row["fingerprint"] == node.fingerprint
    assert row["bytes"] == sum(path.stat().st_size for path in store.folder(node).iterdir())
    assert 0 <= row["age"] < 60
    assert row["seconds"] < 5
    assert row["summary"] == "parent=Draw number=3"
    assert rows["Failing", "unfinished"]["fingerprint"] == left.fingerprint
    assert rows["Failing", "unfinished"]["summary"] == "number=1 scale=1"


def test_what_somebody_computes_is_listed_as_running(store):
    node = leave_unfinished(store)
    with locked(store.root, [node.fingerprint]) as free:
        assert free
        assert [row["state"] for row in listing(store.root)] == ["running"]


def test_a_store_that_is_not_there_yet_lists_nothing(tmp_path):
    assert listing(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


# explain


def test_an_explanation_tells_what_a_node_is_needs_and_is_needed_by(store):
    """Dependences are found from the descriptions alone, whether or not they are stored."""
    middle = Child(parent=Draw(number=1))
    top = Child(parent=middle, number=5)
    store(top)
    prune(store, node_class="Draw", dry_run=False)
    found = explain(store.root, middle.fingerprint[:8])
    assert found["class"] == "Child"
    assert found["state"] == "stored"
    assert found["check"] == "intact"
    assert found["description"] == middle.description()
    assert found["depends_on"] == [{"class": "Draw", "fingerprint": Draw(number=1).fingerprint, "stored": False}]
    assert found["needed_by"] == [{"class": "Child", "fingerprint": top.fingerprint, "stored": True}]
    assert {"versions", "git", "seconds", "created"} <= found.keys()


def test_an_explanation_reads_every_byte_and_says_what_is_damaged(store):
    store(Draw(number=1))
    (store.folder(Draw(number=1)) / "values.npy").write_bytes(b"")
    assert "values.npy has 0 bytes" in explain(store.root, Draw(number=1).fingerprint)["check"]


def test_an_unfinished_node_can_be_explained(store):
    found = explain(store.root, leave_unfinished(store).fingerprint)
    assert (found["state"], found["check"]) == ("unfinished", "not finished")
    assert found["description"]["number"] == 1


def test_an_unknown_or_ambiguous_prefix_is_an_error_that_says_so(store):
    store.many([Draw(number=i) for i in range(20)])  # of 20 fingerprints two begin with the same of 16 digits
    first = [Draw(number=i).fingerprint[0] for i in range(20)]
    shared = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(StoreError, match=f"fingerprints begin with '{shared}'.*more digits"):
        explain(store.root, shared)
    for unknown in ("x", ""):
        with pytest.raises(StoreError, match="begins with"):
            explain(store.root, unknown)


# prune


def test_nothing_is_removed_unless_told_so(store):
    """The default is a dry run: what would go, and how many bytes."""
    node = leave_unfinished(store)
    (row,) = prune(store, unfinished=True)
    assert (row["fingerprint"], row["removed"]) == (node.fingerprint, False)
    assert row["bytes"] > 0
    assert store.folder(node).with_suffix(".part").exists()
    (row,) = prune(store, unfinished=True, dry_run=False)
    assert row["removed"]
    assert listing(store.root) == []


def test_conditions_are_met_together(store):
    """Conditions on the class and on the age are combined."""
    store.many([Draw(number=1), Draw(number=2)])
    store(Child(parent=Draw(number=1)))
    make_older(store, Draw(number=1), days=10)
    make_older(store, Child(parent=Draw(number=1)), days=10)
    assert [row["fingerprint"] for row in prune(store, node_class="Draw", older_than_days=5)] == [Draw(number=1).fingerprint]
    assert len(prune(store, older_than_days=5)) == 2
    assert prune(store, unfinished=True, older_than_days=5) == []


def test_pruning_keeps_what_the_given_nodes_need(store):
    """Parents of kept nodes stay; shards that a crash left behind a finished table go."""
    kept = [Child(parent=Draw(number=1)), Table(shards=2)]
    store.many([*kept, Draw(number=2)])
    Store(store.root)(Shard(number=0))
    gone = {row["fingerprint"] for row in prune(store, keep=kept, dry_run=False)}
    assert gone == {Draw(number=2).fingerprint, Shard(number=0).fingerprint}
    assert all(store.has(node) for node in [*kept, Draw(number=1)])


def test_shards_of_an_unfinished_table_are_kept_for_it(store):
    store.many([Shard(number=0), Shard(number=5)])
    assert [row["fingerprint"] for row in prune(store, keep=[Table(shards=2)])] == [Shard(number=5).fingerprint]


def test_what_is_being_computed_is_never_removed(store):
    """Neither its work in progress nor, between a look and the removal, the stored node itself."""
    node = leave_unfinished(store)
    store(Draw(number=1))
    with locked(store.root, [node.fingerprint, Draw(number=1).fingerprint]) as free:
        assert free
        rows = prune(store, older_than_days=0, dry_run=False)
    assert [(row["class"], row["removed"]) for row in rows] == [("Draw", False)]
    assert store.folder(node).with_suffix(".part").exists()
    assert store.has(Draw(number=1))


def test_what_a_crash_left_of_a_removal_goes_with_the_unfinished(store):
    store(Draw(number=1))
    store.folder(Draw(number=1)).rename(store.folder(Draw(number=1)).with_suffix(".gone"))
    assert [row["removed"] for row in prune(store, unfinished=True, dry_run=False)] == [True]
    assert listing(store.root) == []


def test_to_prune_without_a_condition_is_an_error(store):
    with pytest.raises(StoreError, match="condition"):
        prune(store, dry_run=False)


# plan


class PerPass:
    """Half a second and 7 bytes for each pass."""

    def seconds(self, cost: Cost) -> float:
        return 0.5 * cost.passes * cost.pass_weight

    def memory(self, cost: Cost) -> float:
        return cost.memory + 7.0 * cost.passes


def test_a_plan_counts_what_is_missing_by_class_with_passes_memory_and_disk(store):
    """A parent that several nodes share is counted once; what only lives in memory is not listed; nothing is computed."""
    nodes = [Child(parent=Draw(number=3), number=1), Child(parent=Draw(number=3), number=2), Child(parent=Fleeting(number=1))]
    rows = {row["class"]: row for row in plan(nodes, store, PerPass())}
    assert rows.keys() == {"Child", "Draw", "total"}
    cost = Cost(passes=10.0, memory=400.0, disk=1000.0)
    assert rows["Draw"] == {
        "class": "Draw", "work": "draw", "nodes": 1, "passes": 10.0, "memory": 470.0, "disk": 1000.0, "seconds": 5.0, "unknown": 0,
        "cost": cost,
    }  # fmt: skip
    assert rows["Child"]["nodes"] == 3
    assert rows["Child"]["seconds"] == 0
    assert rows["total"] == {
        "class": "total", "work": "", "nodes": 4, "passes": 10.0, "memory": 470.0, "disk": 1000.0, "seconds": 5.0, "unknown": 0,
        "cost": cost,
    }  # fmt: skip
    unrated = {row["class"]: row for row in plan(nodes, store)}
    assert (unrated["Child"]["seconds"], unrated["Child"]["unknown"]) == (None, 3)
    assert unrated["Draw"]["memory"] == 400.0
    assert listing(store.root) == []


def test_a_plan_lists_missing_shards_and_those_only(store):
    store(Shard(number=1))
    rows = {row["class"]: row for row in plan([Table(shards=4)], store, PerPass())}
    assert {name: row["nodes"] for name, row in rows.items()} == {"Table": 1, "Shard": 3, "total": 4}
    assert rows["Shard"]["passes"] == 30


def test_a_plan_adds_the_memory_of_passes(store):
    """Claim: what passes take is added to what their node counts; nodes without passes take none."""
    rows = {row["class"]: row for row in plan([Table(shards=4)], store, PerPass())}
    assert rows["Shard"]["memory"] == 100.0 * 4 + 7.0 * 10
    assert rows["Table"]["memory"] == 0


def test_a_node_that_is_there_hides_all_it_was_made_from(store):
    node = Child(parent=Draw(number=1))
    store(node)
    prune(store, node_class="Draw", dry_run=False)
    (total,) = plan([node], store)
    assert (total["nodes"], total["seconds"], total["unknown"]) == (0, 0, 0)


def test_without_a_rate_a_plan_goes_by_what_the_class_took_before(store):
    """Seconds per pass from node.json: 0.2 s or more for 10 passes, twice that for two nodes."""
    store(Draw(number=1, seconds=0.2))
    rows = plan([Draw(number=2), Draw(number=3)], store)
    assert 0.4 <= rows[0]["seconds"] < 2
    assert rows[0]["unknown"] == 0


def test_a_plan_does_without_parts_that_a_missing_parent_decides(store):
    """Before the parent is there, only the node and its parent can be listed; afterwards the parts too."""
    node = Sized(parent=Draw(number=1))
    assert {row["class"]: row["nodes"] for row in plan([node], store)} == {"Sized": 1, "Draw": 1, "total": 2}
    store(Draw(number=1))
    assert {row["class"]: row["nodes"] for row in plan([node], store)} == {"Sized": 1, "Shard": 5, "total": 6}


# printing


def test_rows_print_with_units_and_whole_fingerprints(store):
    store(Draw(number=1))
    begin(store.folder(Draw(number=2)).with_suffix(".part"), Draw(number=2))
    out = io.StringIO()
    show(listing(store.root), "store", Console(file=out, width=120))
    assert Draw(number=1).fingerprint in out.getvalue()
    assert Draw(number=2).fingerprint in out.getvalue()
    assert "?" in out.getvalue()  # nobody knows how long the unfinished one takes
    show([], "store", Console(file=out))
    assert "store: nothing" in out.getvalue()


def test_an_explanation_prints_every_part_of_it(store):
    store(Child(parent=Draw(number=1, scale=0.125)))
    out = io.StringIO()
    show_explanation(explain(store.root, Child(parent=Draw(number=1, scale=0.125)).fingerprint), Console(file=out, width=60))
    text = out.getvalue()
    assert all(word in text for word in ("check: intact", '"scale": 0.125', "depends on", "needed by: nothing", "versions", " kB"))
    assert Draw(number=1, scale=0.125).fingerprint in text


def test_units_are_readable():
    assert [size(n) for n in (0, 999, 1500, 2.5e9, 3e15)] == ["0 B", "999 B", "1.5 kB", "2.5 GB", "3000.0 TB"]
    assert [duration(s) for s in (0.25, 59, 120, 4000, 3599.9, 10 * 86400)] == [
        "0.2 s", "59.0 s", "2 min", "1 h 07 min", "1 h 00 min", "10.0 days"
    ]  # fmt: skip
