"""Claims about the store: what it finds again, which parts it keeps, what it refuses."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import disk
from experiments.store import locks
from experiments.store import store as store_module
from experiments.store.errors import StoreError
from experiments.store.locks import locked
from experiments.store.storage import fingerprint_of, remove
from experiments.store.store import Store
from tests.experiments.store.nodes_for_store import (
    ROOT,
    Child,
    Crowd,
    Draw,
    Failing,
    Fleeting,
    Half,
    Newer,
    Numbers,
    Selfish,
    Shard,
    Sized,
    Table,
    computed,
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


# What it finds again


def test_a_node_is_computed_once_and_found_by_every_later_store(tmp_path, log):
    """A second store over the same folder reads what the first computed, bit for bit."""
    first = Store(tmp_path)(Draw(number=1, log=str(log)))
    second = Store(tmp_path)(Draw(number=1, log=str(log)))
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.values, np.random.default_rng(1).standard_normal(5))
    assert computed(log) == {"Draw 1": 1}


def test_many_keeps_order_and_duplicates_and_computes_only_what_is_missing(tmp_path, log):
    store = Store(tmp_path)
    store(Draw(number=2, log=str(log)))
    values = [a.values[0] for a in store.many([Draw(number=i, log=str(log)) for i in (3, 2, 3, 1)])]
    assert values == [np.random.default_rng(i).standard_normal(5)[0] for i in (3, 2, 3, 1)]
    assert computed(log) == {"Draw 1": 1, "Draw 2": 1, "Draw 3": 1}


def test_an_artifact_in_use_is_the_same_object_when_asked_for_again(tmp_path):
    store = Store(tmp_path)
    assert store(Draw(number=1)) is store(Draw(number=1))


def test_execution_fields_are_no_part_of_the_identity_but_are_written_down(tmp_path, log):
    """How a node was computed does not make it another; the folder tells it."""
    store = Store(tmp_path)
    store(Draw(number=1, log=str(log), seconds=0.01))
    Store(tmp_path)(Draw(number=1, log=str(log), seconds=5.0))
    assert computed(log) == {"Draw 1": 1}
    record = json.loads((store.folder(Draw(number=1)) / "node.json").read_text())
    assert record["execution"] == {"log": str(log), "seconds": 0.01}
    assert "log" not in record["description"]


def test_default_values_and_given_ones_are_the_same_node_and_a_version_is_another(monkeypatch):
    """Identity is content: spelling out a default changes nothing; VERSION, class and value each do."""
    same, other = Draw(number=1).fingerprint, Draw(number=1, scale=2.0).fingerprint
    assert Draw(number=1, scale=1).fingerprint == same
    assert len({same, other, Newer(number=1).fingerprint}) == 3
    monkeypatch.setattr(Draw, "VERSION", 2)
    assert Draw(number=1).fingerprint != same


@pytest.mark.slow
def test_identity_is_the_same_in_every_process():
    """Fingerprints do not depend on the hash seed of the interpreter."""
    code = """
