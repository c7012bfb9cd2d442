"""Equal and nearly equal images, as people see them: pure functions."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import KDTree

from attribution.images import Images

SAME = 0.02
"""The largest root-mean-square difference of nearly equal images, as a share of the range of pixels."""
_SIDE = 4
_BLOCK = 1024
_PROBES = 1024
_COMPARED = 5e8
"""The largest number of pixels of pairs that may be nearly equal by their means and are compared."""


@dataclass(frozen=True)
class Duplicates:
    """Groups of positions of equal images, and pairs of positions of nearly equal ones, without further copies of an image.

    ``complete`` is False if there may be more pairs, because too many images have similar means.
    """

    equal: Sequence[Sequence[int]]
    near: Sequence[tuple[int, int]]
    complete: bool = True


def duplicates(images: Images, hashes: Sequence[bytes], limit: float = SAME) -> Duplicates:
    """Search for equal images, by their ``hashes`` from :func:`digests`, and for nearly equal ones.

    These have a root-mean-square difference of at most ``limit``, as a share of the range of pixels.

    Images with a small root-mean-square difference have similar means of the 4 × 4 parts that they are divided into: the distance
    of these means, weighted by area, is at most that difference. A tree over the means finds all pairs that may be nearly equal.
    """
    by_digest: dict[bytes, list[int]] = {}
    for position, digest in enumerate(hashes):
        by_digest.setdefault(digest, []).append(position)
    first = np.array([group[0] for group in by_digest.values()], np.int64)
    tree = KDTree(_means(images, first), leafsize=32)
    radius = limit * (1 + 1e-5)  # rounding
    most = int(_COMPARED / np.prod(images.visible_shape))
    probes = tree.data[np.linspace(0, len(first) - 1, min(_PROBES, len(first))).astype(int)]
    neighbors = np.mean(tree.query_ball_point(probes, radius, return_length=True)) - 1
    complete = bool(neighbors * len(first) / 2 <= most)
    candidates = tree.query_pairs(radius, output_type="ndarray") if complete else _some_pairs(tree, radius, most)
    near = []
    for start in range(0, len(candidates), _BLOCK):
        a, b = np.sort(first[candidates[start : start + _BLOCK]], 1).T
        squares = (images.visible(a) - images.visible(b)).square().flatten(1).mean(1).numpy()
        near += [(int(a[i]), int(b[i])) for i in np.flatnonzero(squares <= limit**2)]
    return Duplicates([group for group in by_digest.values() if len(group) > 1], sorted(near), complete)


def clusters(images: Images, limit: float) -> tuple[list[np.ndarray], bool]:
    """The rows of the clusters of near-duplicates, the largest first, and whether all pairs were compared.

    Images are in one cluster if a chain of them, each differing from the next by at most ``limit``, leads from one to the other.
    An image without a near-duplicate is in none.
    """
    found = duplicates(images, list(digests(images)), limit)
    copies = [pair for group in found.equal for pair in itertools.pairwise(group)]
    pairs = np.array([*found.near, *copies], np.int64).reshape(-1, 2)
    linked = sparse.coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(len(images), len(images)))
    _, component = csgraph.connected_components(linked, directed=False)
    of_each = [np.flatnonzero(component == number) for number in np.flatnonzero(np.bincount(component) > 1)]
    return sorted(of_each, key=lambda rows: (-len(rows), rows[0])), found.complete


def digests(images: Images) -> Iterator[bytes]:
    """A hash of the pixels of every image as 8-bit levels."""
    for start in range(0, len(images), _BLOCK):
        values = images.visible(slice(start, start + _BLOCK)).numpy()
        for pixels in np.rint(values * 255).astype(np.int32):
            yield hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _means(images: Images, rows: np.ndarray) -> np.ndarray:
    """Means of the parts of images ``[n, 4 · 4]``, weighted so that their distance is at most the root-mean-square difference."""
    sides = images.visible_shape[1:]
    starts = [np.unique(np.linspace(0, side, min(_SIDE, side), endpoint=False).astype(int)) for side in sides]
    areas = np.outer(*(np.diff([*start, side]) for start, side in zip(starts, sides, strict=True)))
    weights = 1 / np.sqrt(areas * np.prod(sides))  # of the sum over a part
    means = np.empty((len(rows), *areas.shape))
    for start in range(0, len(rows), _BLOCK):
        gray = images.visible(rows[start : start + _BLOCK]).numpy().mean(1, dtype=np.float64)
        means[start : start + _BLOCK] = np.add.reduceat(np.add.reduceat(gray, starts[0], 1), starts[1], 2) * weights
    return means.reshape(len(rows), -1)


def _some_pairs(tree: KDTree, radius: float, most: int) -> np.ndarray:
    """About ``most`` pairs of neighbors, those of every image with its nearest ones."""
    few = max(1, most // tree.n)
    distances, neighbors = map(np.asarray, tree.query(tree.data, k=few + 1, distance_upper_bound=radius))
    rows = np.broadcast_to(np.arange(tree.n)[:, None], neighbors.shape)
    known = np.isfinite(distances) & (rows != neighbors)
    return np.unique(np.sort(np.stack([rows[known], neighbors[known]], 1), 1), axis=0)
