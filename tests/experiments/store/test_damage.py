"""Interrupted trainings and retrainings end as undamaged ones do, whatever happens to their files."""

import contextlib
import logging
import random
import time
from pathlib import Path

import pytest

from experiments.store.errors import StoreError
from experiments.store.store import Store
from tests import damage, forked


@pytest.fixture(autouse=True)
def _known_warnings():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def outcomes(number: int, seed: int) -> set[str]:
    return {result for _, _, result in damage.run(number, seed)}


def test_a_few_damages_are_never_published():
    """Claim: after damage the result is the right one, and at most one line says what happened."""
    assert outcomes(18, seed=1) <= {"same, one line", "same, no line"}


@pytest.mark.slow
def test_many_damages_are_never_published():
    """Claim: the same for nine damages of each computation and moment of its interruption."""
    assert outcomes(162, seed=0) <= {"same, one line", "same, no line"}


@pytest.mark.parametrize("build", [damage.training, damage.retraining])
def test_the_damages_are_real(tmp_path, build, monkeypatch):
    """Claim: the test above can fail: without the check of contents, a damaged save gives another result or a failure."""
    nodes = build(3)
    Store(tmp_path / "whole").many(nodes)
    with contextlib.suppress(damage.Killed), damage.killed_at_step(8):
        Store(tmp_path / "store").many(nodes)
    for path in (tmp_path / "store").glob("*/*.part/progress/*0000000[3-9].*"):
        if path.suffix != ".json":
            damage._change(path, "zeros", random.Random(0))
    monkeypatch.setattr(damage.saves, "_difference", lambda path, digest: "")
    try:
        Store(tmp_path / "store").many(nodes)
    except Exception:
        return
    assert damage.published(tmp_path / "store", nodes) != damage.published(tmp_path / "whole", nodes)


@pytest.mark.parametrize("build", [damage.training, damage.retraining])
def test_a_file_that_changes_before_it_is_published_is_an_error(tmp_path, build, monkeypatch):
    """Claim: what was saved is compared again when the node is published; the next run gives the right result."""
    nodes, publish = build(3), damage.store_module.publish

    def late(part, *rest):
        path = max(path for path in part.rglob("*.safetensors") if path.parent.name != "progress")
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        publish(part, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(damage.store_module, "publish", late)
        with pytest.raises(StoreError, match=r"safetensors has changed since it was saved: run again"):
            Store(tmp_path / "store").many(nodes)
    assert not Store(tmp_path / "store").has(nodes[0])
    Store(tmp_path / "store").many(nodes)
    Store(tmp_path / "whole").many(nodes)
    assert damage.published(tmp_path / "store", nodes) == damage.published(tmp_path / "whole", nodes)


def test_files_without_a_save_are_never_published(tmp_path):
    """Claim: what an earlier attempt left without a save, or what somebody put there, is not part of the result."""
    (node,) = damage.training(3)
    store = Store(tmp_path)
    with contextlib.suppress(damage.Killed), damage.killed_at_step(4):
        store(node)
    part = store.folder(node).with_suffix(".part")
    (part / "stranger.npy").touch()
    (part / "checkpoints" / "999.safetensors").touch()
    store(node)
    names = {path.name for path in store.folder(node).rglob("*") if path.is_file()}
    assert names == {"record.json", "visits.npy", "steps.npy", "average.safetensors", "node.json", "manifest.json"} | {
        f"{step}.safetensors" for step in (2, 4, 6, 8, 10)
    }


def work(root: str, which: str) -> None:
    """Compute the nodes in a process of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    Store(root).many(getattr(damage, which)(3))


def saves_in(store: Path) -> int:
    """The number of files of saves in a store that another process writes to."""
    while True:
        try:
            return len(list(store.rglob("progress/*")))
        except FileNotFoundError:  # a folder was published between two reads
            continue


@pytest.mark.slow
@pytest.mark.parametrize("which", ["training", "retraining"])
def test_killed_again_and_again_it_ends_the_same(tmp_path, which, monkeypatch):
    """Claim: SIGKILL at any moment, also during a save, leaves a usable save, and the end is bit-equal."""
    context = forked.context(monkeypatch)
    nodes, chance = getattr(damage, which)(3), random.Random(0)
    store, kills = Store(tmp_path / "store"), 0
    for _ in range(12):
        if all(store.has(node) for node in nodes):
            break
        worker = context.Process(target=work, args=(str(tmp_path / "store"), which))
        worker.start()
        progress, end = saves_in(tmp_path / "store"), time.monotonic() + 20
        while worker.is_alive() and saves_in(tmp_path / "store") == progress and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        kills += worker.is_alive()
        worker.kill()
        worker.join(30)
    assert kills >= 2
    store.many(nodes)
    Store(tmp_path / "whole").many(nodes)
    assert damage.published(tmp_path / "store", nodes) == damage.published(tmp_path / "whole", nodes)