from tests.experiments.store.nodes_for_store import Child, Draw
print(Child(parent=Draw(number=1, scale=0.1), number=2).fingerprint)
"""
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == Child(parent=Draw(number=1, scale=0.1), number=2).fingerprint


def test_a_stored_node_describes_itself(tmp_path):
    """node.json holds the full description (whose hash is the folder's name), versions, cost and time; the manifest every file."""
    node = Child(parent=Draw(number=1, scale=0.1), number=2)
    store = Store(tmp_path)
    store(node)
    folder = tmp_path / "Child" / node.fingerprint
    record = json.loads((folder / "node.json").read_text())
    assert record["class"] == "Child"
    assert record["version"] == 1
    assert fingerprint_of(record["description"]) == record["fingerprint"] == node.fingerprint
    assert record["description"]["parent"]["scale"] == 0.1
    assert {"python", "torch", "numpy", "diffusers", "lightning", "diffusion-attribution"} == record["versions"].keys()
    assert {"git", "machine", "created", "seconds", "cost"} <= record.keys()
    assert json.loads((folder / "manifest.json").read_text()).keys() == {"node.json", "values.npy"}


def test_seconds_leave_out_what_parents_took(tmp_path):
    """The time of a node is its own: a parent that is computed on the way is not in it."""
    store = Store(tmp_path)
    node = Child(parent=Draw(number=1, seconds=0.5))
    store(node)
    own, parent = (json.loads((store.folder(n) / "node.json").read_text())["seconds"] for n in (node, node.parent))
    assert parent >= 0.5
    assert own < 0.4


def test_what_is_not_worth_storing_lives_in_memory_only(tmp_path, log):
    """STORED = False: computed once in a process while in use, and no folder is made; it has none for progress either."""
    store = Store(tmp_path / "store")
    nodes = [Fleeting(number=1, log=str(log)), Fleeting(number=2, log=str(log))]
    kept = store.many(nodes)
    assert store(nodes[0]) is kept[0]
    assert computed(log) == {"Fleeting 1": 1, "Fleeting 2": 1}
    assert not (tmp_path / "store").exists()
    with pytest.raises(StoreError, match="STORED"):
        store.workspace(nodes[0])


def test_nodes_of_one_key_are_computed_together_and_found_one_by_one(tmp_path, log):
    """Only what is missing of a group is computed, in one call."""
    store = Store(tmp_path)
    store(Crowd(number=4, log=str(log)))
    values = [a.values[0] for a in store.many([Crowd(number=i, log=str(log)) for i in range(6)])]
    assert values == [0, 1, 2, 3, 4, 5]
    assert computed(log) == {"Crowd 4": 1, "Crowd 0,2": 1, "Crowd 1,3,5": 1}


def test_a_group_that_returns_too_few_artifacts_is_an_error_and_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Crowd, "compute_together", classmethod(lambda cls, nodes, get: [Numbers(np.zeros(1))]))
    with pytest.raises(StoreError, match="1 artifacts of 2 nodes"):
        Store(tmp_path).many([Crowd(number=0), Crowd(number=2)])
    assert not [path for path in (tmp_path / "Crowd").iterdir() if not path.suffix]


# Parts


def test_transient_parts_go_when_their_whole_is_stored(tmp_path, log):
    """Shards are computed once, and removed after the table; a later run finds the table and computes nothing."""
    table = Table(shards=3, log=str(log))
    expected = np.stack([np.random.default_rng(i).standard_normal(5) for i in range(3)])
    assert np.array_equal(Store(tmp_path)(table).values, expected)
    assert list((tmp_path / "Shard").iterdir()) == []
    assert np.array_equal(Store(tmp_path)(table).values, expected)
    assert computed(log) == {"Shard 0": 1, "Shard 1": 1, "Shard 2": 1, "Table": 1}


def test_parts_that_several_nodes_share_stay_until_the_last_has_them(tmp_path, log):
    Store(tmp_path).many([Half(last=False, log=str(log)), Half(last=True, log=str(log))])
    assert set(computed(log).values()) == {1}
    assert list((tmp_path / "Shard").iterdir()) == []


def test_a_part_that_was_asked_for_itself_stays(tmp_path):
    store = Store(tmp_path)
    store.many([Table(shards=2), Shard(number=0)])
    assert store.has(Shard(number=0))
    assert not store.has(Shard(number=1))


def test_parts_may_depend_on_what_a_parent_holds(tmp_path, log):
    """A missing parent that parts() needs is computed before, once, and the parts follow."""
    store = Store(tmp_path)
    node = Sized(parent=Draw(number=7, log=str(log)), log=str(log))
    assert store(node).values.shape == (5, 5)
    assert computed(log) == {"Draw 7": 1, **{f"Shard {i}": 1 for i in range(5)}}
    assert list((tmp_path / "Shard").iterdir()) == []


def test_a_part_of_itself_is_an_error(tmp_path, monkeypatch):
    """Whether it is its own part or its parts are told by itself."""
    monkeypatch.setattr(Table, "parts", lambda self, get: [Table(shards=self.shards)])
    with pytest.raises(StoreError, match="depends on itself"):
        Store(tmp_path)(Table(shards=2))
    monkeypatch.setattr(Table, "parts", lambda self, get: [get(self)])
    with pytest.raises(StoreError, match="depends on the node itself"):
        Store(tmp_path)(Table(shards=2))


