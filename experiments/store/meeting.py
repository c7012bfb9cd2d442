"""Processes of several nodes meet in a folder, and each tries to take the locks that the others hold.

Each process holds a lock and keeps rewriting a file with a counter (``beat``) and the names of those whose locks it has tried. A
process whose counter changes is alive, whatever the clocks of the nodes say, and so its lock must be held. It leaves when it has
tried all others, and all others have tried it.
"""

import itertools
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from attribution.nodes.files import read_json, write_json
from experiments.store.locks import forget, locked

_SECONDS_BETWEEN_BEATS = 0.2


class MeetingError(Exception):
    """Processes did not meet, or one could take a lock that another held."""


def meet(folder: Path, processes: int, seconds: float) -> list[str]:
    """Meet ``processes - 1`` others that call this at the same time, and return the hosts of all, this one first.

    Raises:
        MeetingError: fewer appeared within ``seconds``, or the lock of one of them was free.
        OSError: the folder cannot be written, or has no locks.
    """
    me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with locked(folder, [me]):
        try:
            held = _try_others(folder, me, processes, time.monotonic() + seconds)
        finally:
            _entry(folder, me).unlink(missing_ok=True)
            forget(folder, [me])
    hosts = [_host(name) for name in (me, *sorted(held))]
    if free := sorted(name for name, is_held in held.items() if not is_held):
        raise MeetingError(f"{hosts[0]} could take a lock that a process of {_host(free[0])} held")
    if len(hosts) < processes:
        raise MeetingError(
            f"{len(hosts)} of {processes} processes ({', '.join(hosts)}) met within {seconds:.0f} s; "
            "if all ran at the same time, they do not see the same files"
        )
    return hosts


def _try_others(folder: Path, me: str, processes: int, deadline: float) -> dict[str, bool]:
    """Whether the lock of each process that was met is held. Return when all are done, or at the ``deadline``."""
    held: dict[str, bool] = {}
    first: dict[str, int] = {}
    for beat in itertools.count():
        entries = _entries(folder)
        for name, entry in entries.items():
            alive = first.setdefault(name, entry["beat"]) != entry["beat"]  # a killed process leaves its file
            if alive and name not in (me, *held):
                with locked(folder, [name]) as free:
                    held[name] = not free
        write_json(_entry(folder, me), {"beat": beat, "tried": sorted(held)})
        left = [name for name in held if name not in entries]  # only those leave whom all others have tried
        tried_me = {name for name, entry in entries.items() if me in entry["tried"]} | {*left}
        done = len(held) >= processes - 1 and tried_me >= held.keys()
        if done or time.monotonic() > deadline:
            break
        time.sleep(_SECONDS_BETWEEN_BEATS)
    return held


def _entries(folder: Path) -> dict[str, Any]:
    """The files of all processes by name. One that is being replaced or removed is left out."""
    found = {}
    for path in folder.glob("*.json"):
        with suppress(OSError, ValueError):
            found[path.stem] = read_json(path)
    return found


def _entry(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _host(name: str) -> str:
    return name.rsplit("-", 2)[0]
