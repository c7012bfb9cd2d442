"""The command line: python run.py [group=choice ...] [setting=value ...]."""

import sys

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
