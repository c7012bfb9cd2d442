"""The processes of one run that torchrun starts: process 0 runs the command line, the others take part in its training runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.parent import under_torchrun


@contextmanager
def runs_the_command_line() -> Iterator[bool]:
    """Yield whether this process runs the command line. Other processes of torchrun take part in training until process 0 ends."""
    if not under_torchrun():
        yield True
        return
    from experiments.models.rank_processes import torchrun  # imports torch, which --help does without

    run = torchrun()
    assert run is not None
    if run.number > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 0 ends the run, and torchrun ends this process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run.follow()
        yield False
        return
    try:
        yield True
    finally:
        run.dismiss()
