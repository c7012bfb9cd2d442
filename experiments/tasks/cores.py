"""The number of CPU cores and threads that this process may use."""

import math
import os
import re
from pathlib import Path

_QUOTA = {"cgroup2": ("cpu.max",), "cgroup": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
"""The files with the CPU quota and its period in microseconds, by the type of the file system."""


def cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    It is the least of the cores that the process is bound to, the CPU quota of its control group (containers), and its share of
    the cores of a Slurm job.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, cgroup_quota(), slurm_share())))


def thread_limit() -> float:
    """Return the largest number of threads that OMP_NUM_THREADS and MKL_NUM_THREADS allow; infinity if neither is set."""
    return min(_variable("OMP_NUM_THREADS"), _variable("MKL_NUM_THREADS"))


def cgroup_quota(process: Path = Path("/proc/self")) -> float:
    """Return the CPU quota of the process in cores: the least of its control group and those above; infinity without a quota."""
    try:
        lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    # Version 1 has a line for each set of controllers, version 2 a line without any.
    groups = {"cgroup2" if not names else "cgroup": path for _, names, path in lines if not names or "cpu" in names.split(",")}
    least = math.inf
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind in groups and (kind == "cgroup2" or "cpu" in options.split(",")):
            group = Path(groups[kind].lstrip("/"))
            # In a container without a namespace of its own the path is that of the host, and only the mount point exists here.
            least = min(least, *(_quota(Path(left.split()[4]) / folder, _QUOTA[kind]) for folder in (group, *group.parents)))
    return least


def _quota(folder: Path, names: tuple[str, ...]) -> float:
    try:
        quota, period = (word for name in names for word in (folder / name).read_text().split())
    except OSError:  # the root of all groups has no quota
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def slurm_share() -> float:
    """Return the cores of this task of a Slurm job; infinity outside Slurm.

    These are SLURM_CPUS_PER_TASK (``-c``), or else the cores of the job step on this node divided by its tasks there. Slurm binds
    tasks to their cores only where it is configured to.
    """
    per_task = _variable("SLURM_CPUS_PER_TASK")
    if per_task < math.inf:
        return per_task
    # 2(x3),1: two tasks on each of three nodes, one on the next.
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, nodes in found for _ in range(int(nodes or 1))]
    node = int(min(_variable("SLURM_NODEID"), len(tasks) - 1))
    return _variable("SLURM_CPUS_ON_NODE") / (tasks[node] if tasks else 1)


def _variable(name: str) -> float:
    """Return the number in an environment variable (the first of a list), or infinity."""
    number = re.match(r"\s*(\d+)", os.environ.get(name, ""))
    return int(number[1]) if number else math.inf