def test_a_node_that_needs_itself_is_an_error_not_a_deadlock(tmp_path):
    with pytest.raises(StoreError, match="while it is being computed"):
        Store(tmp_path)(Selfish(number=1))


# What it refuses


def damage(folder: Path, how: str) -> str:
    """Damages a stored node; returns what the error is to say."""
    values = folder / "values.npy"
    if how == "a bit flipped":
        data = bytearray(values.read_bytes())
        data[-1] ^= 1
        values.write_bytes(data)
        return "content of values.npy"
    if how == "truncated":
        values.write_bytes(values.read_bytes()[:-1])
        return "values.npy has"
    if how == "missing":
        values.unlink()
        return "values.npy is missing"
    if how == "one too many":
        (folder / "stranger.npy").touch()
        return "stranger.npy does not belong"
    if how == "no manifest":
        (folder / "manifest.json").unlink()
        return "manifest.json is missing"
    if how == "broken manifest":
        (folder / "manifest.json").write_text("{")
        return "unreadable"
    if how == "nested too deep":
        (folder / "node.json").write_text("[" * 100_000)
        return "node.json or manifest.json is unreadable .nested too deep"
    if how in ("a folder as node.json", "a folder as manifest.json"):
        (folder / how.split()[-1]).unlink()
        (folder / how.split()[-1]).mkdir()
        return "unreadable"
    if how == "a folder as a file":
        values.unlink()
        values.mkdir()
        return "values.npy is missing"
    if how == "another version":
        record = json.loads((folder / "node.json").read_text())
        record["description"]["version"] = 7
        (folder / "node.json").write_text(json.dumps(record))
        return "describes a different node"
    raise ValueError(how)


@pytest.mark.parametrize(
    "how",
    [
        "a bit flipped",
        "truncated",
        "missing",
        "one too many",
        "no manifest",
        "broken manifest",
        "another version",
        "nested too deep",
        "a folder as node.json",
        "a folder as manifest.json",
        "a folder as a file",
    ],
)
def test_damage_is_an_error_that_names_folder_and_mend_and_deletes_nothing(tmp_path, log, how):
    """Never a wrong number, never a silent recomputation; after the remedy that the error names, the node is computed again."""
    node = Draw(number=1, log=str(log))
    store = Store(tmp_path)
    store(node)
    folder = store.folder(node)
    words = damage(folder, how)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(StoreError, match=f"{words}.*delete .*{node.fingerprint}"):
        Store(tmp_path)(node)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert computed(log) == {"Draw 1": 1}
    assert remove(tmp_path, folder)
    Store(tmp_path)(node)
    assert computed(log) == {"Draw 1": 2}


def test_a_folder_that_holds_another_node_is_an_error(tmp_path):
    store = Store(tmp_path)
    store(Draw(number=1))
    os.rename(store.folder(Draw(number=1)), store.folder(Draw(number=2)))
    with pytest.raises(StoreError, match="describes a different node"):
        Store(tmp_path)(Draw(number=2))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("1000000 requested and 260080 written"),
    ],
    ids=["the system", "safetensors", "numpy"],
)
def test_a_full_disk_is_an_error_that_names_the_setting_and_loses_nothing(tmp_path, monkeypatch, error):
    """What was stored before is intact, the node that did not fit is not there, and the next attempt succeeds."""
    store = Store(tmp_path)
    store(Draw(number=1))

    def full(self, folder):
        (folder / "values.npy").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Numbers, "save", full)
        patch.setattr(disk, "free", lambda root: 0)
        with pytest.raises(StoreError, match=r"store\.root=.* is full .*MB free"):
            store(Draw(number=2))
    assert not store.has(Draw(number=2))
    assert np.array_equal(Store(tmp_path)(Draw(number=1)).values, np.random.default_rng(1).standard_normal(5))
    assert np.array_equal(Store(tmp_path)(Draw(number=2)).values, np.random.default_rng(2).standard_normal(5))


