"""``task=store task.action=check`` as its user meets it."""

import os
import subprocess

import pytest

from experiments.store import locks
from experiments.tasks.store import processes_of_step
from tests.experiments.store.test_check import no_lock
from tests.experiments.tasks.test_cli import process, run


@pytest.mark.slow
def test_a_good_folder(tmp_path):
    """Claim: one line for each property, the exit code 0, and a store that is empty afterwards."""
    done = process(tmp_path, "task=store", "task.action=check")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines[:4]] == [["ok", name] for name in ("write", "sync", "rename", "locks")]
    assert lines[4][:3] == ["not", "checked", "nodes"]
    assert len(lines) == 5
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_without_locks(tmp_path, monkeypatch, capfd):
    """Claim: a property that is missing ends with the exit code 1 and a sentence that names the store."""
    monkeypatch.setattr(locks, "FileLock", no_lock)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "task=store", "task.action=check")
    assert str(ended.value.code).startswith(f"error: the file system of store.root={tmp_path / 'store'}")
    assert str(ended.value.code).endswith("locks failed")


@pytest.fixture
def read_only(tmp_path):
    """A folder that not even root can write."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode and os.geteuid() == 0:
        pytest.skip("cannot mount a read-only disk")
    folder.chmod(0o500) if mounted.returncode else None
    yield folder
    subprocess.run(["umount", str(folder)], check=True) if not mounted.returncode else folder.chmod(0o700)


@pytest.mark.slow
def test_a_read_only_folder(tmp_path, read_only):
    """Claim: the first line says what is wrong and how to correct it; what needs writing was not checked."""
    done = process(tmp_path, "task=store", "task.action=check")
    assert done.returncode == 1
    first, *rest = done.stdout.splitlines()
    assert first.split()[:2] == ["failed", "write"]
    assert "correct the permissions" in first
    assert all(line.startswith("not checked") for line in rest)
    assert "write failed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("variables", "expected"), [({}, 1), ({"SLURM_STEP_NUM_TASKS": "4"}, 4)])
def test_the_processes_of_a_slurm_step(monkeypatch, variables, expected):
    """Claim: the tasks of ``srun`` are those that meet; a process elsewhere is alone."""
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes_of_step() == expected
