"""Claims about several processes at one store: what a kill loses, and who computes what."""

import time

import numpy as np
import pytest

from experiments.store import store as store_module
from experiments.store.locks import locked
from experiments.store.storage import remove
from experiments.store.store import Store
from tests import forked
from tests.experiments.store.nodes_for_store import (
    Child,
    Crowd,
    Draw,
    Shard,
    SlowSave,
    Steps,
    Table,
    computed,
    sweep_while_read,
    work,
    workers_of,
)


@pytest.fixture(scope="module")
def processes():
    """Starts real processes, cheaply: they are forked from one that has imported everything and nothing else ran in."""
    with pytest.MonkeyPatch.context() as patch:
        yield forked.context(patch)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def run_together(processes, target, *arguments) -> None:
    """Processes that start to work at the same moment, one for each tuple of arguments."""
    barrier = processes.Barrier(len(arguments))
    workers = [processes.Process(target=target, args=(*each, barrier)) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


def kill(worker) -> None:
    worker.kill()
    worker.join(30)
    assert worker.exitcode == -9


# Kills


def test_killed_between_shards_the_next_run_does_the_rest_and_ends_bit_equal(tmp_path, log, processes):
    """SIGKILL in the middle: finished shards are not computed again, one at most is lost, and the result is the same."""
    table = Table(shards=6, log=str(log))
    slow = Table(shards=6, log=str(log), seconds=0.4)
    worker = processes.Process(target=work, args=(str(tmp_path / "store"), [slow]))
    worker.start()
    wait_for(lambda: computed(log)["Shard 3"])
    kill(worker)
    finished = [i for i in range(6) if Store(tmp_path / "store").has(Shard(number=i))]
    assert finished == [0, 1, 2]
    again = Store(tmp_path / "store")(table)
    assert computed(log) == {**{f"Shard {i}": 1 for i in (0, 1, 2, 4, 5)}, "Shard 3": 2, "Table": 1}
    assert again.values.tobytes() == Store(tmp_path / "other")(Table(shards=6)).values.tobytes()


def test_killed_while_saving_nothing_half_written_is_taken_for_complete(tmp_path, log, processes, monkeypatch):
    node = SlowSave(number=1, log=str(log))
    worker = processes.Process(target=work, args=(str(tmp_path / "store"), [node]))
    worker.start()
    store = Store(tmp_path / "store")
    wait_for(lambda: (store.folder(node).with_suffix(".part") / "values.npy").exists())
    kill(worker)
    assert not store.has(node)
    monkeypatch.setattr("tests.experiments.store.nodes_for_store.time.sleep", lambda seconds: None)
    assert np.array_equal(store(node).values, np.arange(5.0))
    assert computed(log) == {"computed": 2}
    assert not store.folder(node).with_suffix(".part").exists()


def test_killed_in_a_long_node_the_next_attempt_goes_on_from_its_workspace(tmp_path, log, processes):
    """At most one step is done twice, and the end is bit-equal to an uninterrupted run."""
    node = Steps(number=1, log=str(log), seconds=0.05)
    worker = processes.Process(target=work, args=(str(tmp_path / "store"), [node]))
    worker.start()
    wait_for(lambda: computed(log)["step 4"])
    kill(worker)
    values = Store(tmp_path / "store")(node).values
    assert values.tobytes() == Store(tmp_path / "other")(Steps(number=1)).values.tobytes()
    counts = computed(log)
    assert [counts[f"step {i}"] for i in range(5)] == [1] * 5
    assert counts.total() <= 11


# Several processes


@pytest.mark.parametrize("count", [2, 4])
def test_processes_with_the_same_list_divide_it_and_compute_each_node_once(tmp_path, log, processes, count):
    """Every one of them ends with everything; nothing is computed twice; each does its share."""
    nodes = [Table(shards=8, log=str(log), seconds=0.15), *(Draw(number=i, log=str(log), seconds=0.15) for i in range(4))]
    run_together(processes, work, *[(str(tmp_path / "store"), nodes)] * count)
    assert computed(log) == {**{f"Shard {i}": 1 for i in range(8)}, **{f"Draw {i}": 1 for i in range(4)}, "Table": 1}
    assert len(workers_of(log)) == count
    assert list((tmp_path / "store" / "Shard").iterdir()) == []


def test_a_group_is_computed_by_one_process_while_others_take_the_next(tmp_path, log, processes):
    nodes = [Crowd(number=i, log=str(log), seconds=0.5) for i in range(4)]
    run_together(processes, work, *[(str(tmp_path / "store"), nodes)] * 2)
    assert computed(log) == {"Crowd 0,2": 1, "Crowd 1,3": 1}
    assert len(workers_of(log)) == 2


def test_processes_that_share_a_parent_compute_it_once(tmp_path, log, processes):
    """Whoever needs a parent that another is computing waits for it, with its child's lock in hand, and nothing hangs."""
    parent = Draw(number=1, log=str(log), seconds=0.3)
    lists = [[Child(parent=parent, number=i)] for i in range(3)]
    run_together(processes, work, *[(str(tmp_path / "store"), nodes) for nodes in lists])
    assert computed(log) == {"Draw 1": 1}
    assert all(Store(tmp_path / "store").has(node) for (node,) in lists)


def test_processes_divide_what_a_list_is_made_from(tmp_path, log, processes):
    """Claim: the missing parents of a list are shared out like the list itself, each computed once."""
    children = [Child(parent=Draw(number=i, log=str(log), seconds=0.3)) for i in range(6)]
    run_together(processes, work, *[(str(tmp_path), children)] * 2)
    assert computed(log) == {f"Draw {i}": 1 for i in range(6)}
    assert len(workers_of(log)) == 2


def test_while_another_is_at_what_is_left_a_process_works_ahead(tmp_path, log, processes):
    """Claim: what lacks nothing is not put off until the last of the slow parents of something else is there."""
    slow, fast = Draw(number=0, log=str(log), seconds=2.0), Draw(number=1, log=str(log))
    children = [Child(parent=slow), Child(parent=fast)]
    run_together(processes, work, *[(str(tmp_path), children)] * 2)
    stored = Store(tmp_path)
    assert stored.folder(children[1]).stat().st_ctime_ns < stored.folder(slow).stat().st_ctime_ns
    assert computed(log) == {"Draw 0": 1, "Draw 1": 1}


def test_a_part_swept_by_another_process_is_not_computed_again(tmp_path, log, monkeypatch):
    """One process is about to look at the shards of a table when another stores the table and sweeps them."""
    store, other = Store(tmp_path), Store(tmp_path)
    table = Table(shards=3, log=str(log))
    look = Store._missing

    def late(self, group, work):
        if self is store and not other.has(table):
            other(table)
        return look(self, group, work)

    monkeypatch.setattr(Store, "_missing", late)
    assert store(table).values.shape == (3, 5)
    assert set(computed(log).values()) == {1}


def test_a_node_that_another_process_finished_just_before_the_lock_is_not_computed_again(tmp_path, log, monkeypatch):
    """Existence is looked at again under the lock."""
    node = Draw(number=1, log=str(log))

    def late(root, fingerprints):
        monkeypatch.setattr(store_module, "locked", locked)
        Store(tmp_path)(node)
        return locked(root, fingerprints)

    monkeypatch.setattr(store_module, "locked", late)
    assert np.array_equal(Store(tmp_path)(node).values, np.random.default_rng(1).standard_normal(5))
    assert computed(log) == {"Draw 1": 1}


def test_an_artifact_swept_while_it_is_read_is_computed_again_not_called_damaged(tmp_path, monkeypatch, log):
    """A shard that somebody else's sweep removes under a reader's hands is missing, not broken."""
    store = Store(tmp_path)
    shard = Shard(number=0, log=str(log))
    store(shard)
    verify = store_module.verify

    def swept(folder):
        monkeypatch.setattr(store_module, "verify", verify)
        remove(tmp_path, folder)
        verify(folder)

    monkeypatch.setattr(store_module, "verify", swept)
    assert np.array_equal(Store(tmp_path)(shard).values, np.random.default_rng(0).standard_normal(5))
    assert computed(log) == {"Shard 0": 2}


def test_processes_that_finish_and_sweep_the_same_shards_never_trip_over_each_other(tmp_path, log, processes):
    """Three processes after the same overlapping tables: all succeed, and no table is computed twice."""
    run_together(processes, sweep_while_read, *[(str(tmp_path / "store"), str(log), 8)] * 3)
    assert computed(log)["Table"] == 5
