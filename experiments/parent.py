"""Processes that end with their parent."""

import os
import threading
import time


def exit_with_parent(parent: int) -> None:
    """Exit within about a second of the parent process ending."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
