"""The command line: python run.py [-m] [group=choice ...] [setting=value ...]."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not take the cores of others

import hydra
from omegaconf import DictConfig

from experiments.tasks.command_line import sweepable
from experiments.tasks.errors import EXPECTED, exit_with, sentences


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def task(config: DictConfig) -> None:
    """Run the task of one composed config."""
    from experiments.tasks.settings import build, by_setting, check_run  # after --help and errors of composition, which need no torch

    try:
        check_run(config)
        build(config, "task")(config)
    except EXPECTED as error:
        error = by_setting(config, error)
        if hydra.core.hydra_config.HydraConfig.get().mode == hydra.types.RunMode.RUN:
            exit_with(error)
        raise error


def main() -> None:
    """Run what the command line says."""
    sys.argv[1:] = sweepable(sys.argv[1:])
    with sentences():
        task()


if __name__ == "__main__":
    main()
