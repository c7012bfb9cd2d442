"""The cores and threads that a process may use."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from experiments.tasks import cores, run_context, workers

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SLURM = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    """No variable of the environment in which the tests run, and the number of threads from before afterwards."""
    for name in (*VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cgroup(folder: Path, version: int, files: dict[str, str]) -> Path:
    """A copy of /proc/self for a process in the group /a/b, and the files of its control groups."""
    mount = folder / "cgroup"
    for name, text in files.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(text)
    process = folder / "self"
    process.mkdir()
    (process / "cgroup").write_text(
        "0::/a/b\n" if version == 2 else "5:memory:/\n4:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/other\n"
    )
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    lines = ["22 1 0:21 / /proc rw - proc proc rw", f"30 22 0:26 / {mount} rw,nosuid shared:9 - {kind}"]
    (process / "mountinfo").write_text("\n".join(lines) + "\n")
    return process


@pytest.mark.parametrize(
    ("version", "files", "quota"),
    [
        (2, {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "max 100000\n"}, 2.0),
        (2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        (2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (2, {"cpu.max": "300000 100000\n"}, 3.0),  # a container: the group of the process does not exist below the mount point
        (2, {}, math.inf),
        (1, {"a/b/cpu.cfs_quota_us": "250000\n", "a/b/cpu.cfs_period_us": "50000\n"}, 5.0),
        (1, {"a/b/cpu.cfs_quota_us": "-1\n", "a/b/cpu.cfs_period_us": "100000\n"}, math.inf),
        (1, {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_the_quota_of_a_control_group(tmp_path, version, files, quota):
    """Claim: the quota is the least of the process's group and those above it, in both versions and in containers."""
    assert cores.cgroup_quota(cgroup(tmp_path, version, files)) == quota


def test_no_control_groups(tmp_path):
    """Claim: without /proc there is no quota."""
    assert cores.cgroup_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({}, math.inf),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "8"}, 3),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),  # a batch script
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2"}, 4),  # srun -n 2
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "1"}, 2),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"}, 8),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, math.inf),  # what an interactive shell may keep
    ],
)
def test_the_share_of_a_slurm_task(monkeypatch, variables, share):
    """Claim: a task counts the cores that it asked for, or its part of those of the step on its node."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cores.slurm_share() == share


@pytest.mark.parametrize(
    ("bound", "quota", "share", "expected"),
    [(8, math.inf, math.inf, 8), (8, 1.5, math.inf, 2), (8, 0.5, 4, 1), (8, 6, 4, 4), (2, 6, 4, 2)],
)
def test_cores_are_the_fewest_of_all_bounds(monkeypatch, bound, quota, share, expected):
    """Claim: affinity, quota and Slurm's share bound the number of cores; a part of a core counts as one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(cores, "slurm_share", lambda: share)
    assert cores.cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_that_is_bound_to_one_core():
    """Claim: taskset counts."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("variables", "settings", "threads"),
    [
        ({}, {"size": 8}, 1),
        ({"OMP_NUM_THREADS": "8"}, {"size": 8}, 1),  # a bound, not an order
        ({}, {"size": 32}, 6),
        ({"OMP_NUM_THREADS": "4"}, {"size": 32}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, {"size": 32}, 4),
        ({"MKL_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"}, {"size": 32}, 3),
        ({"OMP_NUM_THREADS": "64"}, {"size": 32}, 6),
        ({"OMP_NUM_THREADS": "words"}, {"size": 32}, 6),
        ({"OMP_NUM_THREADS": "1"}, {"size": 8, "threads": 2}, 2),  # an order
    ],
)
def test_threads(monkeypatch, variables, settings, threads):
    """Claim: auto is one thread for small images, otherwise the cores, and the environment bounds it; a number is used as it is."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_context, "cores", lambda: 6)
    monkeypatch.setattr(run_context, "_THREADS", 12)
    config = {"data": {"size": settings["size"]}, "threads": settings.get("threads", "auto"), "execution": {"device": "cpu"}}
    run_context.set_resources(OmegaConf.create(config))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("chosen", "n_cores", "threads", "device", "launcher", "expected"),
    [
        ("auto", 4, 1, "cpu", "BasicLauncher", 4),
        ("auto", 64, 1, "cpu", "BasicLauncher", workers.MAX_PROCESSES),
        ("auto", 4, 2, "cpu", "BasicLauncher", 1),
        ("auto", 4, 1, "cuda", "BasicLauncher", 1),
        ("auto", 4, 1, "cpu", "JoblibLauncher", 1),
        (3, 1, 1, "cpu", "JoblibLauncher", 3),
    ],
)
def test_workers(monkeypatch, chosen, n_cores, threads, device, launcher, expected):
    """Claim: auto is one process per core of this process, whatever OMP_NUM_THREADS says; a number is used as it is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(workers, "cores", lambda: n_cores)
    hydra = SimpleNamespace(get=lambda: SimpleNamespace(launcher=SimpleNamespace(_target_=f"module.{launcher}")))
    monkeypatch.setattr(workers, "HydraConfig", hydra)
    torch.set_num_threads(threads)
    assert workers.count(OmegaConf.create({"workers": chosen, "execution": {"device": device}})) == expected
