"""Downloads of CIFAR-10 and MNIST from their public addresses, into the layout that the readers expect.

The MD5 of each file is verified. The files of a data set appear together once all are complete; existing files are never
overwritten.
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
from experiments.disk import explained, is_full

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


def remedy(dataset: str, root: Path) -> str:
    """Return what to do about missing files, for the end of an error message."""
    return (
        f"set data.root to the folder with these files, set data.download=true, or run "
        f"`python -m experiments.datasets download {dataset} {root}`"
    )


def download_cifar10(root: Path) -> None:
    """Download CIFAR-10 to ``root/cifar-10-batches-py``.

    Raises:
        DataError: the network is unavailable, the content is wrong, or the folder exists.
        DiskError: the disk is full or not writable.
    """
    target = root / CIFAR10_FOLDER
    with _staging(root, target) as staging:
        archive = staging / "archive.tar.gz"
        _fetch(*CIFAR10, archive)
        with tarfile.open(archive) as tar:
            for member in tar:
                # Extract by name into the staging folder: paths and links in an archive are not followed.
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    with content, (staging / Path(member.name).name).open("wb") as file:
                        shutil.copyfileobj(content, file)
        archive.unlink()


def download_mnist(root: Path) -> None:
    """Download the four compressed files of MNIST to ``root/MNIST/raw``.

    Raises:
        DataError: the network is unavailable, the content is wrong, or the folder exists.
        DiskError: the disk is full or not writable.
    """
    with _staging(root, root / "MNIST" / "raw") as staging:
        for name, md5 in MNIST.items():
            _fetch(MNIST_ADDRESS + name, md5, staging / name)


def _fetch(url: str, md5: str, path: Path) -> None:
    """Download ``url`` to ``path`` and verify its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
            total = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, total, description=path.name, console=Console(stderr=True)) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        if is_full(error):
            raise
        raise DataError(
            f"{url} cannot be downloaded ({error}): try again, or download it elsewhere and unpack it in data.root"
        ) from error
    if digest.hexdigest() != md5:
        raise DataError(f"{url} has unexpected content (MD5 {digest.hexdigest()} instead of {md5}): try again later")


@contextmanager
def _staging(root: Path, target: Path) -> Iterator[Path]:
    """Yield a temporary folder in ``root`` that becomes ``target`` on success and is removed on failure."""
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target} exists already: remove it, or choose another folder")
    with explained(root, "data.root", "nothing of this download is kept"):
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
        try:
            yield folder
            folder.chmod(0o755)  # temporary folders are private
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(folder, target)
            except OSError:
                if not target.is_dir():  # otherwise another process has finished the same download
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
