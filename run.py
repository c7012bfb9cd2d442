"""The command line: python run.py [-m] [group=choice ...] [setting=value ...]."""

import atexit
import gc
import os
import sys

from experiments.tasks import interruption

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not take the cores of others
if __name__ == "__main__":
    interruption.install()  # before the imports that take seconds

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.tasks.errors import EXPECTED, errors_as_messages, exit_with
from experiments.tasks.multirun import finished_jobs_reported, record_failure
from experiments.tasks.sweep_arguments import sweepable
from experiments.tasks.torchrun import runs_the_command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def task(config: DictConfig) -> float | None:
    """Run the task of one composed config, and return the number that a search over settings maximizes, if the task has one.

    A job of a sweep that fails does not end the others, and returns None.
    """
    # not before: --help needs none of it
    from experiments.tasks.composition import leave_out_draws, named
    from experiments.tasks.settings import build, check_run

    try:
        leave_out_draws(config)
        check_run(config)
        with interruption.interruptible():
            return build(config, "task")(config)
    except Exception as error:
        cause = named(config, error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            record_failure(cause)
        elif isinstance(error, EXPECTED):
            exit_with(cause)
        else:
            raise
    return None


def main() -> None:
    """Run the command line: one job, or all jobs of a sweep."""
    arguments = sys.argv[1:]
    sys.argv[1:] = sweepable(arguments)
    with interruption.interruptible(), errors_as_messages(), finished_jobs_reported(arguments):
        task()


if __name__ == "__main__":
    # Imports make a million objects that stay. Searching them for garbage would take a second, and another at the end.
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
    with runs_the_command_line() as here:
        if here:
            main()
