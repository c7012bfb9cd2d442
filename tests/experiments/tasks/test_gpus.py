"""Processes that see several GPUs take them in turn. torch is told that there are some."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from experiments.tasks import workers
from experiments.tasks.gpus import choose_gpu, visible_gpus


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch report a number of GPUs; returns the list of GPUs that are then chosen."""
    chosen = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def present(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        return chosen

    return present


@pytest.mark.parametrize(
    ("number", "variable", "device", "expected"),
    [
        (0, None, "auto", []),
        (3, None, "auto", ["0", "1", "2"]),
        (3, None, "cuda", ["0", "1", "2"]),
        (2, "5,7", "auto", ["5", "7"]),
        (2, " GPU-8a, GPU-9b ", "auto", ["GPU-8a", "GPU-9b"]),
        (2, "", "auto", ["0", "1"]),
        (3, None, "cuda:1", []),
        (3, None, "cpu", []),
    ],
)
def test_the_gpus_that_a_setting_leaves_open(gpus, monkeypatch, number, variable, device, expected):
    gpus(number)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus(device) == expected


@pytest.mark.parametrize(("number", "task", "expected"), [(4, "2", [2]), (2, "5", [1]), (1, "3", []), (4, None, []), (0, "1", [])])
def test_tasks_of_a_slurm_step_take_gpus_in_turn(gpus, monkeypatch, number, task, expected):
    """Claim: tasks that see the same GPUs take them in turn; one that sees a single GPU, or outside Slurm, takes the first."""
    chosen = gpus(number)
    if task is not None:
        monkeypatch.setenv("SLURM_LOCALID", task)
    choose_gpu("auto")
    assert chosen == expected


@pytest.mark.parametrize(
    ("number", "processes", "expected", "sharing"),
    [(2, 4, ["1", "0", "1"], 2), (2, "auto", ["1"], 1), (0, 3, [None, None], 3), (1, 2, ["0"], 2)],
)
def test_workers_take_gpus_in_turn(gpus, monkeypatch, tmp_path, number, processes, expected, sharing):
    """Claim: the workers of a run on GPUs have one each, in turn, and share only its memory; auto is one process for each GPU."""
    gpus(number)
    started, parts = [], []
    hydra = SimpleNamespace(
        launcher=SimpleNamespace(_target_="a.BasicLauncher"),
        runtime=SimpleNamespace(cwd=str(tmp_path), config_sources=[]),
        job=SimpleNamespace(config_name="config"),
    )
    process = SimpleNamespace(poll=lambda: 0, terminate=lambda: None, wait=lambda: None)
    monkeypatch.setattr(workers, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr(workers, "arguments_of_run", list)
    monkeypatch.setattr(workers.subprocess, "Popen", lambda command, env, **_: started.append(env) or process)
    config = OmegaConf.create({"workers": processes, "execution": {"device": "auto"}})
    with workers.workers(config, tmp_path):
        parts.append(workers.os.environ["ATTRIBUTION_PROCESSES"])
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in started] == expected
    assert {env["ATTRIBUTION_PROCESSES"] for env in started} | set(parts) == {str(sharing)}
    assert "ATTRIBUTION_PROCESSES" not in workers.os.environ
