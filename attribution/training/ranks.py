"""The ranks of processes that train one model together."""

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """The rank of one process: ``number`` of ``world`` processes, and ``local`` of ``local_world`` on its machine.

    The processes connect to ``port`` of ``address``, the machine of process 0.
    """

    number: int
    local: int
    world: int
    local_world: int
    address: str
    port: int

    @property
    def machines(self) -> int:
        """The number of machines. All of them have the same number of processes."""
        return self.world // self.local_world


def free_port() -> int:
    """Return a port of this machine that no process uses."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
