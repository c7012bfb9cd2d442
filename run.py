"""The command line: python run.py [group=choice ...] [setting=value ...]."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not take the cores of others

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from experiments.tasks.errors import EXPECTED


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    try:
        hydra.utils.instantiate(config.task)(config)
    except EXPECTED as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        sys.exit(f"error: {cause or error}")


if __name__ == "__main__":
    main()
