"""The command line: python run.py [group=choice ...] [setting=value ...]."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads must not take the cores of others

import hydra
from omegaconf import DictConfig

from experiments.errors import EXPECTED


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    try:
        hydra.utils.instantiate(config.task)(config)
    except EXPECTED as error:
        if not isinstance(error, hydra.errors.InstantiationException):
            sys.exit(f"error: {error}")
        sys.exit(f"error: {error.__cause__ or error}")


if __name__ == "__main__":
    main()