def test_a_root_that_cannot_be_written_is_an_error_that_names_the_setting(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"store\.root=.*file cannot be used"):
        Store(tmp_path / "file")(Draw(number=1))

    def denied(self, folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "values.npy"))

    monkeypatch.setattr(Numbers, "save", denied)
    with pytest.raises(StoreError, match=r"Permission denied.*permissions or set store\.root"):
        Store(tmp_path / "store")(Draw(number=1))


@pytest.mark.parametrize("place", ["Draw", "node", "part", "locks"])
def test_a_file_in_place_of_a_folder_is_an_error_that_names_it(tmp_path, place):
    node, store = Draw(number=1), Store(tmp_path)
    folder = store.folder(node)
    path = {"Draw": folder.parent, "node": folder, "part": folder.with_suffix(".part"), "locks": tmp_path / "locks"}[place]
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(StoreError, match=rf"{path} is a file, but should be a folder.: remove it"):
        store(node)
    path.unlink()
    assert np.array_equal(store(node).values, np.random.default_rng(1).standard_normal(5))


def test_a_folder_in_place_of_a_lock_is_an_error_that_names_it(tmp_path):
    node = Draw(number=1)
    path = tmp_path / "locks" / f"{node.fingerprint}.lock"
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match=rf"{path} is a folder, but should be a file.: remove it"):
        Store(tmp_path)(node)


@pytest.mark.parametrize("call", ["begin", "settle", "publish", "forget"])
def test_a_disk_that_is_full_at_any_moment_of_storing_loses_nothing(tmp_path, monkeypatch, call):
    """Claim: before, during and after publishing, the error names the setting, and the next attempt succeeds."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, call, full)
        with pytest.raises(StoreError, match=r"store\.root=.* is full .*run again"):
            Store(tmp_path)(Draw(number=1))
    assert np.array_equal(Store(tmp_path)(Draw(number=1)).values, np.random.default_rng(1).standard_normal(5))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"the disk of store\.root=.* is full"),
        (errno.EDQUOT, r"the disk of store\.root=.* has no quota left"),
        (errno.EROFS, r"store\.root=.* cannot be used \(Read-only file system.*permissions"),
        (errno.ENOLCK, r"the file system of store\.root=.* has no file locks: set store\.root"),
    ],
)
def test_a_lock_that_cannot_be_written_is_an_error_that_says_why(tmp_path, monkeypatch, code, words):
    """Claim: a full disk, a read-only store and a file system without locks are different sentences."""

    def failing(path, **settings):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(locks, "FileLock", failing)
    with pytest.raises(StoreError, match=words):
        Store(tmp_path)(Draw(number=1))


def test_errors_of_a_computation_that_are_not_the_stores_pass_unchanged(tmp_path, monkeypatch):
    """A file that a node misses elsewhere is not blamed on the store."""

    def elsewhere(self, get):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/cifar")

    monkeypatch.setattr(Draw, "compute", elsewhere)
    with pytest.raises(PermissionError):
        Store(tmp_path)(Draw(number=1))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_releases_the_lock_and_keeps_progress(tmp_path, error):
    store = Store(tmp_path)
    node = Failing(number=1, error=error)
    with pytest.raises(error, match="no"):
        store(node)
    assert (store.workspace(node) / "progress" / "progress.txt").read_text() == "so far"
    with locked(tmp_path, [node.fingerprint]) as free:
        assert free
    with pytest.raises(error, match="no"):  # and not: asked for while it is being computed
        store(node)


def test_progress_counts_what_is_missing_and_is_silent_otherwise(tmp_path):
    """Parts and nodes each show up with their number; a run that finds everything shows nothing."""
    shown = []

    def track(iterable, title, total=None):
        items = list(iterable)
        shown.append((title, total, len(items)))
        return items

    Store(tmp_path, track).many([Table(shards=3)], title="tables")
    assert shown == [("shard", 3, 3), ("tables", 1, 1)]
    Store(tmp_path, track).many([Table(shards=3)], title="tables")
    assert len(shown) == 2
