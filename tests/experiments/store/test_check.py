"""Claims about the check of a store's file system, by one process and by several."""

import errno
import itertools
import os
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from experiments.store import check as module
from experiments.store import locks
from experiments.store.check import Finding, check
from experiments.store.inventory import listing
from experiments.store.locks import locked
from experiments.store.meeting import MeetingError, meet

ROOT = Path(__file__).parents[3]


def found(root: Path, processes: int = 1, seconds: float = 60.0) -> dict[str, bool | None]:
    return {finding.name: finding.ok for finding in check(root, processes, seconds)}


def finding_of(root: Path, name: str) -> Finding:
    with closing(check(root, 1, 60.0)) as findings:
        return next(finding for finding in findings if finding.name == name)


@contextmanager
def no_lock(path, blocking):
    """A lock that excludes nobody."""
    Path(path).touch()
    yield


def test_a_good_file_system(tmp_path):
    """Claim: the file system of the tests has everything, and nothing is left that a listing or a later run would find."""
    root = tmp_path / "store"
    assert found(root) == {"write": True, "sync": True, "rename": True, "locks": True, "nodes": None}
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert listing(root) == []


def test_locks_that_do_nothing(tmp_path, monkeypatch):
    """Claim: if a second process takes a held lock, the check says so and how to mount the file system."""
    monkeypatch.setattr(locks, "FileLock", no_lock)
    findings = {finding.name: finding for finding in check(tmp_path, 1, 60.0)}
    assert {name: finding.ok for name, finding in findings.items()} == {
        "write": True, "sync": True, "rename": True, "locks": False, "nodes": None,
    }  # fmt: skip
    said = findings["locks"].text
    assert "another process on this machine took a lock that this process held" in said
    assert "Lustre with flock" in said


def test_no_locks(tmp_path, monkeypatch):
    """Claim: a file system that refuses locks fails with the system's words."""

    def refuse(path, blocking):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "FileLock", refuse)
    locked_out = finding_of(tmp_path, "locks")
    assert locked_out.ok is False
    assert os.strerror(errno.ENOLCK) in locked_out.text


def test_locks_that_outlive_their_process(tmp_path, monkeypatch):
    """Claim: a lock that is a file, as file systems without locks have it, stays after a kill and fails the check."""

    @contextmanager
    def kept(root, names):
        with locked(root, names) as free:
            yield free and next(calls) == 0  # the second time is after the kill

    calls = itertools.count()
    monkeypatch.setattr(module, "locked", kept)
    finding = finding_of(tmp_path, "locks")
    assert finding.ok is False
    assert "the lock of a killed process was not released" in finding.text
    assert not (tmp_path / "locks" / "check").exists()


@pytest.mark.parametrize("name", ["write", "sync", "rename"])
def test_errors_of_the_system(tmp_path, monkeypatch, name):
    """Claim: the property that failed is named with the system's words; without writing nothing else can be checked."""

    def fail(*arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    target = {"write": (Path, "write_text"), "sync": (os, "fsync"), "rename": (os, "rename")}[name]
    monkeypatch.setattr(*target, fail)
    result = found(tmp_path)
    assert result[name] is False
    rest = {"write": {"sync": None, "rename": None, "locks": None, "nodes": None}, "sync": {"write": True, "locks": True}}
    assert result.items() >= rest.get(name, {"write": True, "sync": True, "locks": True}).items()
    assert os.strerror(errno.EIO) in finding_of(tmp_path, name).text


def test_renaming_that_replaces_folders(tmp_path, monkeypatch):
    """Claim: a file system on which a folder takes an occupied name is refused: a stored node could be replaced."""
    rename = os.rename

    def replace(source, target):
        if Path(target).is_dir():
            rename(target, f"{target}.old")
        rename(source, target)

    monkeypatch.setattr(os, "rename", replace)
    renamed = finding_of(tmp_path, "rename")
    assert renamed.ok is False
    assert "a folder that was renamed to the name of another replaced it" in renamed.text


OTHER = """
import contextlib, pathlib, socket, sys
from experiments.store import locks
from experiments.store.meeting import meet

socket.gethostname = lambda: sys.argv[2]

@contextlib.contextmanager
def no_lock(path, blocking):
    pathlib.Path(path).touch()
    yield

if sys.argv[3] == "local":
    locks.FileLock = no_lock
print(*meet(pathlib.Path(sys.argv[1]), int(sys.argv[4]), 60.0))
"""


def another(folder: Path, host: str, locks: str, processes: int) -> subprocess.Popen:
    """A process that calls itself ``host``, with locks that hold between nodes (``shared``) or do not (``local``)."""
    command = [sys.executable, "-c", textwrap.dedent(OTHER), str(folder), host, locks, str(processes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_of_several_nodes_meet(tmp_path, monkeypatch):
    """Claim: each finds the locks of all others held, and says which hosts took part; the file of a killed process is no one."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    (tmp_path / "node-9-1-abcdef.json").write_text('{"beat": 3, "tried": []}')
    others = [another(tmp_path, host, "shared", 3) for host in ("node-2", "node-3")]
    hosts = meet(tmp_path, 3, 60.0)
    assert hosts[0] == "node-1"
    assert sorted(hosts) == ["node-1", "node-2", "node-3"]
    for process in others:
        out, err = process.communicate(timeout=60)
        assert sorted(out.split()) == sorted(hosts), err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["node-9-1-abcdef.json"]


@pytest.mark.slow
def test_locks_that_do_not_hold_between_nodes(tmp_path, monkeypatch):
    """Claim: a process whose lock others can take is noticed and its host named."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    other = another(tmp_path, "node-2", "local", 2)
    with pytest.raises(MeetingError, match="node-1 could take a lock that a process of node-2 held"):
        meet(tmp_path, 2, 60.0)
    other.communicate(timeout=60)


def test_who_does_not_come(tmp_path, monkeypatch):
    """Claim: a process that is alone at the end says so, and does not count a dead one."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    (tmp_path / "node-9-1-abcdef.json").write_text('{"beat": 3, "tried": []}')
    with pytest.raises(MeetingError, match=r"1 of 2 processes \(node-1\) met within 1 s"):
        meet(tmp_path, 2, 1.0)


@pytest.mark.parametrize(("other_host", "ok"), [("node-2", True), ("node-1", None)])
@pytest.mark.slow
def test_what_the_check_says_of_nodes(tmp_path, monkeypatch, other_host, ok):
    """Claim: two processes on one machine say nothing about nodes; on two they do, with the names of both."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-1")
    monkeypatch.setattr(module, "_PROPERTIES", ())  # of one process
    shared = tmp_path / "locks" / module.FOLDER
    other = another(shared, other_host, "shared", 2)
    (nodes,) = [finding for finding in check(tmp_path, 2, 60.0) if finding.name == "nodes"]
    other.communicate(timeout=60)
    assert nodes.ok is ok
    assert "node-1" in nodes.text
    assert other_host in nodes.text
