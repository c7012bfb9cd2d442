"""``python -m experiments.datasets download cifar10 ROOT``: fetches a data set once, to be read under ``data.root=ROOT``."""

import argparse
import sys
from pathlib import Path

from experiments.datasets.downloads import download_cifar10, download_mnist
from experiments.datasets.errors import DataError


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python -m experiments.datasets", description="Fetch a data set.")
    commands = parser.add_subparsers(required=True)
    download = commands.add_parser("download", help="from its public address, checked")
    download.add_argument("dataset", choices=["cifar10", "mnist"])
    download.add_argument("root", type=Path, help="the folder that data.root names")
    arguments = parser.parse_args()
    try:
        {"cifar10": download_cifar10, "mnist": download_mnist}[arguments.dataset](arguments.root)
    except DataError as error:
        return str(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
