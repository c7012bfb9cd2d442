"""Tiny files in the formats and folders of CIFAR-10 and MNIST."""

import gzip
import pickle
from pathlib import Path

import numpy as np

BATCHES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")


def write_cifar(root: Path, per_batch: int = 20, seed: int = 0, protocol: int = 2, keys: type = str) -> dict[str, np.ndarray]:
    """Write six batches with labels 0..9 in turn; return the images ``[N, 3, 32, 32]`` and labels of "train" and "test"."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (6, per_batch, 3072), dtype=np.uint8)
    labels = np.arange(per_batch) % 10
    for name, data in zip(BATCHES, pixels, strict=True):
        content = {"batch_label": name, "labels": labels.tolist(), "data": data, "filenames": ["x.png"] * per_batch}
        if keys is bytes:
            content = {key.encode(): value for key, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    images = pixels.reshape(6, per_batch, 3, 32, 32)
    return {"train": np.concatenate(images[:5]), "train_label": np.tile(labels, 5), "test": images[5], "test_label": labels}


def idx(values: np.ndarray) -> bytes:
    """Return the content of an idx file of bytes."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, n: int = 40, seed: int = 0, compress: bool = False) -> dict[str, np.ndarray]:
    """Write the four files in ``folder``, labels 0..9 in turn; return the images ``[N, 28, 28]`` of "train" and "test" (n / 2)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    written = {}
    for part, name, count in (("train", "train", n), ("test", "t10k", n // 2)):
        written[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, values in (("images-idx3", written[part]), ("labels-idx1", np.arange(count) % 10)):
            raw = idx(values)
            path = folder / f"{name}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(raw) if compress else raw)
    return written
