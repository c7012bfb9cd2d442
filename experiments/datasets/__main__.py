"""Command line to download a data set: ``python -m experiments.datasets download cifar10 ROOT``; then set ``data.root=ROOT``."""

import argparse
import sys
from pathlib import Path

from experiments.datasets.downloads import download_cifar10, download_mnist
from experiments.datasets.errors import DataError


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="python -m experiments.datasets", description="Download a data set.")
    commands = parser.add_subparsers(required=True)
    download = commands.add_parser("download", help="download from the public address and verify the checksum")
    download.add_argument("dataset", choices=["cifar10", "mnist"])
    download.add_argument("root", type=Path, help="the folder to give as data.root")
    arguments = parser.parse_args()
    try:
        {"cifar10": download_cifar10, "mnist": download_mnist}[arguments.dataset](arguments.root)
    except (DataError, OSError) as error:
        return str(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
