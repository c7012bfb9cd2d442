"""What a kill leaves beside stored nodes goes: parts, and the files of locks."""

import json
import os

import numpy as np
import pytest

from experiments.store import locks
from experiments.store import store as store_module
from experiments.store.inventory import explain, listing
from experiments.store.locks import forget, lock_files, locked
from experiments.store.prune import prune
from experiments.store.storage import remove
from experiments.store.store import Store
from tests.experiments.store.nodes_for_store import Child, Draw, Half, Shard, Table, computed


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def killed_before_the_sweep(root, nodes, monkeypatch) -> None:
    """Store the nodes as a process does that is killed before it removes their parts and the files of locks."""

    def kill(*args):
        raise KeyboardInterrupt

    for node in nodes:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "remove", kill)
            patch.setattr(store_module, "forget", lambda root, names: None)
            with pytest.raises(KeyboardInterrupt):
                Store(root)(node)


def shards(root) -> int:
    return len(list((root / "Shard").iterdir()))


def test_parts_of_a_whole_that_was_stored_before_a_kill_go_when_it_is_read(tmp_path, log, monkeypatch):
    table = Table(shards=3, log=str(log))
    killed_before_the_sweep(tmp_path, [table], monkeypatch)
    assert shards(tmp_path) == 3
    Store(tmp_path)(table)
    assert shards(tmp_path) == 0
    assert lock_files(tmp_path) == []
    assert computed(log)["Table"] == 1


def test_they_go_when_what_depends_on_their_whole_is_computed(tmp_path, monkeypatch):
    table = Table(shards=3)
    killed_before_the_sweep(tmp_path, [table], monkeypatch)
    Store(tmp_path)(Child(parent=table))
    assert shards(tmp_path) == 0


def test_parts_that_are_asked_for_or_needed_stay(tmp_path, log, monkeypatch):
    """A part that is requested, or that another whole still needs, is not computed again."""
    first, second = Half(last=False, log=str(log)), Half(last=True, log=str(log))
    killed_before_the_sweep(tmp_path, [first], monkeypatch)
    before = shards(tmp_path)
    asked = next(iter(first.parts(Store(tmp_path))))
    Store(tmp_path).many([first, asked])
    assert shards(tmp_path) == 1
    assert before > 1
    Store(tmp_path).many([first, second])
    assert shards(tmp_path) == 0


def test_prune_finds_parts_and_locks(tmp_path, monkeypatch):
    """Claim: they are listed as leftovers, and go with what a crash left; stored nodes and shards without a whole stay."""
    table = Table(shards=2)
    killed_before_the_sweep(tmp_path, [table], monkeypatch)
    store = Store(tmp_path)
    store(Shard(number=9))
    states = [row["state"] for row in listing(tmp_path) if row["class"] == "Shard"]
    assert sorted(states) == ["leftover", "leftover", "stored"]
    rows = prune(store, unfinished=True)
    assert [(row["class"], row["state"], row["removed"]) for row in rows] == [
        ("Shard", "leftover", False),
        ("Shard", "leftover", False),
        ("locks", "leftover", False),
    ]
    assert all(row["removed"] for row in prune(store, unfinished=True, dry_run=False))
    assert prune(store, unfinished=True) == []
    assert store.has(table)
    assert store.has(Shard(number=9))
    assert lock_files(tmp_path) == []


def test_locks_in_use_and_of_unfinished_nodes_are_not_pruned(tmp_path):
    store = Store(tmp_path)
    with locked(tmp_path, ["a", "b"]) as free:
        assert free
        assert prune(store, unfinished=True, dry_run=False) == []
    (row,) = prune(store, unfinished=True, dry_run=False)
    assert (row["class"], row["fingerprint"], row["removed"]) == ("locks", "2 files", True)


def test_a_stored_or_removed_node_leaves_no_lock(tmp_path):
    store = Store(tmp_path)
    store.many([Table(shards=3), Child(parent=Draw(number=1))])
    assert lock_files(tmp_path) == []
    remove(tmp_path, store.folder(Draw(number=1)))
    assert lock_files(tmp_path) == []


def test_a_lock_whose_file_was_deleted_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Claim: whoever opened a lock's file just before its holder deleted it does not hold the lock beside the next one."""
    with locked(tmp_path, ["a"]) as free:
        assert free
        (path,) = lock_files(tmp_path)
    real, held = locks.FileLock, []

    class Late(locks.FileLock):
        """Another process deletes the file after this one opened it, and a third takes the new one."""

        def _acquire(self):
            super()._acquire()
            if not held:
                forget(tmp_path, ["a"])
                held.append(real(path, blocking=False))
                held[0].acquire()

    monkeypatch.setattr(locks, "FileLock", Late)
    with locked(tmp_path, ["a"]) as free:
        assert not free
    held[0].release()
    with locked(tmp_path, ["a"]) as free:
        assert free


def test_a_store_that_cannot_be_written_is_read_and_listed(tmp_path, monkeypatch):
    """Claim: what is stored can be used without a lock, and leftovers stay."""
    table = Table(shards=2)
    killed_before_the_sweep(tmp_path, [table], monkeypatch)
    part = Store(tmp_path).folder(Draw(number=1)).with_suffix(".part")
    part.mkdir(parents=True)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "locks"))

    monkeypatch.setattr(locks, "FileLock", denied)
    assert np.isfinite(Store(tmp_path)(table).values).all()
    assert shards(tmp_path) == 2
    assert {row["state"] for row in listing(tmp_path)} == {"stored", "leftover", "unfinished"}
    assert explain(tmp_path, table.fingerprint)["check"] == "intact"


def test_the_list_of_parts_is_no_part_of_an_explanation(tmp_path):
    table = Table(shards=2)
    store = Store(tmp_path)
    store(table)
    record = json.loads((store.folder(table) / "node.json").read_text())
    assert {kind: len(names) for kind, names in record["parts"].items()} == {"Shard": 2}
    assert "parts" not in explain(tmp_path, table.fingerprint)
    assert os.listdir(tmp_path / "Shard") == []
