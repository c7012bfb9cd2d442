"""The process that started this one: whether it was torchrun, and how to end with it."""

import os
import threading
import time


def under_torchrun() -> bool:
    """Return whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def exit_with_parent(parent: int) -> None:
    """Exit within about a second of the parent process ending."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
