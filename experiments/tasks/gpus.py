"""Which GPU a process computes on, where it sees several."""

import os

import torch


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs that ``execution.device`` leaves open, as CUDA_VISIBLE_DEVICES names them.

    The list is empty for other devices, and for a certain GPU (``cuda:1``).
    """
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def environment_of_worker(number: int, gpus: list[str]) -> dict[str, str]:
    """Return the variables that give worker ``number`` a GPU: processes take them in turn, and this one, number 0, the first."""
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}


def choose_gpu(device: str) -> None:
    """Choose the GPU of this process among those that all tasks of a Slurm step on this node see: the tasks take them in turn."""
    gpus, task = visible_gpus(device), os.environ.get("SLURM_LOCALID", "")
    if len(gpus) > 1 and task.isdigit():
        torch.cuda.set_device(int(task) % len(gpus))
