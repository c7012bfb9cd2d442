"""Errors of disks in words: which disk, what is kept, what to do."""

import errno
import os
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attribution.nodes.files import write_json
from attribution.training.trainer import _DirectCheckpoints
from experiments import disk
from experiments.disk import DiskError, explained, is_full
from experiments.tasks.errors import exit_with

KEPT = "the rest is kept"


@pytest.fixture
def small(tmp_path):
    """A folder on a disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def figure(path):
    canvas = plt.figure(figsize=(9, 9))
    canvas.gca().imshow(np.random.default_rng(0).random((200, 200)))
    try:
        canvas.savefig(path, format="png", dpi=300)
    finally:
        plt.close(canvas)


WRITERS = {
    "torch": lambda path: _DirectCheckpoints().save_checkpoint({"a": torch.zeros(10**5)}, path),
    "many small tensors": lambda path: _DirectCheckpoints().save_checkpoint({i: torch.zeros(100) for i in range(1000)}, path),
    "numpy": lambda path: np.save(path, np.zeros(10**5)),
    "safetensors": lambda path: save_file({"a": torch.zeros(10**5)}, path),
    "text": lambda path: path.write_text("x" * 10**6),
    "json": lambda path: write_json(path, list(range(10**5))),
    "figure": figure,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_to_a_full_disk_the_error_names_setting_and_remedy(small, writer):
    """Claim: all libraries that write files report a full disk in ways that are understood."""
    words = rf"the disk of a\.root={small} is full .* set a\.root to .* then run again; {KEPT}"
    with pytest.raises(DiskError, match=words), explained(small, "a.root", KEPT):
        WRITERS[writer](small / "file")


def test_without_inodes_the_error_says_so(monkeypatch, tmp_path):
    fields = list(os.statvfs(tmp_path))
    fields[5:8] = [1000, 0, 0]
    monkeypatch.setattr(disk.os, "statvfs", lambda path: os.statvfs_result(fields))
    with pytest.raises(DiskError, match=r"is full \(.* MB free, but no more files\)"), explained(tmp_path, "a.root", KEPT):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_quota_is_not_a_full_disk(tmp_path):
    with pytest.raises(DiskError, match=r"the disk of a\.root=.* has no quota left"), explained(tmp_path, "a.root", KEPT):
        raise RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")


def test_the_disk_of_temporary_files_is_named(tmp_path, monkeypatch):
    """Claim: if the folder has space and that of temporary files has none, it is the latter."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(disk.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(disk, "free", lambda folder: 0 if folder == tmp_path / "temporary" else 1 << 30)
    with pytest.raises(DiskError, match=r"the disk of TMPDIR=.*temporary is full"), explained(tmp_path / "a", "a.root", KEPT):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/elsewhere/file"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/elsewhere/file"),
        DiskError("explained already"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as raised, explained(tmp_path, "a.root", KEPT):
        raise error
    assert raised.value is error


def test_a_full_disk_that_hydra_meets_ends_in_a_sentence_too():
    """Claim: before a run has a store and a report, the message still says what to do."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/x")
    assert is_full(error)
    with pytest.raises(SystemExit, match=r"No space left on device: 'outputs/x': free some space, or set hydra\.run\.dir"):
        exit_with(error)
