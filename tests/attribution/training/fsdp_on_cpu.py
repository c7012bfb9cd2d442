"""Lightning's FSDP strategy on CPUs, which Lightning refuses, and models that end their process: for tests of several processes."""

import os
import signal
from typing import Any

import torch
from lightning.pytorch.strategies import FSDPStrategy, StrategyRegistry, fsdp
from torch import Tensor, nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel, StateDictType

NAME = "fsdp_on_cpu"
KILLED = "TEST_KILLED"
"""Environment variable: the rank that ends itself, and after how many of its forward passes (``1,6``)."""


def _whole_state(module: nn.Module, world_size: int, rank0_only: bool = True) -> Any:
    """As Lightning's, without a copy to the CPU, where torch would return memory that it has freed."""
    state = FullStateDictConfig(offload_to_cpu=False, rank0_only=rank0_only)
    optimizer = FullOptimStateDictConfig(offload_to_cpu=False, rank0_only=rank0_only)
    return FullyShardedDataParallel.state_dict_type(module, StateDictType.FULL_STATE_DICT, state, optimizer)


fsdp._get_full_state_dict_context = _whole_state


@StrategyRegistry.register(NAME)
class FSDPOnCPU(FSDPStrategy):
    """FSDP over gloo."""

    def __init__(self, **settings):
        super().__init__(process_group_backend="gloo", **settings)

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), sharding_strategy=self.sharding_strategy, **self.kwargs
        )


class Deadly(nn.Module):
    """A small network for images of one channel, which ends a process as KILLED says."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.time = nn.Linear(1, 4)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(4, 1, 3, padding=1))
        self.passes = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.passes += 1
        if killed := os.environ.get(KILLED):
            rank, passes = map(int, killed.split(","))
            if torch.distributed.is_initialized() and torch.distributed.get_rank() == rank and self.passes == passes:
                os.kill(os.getpid(), signal.SIGKILL)
        first, *others = self.layers
        h = first(x) + self.time(t[:, None].to(x.dtype) / 100)[:, :, None, None]
        for layer in others:
            h = layer(h)
        return h
