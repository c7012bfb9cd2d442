"""Structural similarity of images, without a model (SSIM; Wang et al. 2004, "Image quality assessment: from error visibility to
structural similarity", eq. 13).

The mean over channels and over all windows that lie within the image of

    (2 μ_q μ_z + C1)(2 σ_qz + C2) / ((μ_q² + μ_z² + C1)(σ_q² + σ_z² + C2)),      C1 = 0.01², C2 = 0.03²

with means, variances and the covariance of two images in [0, 1] under a Gaussian window. It compares patterns at the same place and
not how bright or how contrasted they are. Images of fewer pixels than the window get the largest odd window that fits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attribution.checks import number
from attribution.double_precision import double_device
from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import BlockProducts, ShardedScores
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.sharded",)

C1, C2 = 0.01**2, 0.03**2
"""Constants for images in [0, 1], as published."""
COPIES = 6
"""The arrays of a number for each window and pair that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class StructuralSimilarity(Estimator):
    """SSIM, in [-1, 1]. ``sigma``: the standard deviation of the window in pixels; it ends at 3.5 of them, 11 pixels for 1.5."""

    NAME = "StructuralSimilarity"
    VERSION = 1
    GRADIENTS = False

    sigma: float = 1.5

    def __post_init__(self):
        number(self, "sigma", least=0.1)

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return StructuralScores(self, train, queries)


@dataclass(frozen=True)
class StructuralBlock(Node[BlockProducts]):
    """The similarities of the queries ``rows[0]..rows[1]-1`` to all training images, ``[n, N]``."""

    NAME = "StructuralBlock"
    VERSION = 1
    TITLE = "structural similarities of queries"
    ARTIFACT = BlockProducts
    TRANSIENT = True

    estimator: StructuralSimilarity
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def cost(self) -> Cost:
        """The products of all windows, if the size of an image is known."""
        pairs, shape = (self.rows[1] - self.rows[0]) * self.train.count, self.train.image_shape
        memory = self.estimator.execution.pass_bytes + FLOAT64_BYTES * pairs
        if shape is None:
            return Cost(memory=memory)
        C, H, W = shape
        side = len(window(self.estimator.sigma, H, W))
        return Cost(products=pairs * C * (H - side + 1) * (W - side + 1) * side**2, memory=memory)

    def compute(self, get: Get) -> BlockProducts:
        train, queries, execution = get(self.train), get(self.queries), self.estimator.execution
        device = double_device(execution.torch_device())  # a covariance is a small difference of products
        C, H, W = queries.visible_shape
        kernel = window(self.estimator.sigma, H, W).to(device)
        q = Windows.of(queries.visible(slice(*self.rows)).to(device), kernel)
        positions, patch = C * (H - len(kernel) + 1) * (W - len(kernel) + 1), len(kernel) ** 2
        number = execution.pass_bytes / FLOAT64_BYTES / positions - patch * len(q)
        values = torch.empty(len(q), len(train), dtype=torch.float64, device=device)
        for start, stop in ranges(0, len(train), int(max(1, number / max(4 * patch, patch + COPIES * len(q))))):
            values[:, start:stop] = similarity(q, Windows.of(train.visible(slice(start, stop)).to(device), kernel))
        return BlockProducts(values.float().cpu().numpy())


@dataclass(frozen=True)
class StructuralScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "StructuralScores"
    VERSION = 1
    TITLE = "structural similarities"

    estimator: StructuralSimilarity

    def parts(self, get: Get) -> list[StructuralBlock]:
        rows = ranges(0, self.queries.count, self.estimator.execution.query_shard)
        return [StructuralBlock(self.estimator, self.train, self.queries, block) for block in rows]

    def cost(self) -> Cost:
        return Cost(disk=FLOAT32_BYTES * self.pairs)

    def compute(self, get: Get) -> Scores:
        return self.assembled(np.concatenate([block.values for block in get.many(self.parts(get))]), get)


@dataclass(frozen=True)
class Windows:
    """All windows of n images, by channel and position P: deviations from the weighted mean times √weight ``[P, n, D]``, means and
    variances ``[P, n]``."""

    deviations: Tensor
    mean: Tensor
    variance: Tensor

    def __len__(self) -> int:
        return self.mean.shape[1]

    @classmethod
    def of(cls, images: Tensor, kernel: Tensor) -> "Windows":
        """The windows of ``images [n, C, H, W]`` under the weights ``kernel [s, s]``."""
        n, C = images.shape[:2]
        patches = F.unfold(images.double(), len(kernel)).view(n, C, kernel.numel(), -1)  # [n, C, D, L]
        patches = patches.permute(1, 3, 0, 2).reshape(-1, n, kernel.numel())
        weights = kernel.flatten()
        mean = patches @ weights
        deviations = (patches - mean[..., None]) * weights.sqrt()
        return cls(deviations, mean, deviations.square().sum(-1))


def similarity(q: Windows, z: Windows) -> Tensor:
    """The mean structural similarity of each pair, ``[Q, n]``."""
    covariance = q.deviations @ z.deviations.mT  # [P, Q, n]
    mean_q, variance_q, mean_z, variance_z = q.mean[:, :, None], q.variance[:, :, None], z.mean[:, None], z.variance[:, None]
    bright = (2 * mean_q * mean_z + C1) / (mean_q.square() + mean_z.square() + C1)
    return (bright * (2 * covariance + C2) / (variance_q + variance_z + C2)).mean(0)


def window(sigma: float, height: int, width: int) -> Tensor:
    """The weights ``[s, s]`` of a Gaussian window within an image, which add up to 1; s is odd."""
    radius = min(round(3.5 * sigma), (min(height, width) - 1) // 2)
    line = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    line /= line.sum()
    return line[:, None] * line
