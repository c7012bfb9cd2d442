"""What Lightning needs to know about a process with a rank, and the process group during a training run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.plugins import ClusterEnvironment

from attribution.training.ranks import Rank

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


class Ranks(ClusterEnvironment):
    """A Lightning environment for a process with a known rank: Lightning starts no processes and reads no environment variables."""

    def __init__(self, rank: Rank):
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.rank.address

    @property
    def main_port(self) -> int:
        return self.rank.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.rank.world

    def set_world_size(self, size: int) -> None:
        """Do nothing: the number of processes is known."""

    def global_rank(self) -> int:
        return self.rank.number

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""

    def local_rank(self) -> int:
        return self.rank.local

    def node_rank(self) -> int:
        return self.rank.number // self.rank.local_world


@contextmanager
def process_group() -> Iterator[None]:
    """Let Lightning create a process group in the body, and destroy it afterwards, so that the next run can create its own."""
    names = ("MASTER_ADDR", "MASTER_PORT", _AGENT_STORE)
    before = {name: os.environ.get(name) for name in names}
    os.environ.pop(_AGENT_STORE, None)  # torchrun's own meeting place keeps the addresses of earlier groups
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
