"""Runs commands of a checkout after files were added to it: ``python additions.py CHECKOUT < ADDITIONS``.

ADDITIONS is a JSON list of ``{"name": ..., "files": {path: text}, "commands": [[argument, ...], ...]}``. Each command runs in a
process of its own, which is forked from one that has imported the checkout, and each addition without the files of the others.
Prints what commands that failed printed, and exits with 1 if there are any.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path


def failure(arguments: list[str]) -> str:
    """What ``python run.py`` printed if it failed, or the empty string."""
    with tempfile.TemporaryFile("w+") as log:
        if (child := os.fork()) == 0:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            code = 1
            try:
                sys.argv = ["run.py", *arguments]
                run.main()
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        return f"{' '.join(arguments)}: {log.read()}" if status else ""


if __name__ == "__main__":
    home = Path(sys.argv[1])
    sys.path[0] = str(home)
    os.environ["HYDRA_MAIN_MODULE"] = "__main__"  # configs are files, as for python run.py

    import experiments.tasks.attribute
    import experiments.tasks.evaluate
    import experiments.tasks.train  # noqa: F401
    import run

    assert Path(run.__file__).parent == home
    gc.freeze()
    failures = []
    for addition in json.load(sys.stdin):
        written = {home / path: text for path, text in addition["files"].items()}
        for path, text in written.items():
            assert not path.exists(), path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        failures += [f"{addition['name']}: {said}" for command in addition["commands"] if (said := failure(command))]
        for path in written:
            path.unlink()
    sys.exit("\n".join(failures) or 0)
