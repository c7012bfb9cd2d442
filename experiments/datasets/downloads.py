"""Fetches CIFAR-10 and MNIST from their public addresses, by the user's choice, into the layout that the readers expect.

Files are checked against their known MD5 and appear under their names all at once. Nothing that is there is written over.
"""

import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from experiments.datasets.errors import DataError

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10 = ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
MNIST_ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_CHUNK = 1 << 20


def mend(dataset: str, root: Path) -> str:
    """What to do about missing files, for the end of a message."""
    return (
        f"set data.root to a folder that holds them, set data.download=true, or run "
        f"`python -m experiments.datasets download {dataset} {root}`"
    )


def download_cifar10(root: Path) -> None:
    """Leaves ``root/cifar-10-batches-py``. Raises DataError: no network, wrong content, or the folder exists."""
    target = root / CIFAR10_FOLDER
    with _staging(root, target) as staging:
        archive = staging / "archive.tar.gz"
        _fetch(*CIFAR10, archive)
        with tarfile.open(archive) as tar:
            for member in tar:
                # By name into our own folder: an archive's paths and links are not followed.
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    with content, (staging / Path(member.name).name).open("wb") as file:
                        shutil.copyfileobj(content, file)
        archive.unlink()


def download_mnist(root: Path) -> None:
    """Leaves the four compressed files in ``root/MNIST/raw``. Raises DataError: no network, wrong content, or the folder exists."""
    with _staging(root, root / "MNIST" / "raw") as staging:
        for name, md5 in MNIST.items():
            _fetch(MNIST_ADDRESS + name, md5, staging / name)


def _fetch(url: str, md5: str, path: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
            total = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, total, description=path.name, console=Console(stderr=True)) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} cannot be fetched ({error}): try again, or fetch it elsewhere and unpack it under data.root"
        ) from error
    if digest.hexdigest() != md5:
        raise DataError(f"{url} gave other content than expected (MD5 {digest.hexdigest()}, not {md5}): try again later")


@contextmanager
def _staging(root: Path, target: Path) -> Iterator[Path]:
    """A temporary folder in ``root`` that becomes ``target`` if all went well, and else vanishes."""
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} exists already: remove it, or choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    try:
        yield folder
        folder.chmod(0o755)  # temporary folders are private
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # there now: another process was faster, with the same files
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
