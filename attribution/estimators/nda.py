"""Nonparametric data attribution (NDA; Zhao et al., ICML 2026, "Nonparametric Data Attribution for Diffusion Models").

It uses no model. The optimal denoiser of a training set is a softmax over its images: E[x_0 | x_t] = Σ_z w(z) z, where w(z) is
proportional to exp(-‖x_t - α_t z‖²/(2σ_t²)) and x_t = α_t x_0 + σ_t ε. A network with local receptive fields rather mixes patches,
so NDA lets every patch p of the noisy query compete for all patches p' of all training images, at any position:

    w_p(z, p') = softmax over (z, p') of -‖P_p x_t - α_t P_p' z‖²/(2σ_t²)
    τ[q, z] = mean over noises and patches p of Σ_p' w_p(z, p')

A score is the share of the query that the training image accounts for, and the scores of a query add up to 1 if ``top`` is None.
The rest is taken from the published code (sail-sg/NDA), which has the sum over patches and one noise in place of our means:

- ``top``: only that many positions of a training image enter its sum, those with the largest weights.
- ``border``: pixels outside of an image have this value in queries and training images alike, so that patches at a border are
  compared with patches at the same border.
- ``coarse``: patches of a second scale of this (even) side, in which blocks of 2 × 2 pixels are replaced by half their sum: an
  orthonormal projection, so that σ_t stays the standard deviation of the noise. ``weight`` is that of the first scale in the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attribution.checks import FieldError, listed, number, whole
from attribution.diffusion import Process
from attribution.double_precision import double_device
from attribution.estimators.base import Estimator, as_tuple
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import BlockProducts, ShardedScores
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.images import Images, ImageSet
from attribution.images.draws import Fixed
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.sharded", "attribution.diffusion.process", "attribution.images.draws")

COPIES = 4
"""The arrays of the size of a block of distances that are held at a time."""
EXPONENTIAL = 1000
"""Multiply-adds in float32 that take as long as the exponentials and the sorting of a pair of patches (measured on a CPU)."""


@dataclass(frozen=True, kw_only=True)
class NDA(Estimator):
    """The share of the query's patches that each training image accounts for, at ``timestep``: one value or a list.

    Training images are taken as they are stored: mirror images that training saw (``data.flips``) do not enter.
    ``noises``: independent noises of a query; ``seed``: theirs. ``patch``: the side of a patch, an odd number of pixels.
    """

    NAME = "NDA"
    VERSION = 1
    GRADIENTS = False

    timestep: int | Sequence[int] = 100
    noises: int = 4
    patch: int = 7
    coarse: int | None = None
    weight: float = 0.5
    top: int | None = 100
    border: float = 10.0
    seed: int = 0

    def __post_init__(self):
        for name in ("noises", "patch"):
            whole(self, name, least=1)
        number(self, "weight", least=0, most=1)
        number(self, "border", least=-1e4, most=1e4)
        if self.patch % 2 == 0:
            raise FieldError(self, "patch", "a patch has a center: give an odd number of pixels")
        if self.coarse is not None:
            whole(self, "coarse", least=2)
            if self.coarse % 2:
                raise FieldError(self, "coarse", "patches of 2 × 2 blocks have an even side: give an even number, or null")
        if self.top is not None:
            whole(self, "top", least=1)
        if isinstance(self.timestep, Sequence):
            listed(self, "timestep", lambda owner, name: whole(owner, name, least=1))
        else:
            whole(self, "timestep", least=1)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timesteps as a tuple."""
        return tuple(int(t) for t in as_tuple(self.timestep))

    @property
    def scales(self) -> list[tuple[int, bool, float]]:
        """Side of a patch, whether blocks of 2 × 2 pixels are one, and weight, of each scale."""
        if self.coarse is None:
            return [(self.patch, False, 1.0)]
        return [(self.patch, False, self.weight), (self.coarse, True, 1 - self.weight)]

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"timestep": self.timesteps}

    def draws_of(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """The noises of a query; training images have none."""
        return self.noises, 0

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        if outside := [t for t in self.timesteps if t > trained.process.T]:
            raise FieldError(self, "timestep", f"the timesteps are 1..{trained.process.T}: choose from these", outside[0])
        return NDAScores(self, train, queries, trained.process)


@dataclass(frozen=True)
class NDABlock(Node[BlockProducts]):
    """The scores of the queries ``rows[0]..rows[1]-1``: ``[timesteps, n, N]``."""

    NAME = "NDABlock"
    VERSION = 1
    TITLE = "matches of patches"
    ARTIFACT = BlockProducts
    TRANSIENT = True

    estimator: NDA
    train: ImageSet
    queries: ImageSet
    process: Process
    rows: tuple[int, int]

    def cost(self) -> Cost:
        """The products of patches of the queries with those of the training images, if the size of an image is known."""
        estimator, shape, count = self.estimator, self.train.image_shape, self.rows[1] - self.rows[0]
        scales = [Patches(side, pooled, estimator.border) for side, pooled, _ in estimator.scales]
        per_pair = 0 if shape is None else sum(scale.products(*shape) for scale in scales)
        pairs = count * self.train.count * len(estimator.timesteps)
        return Cost(products=pairs * estimator.noises * per_pair, memory=estimator.execution.pass_bytes + FLOAT64_BYTES * pairs)

    def compute(self, get: Get) -> BlockProducts:
        estimator, rows = self.estimator, slice(*self.rows)
        device = double_device(estimator.execution.torch_device())  # small σ_t amplify the rounding of distances
        train, queries = get(self.train), get(self.queries)
        x0, ids = queries.x0(rows).to(device).double(), queries.ids(rows)
        values = torch.zeros(len(estimator.timesteps), len(x0), len(train), dtype=torch.float64, device=device)
        for i, t in enumerate(estimator.timesteps):
            draws = Fixed((t,), estimator.noises, estimator.seed).draw("query", ids, self.process.T)
            noise = draws.noise(x0.shape[1:], torch.float64).to(device)  # [n, noises, C, H, W]
            level = torch.tensor([t], device=device)
            alpha, sigma = (self.process.add_noise(*pair).item() for pair in _units(level))
            noisy = alpha * x0.unsqueeze(1) + sigma * noise
            for q, k in np.ndindex(len(x0), estimator.noises):
                for side, pooled, weight in estimator.scales:
                    scale = Patches(side, pooled, estimator.border)
                    shares = matches(noisy[q, k], train, alpha, sigma, scale, estimator.top, estimator.execution.pass_bytes)
                    values[i, q] += weight / estimator.noises * shares
        if not values.isfinite().all():
            raise FloatingPointError("scores of patches are not finite: are the queries and the training images?")
        return BlockProducts(values.float().cpu().numpy())


def _units(level: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The arguments with which ``add_noise`` gives α_t and σ_t."""
    zero, one = (torch.full((1, 1, 1, 1), value, dtype=torch.float64, device=level.device) for value in (0.0, 1.0))
    return [(one, level, zero), (zero, level, one)]


@dataclass(frozen=True)
class NDAScores(ShardedScores):
    """The scores ``[timesteps, Q, N]``."""

    NAME = "NDAScores"
    VERSION = 1
    TITLE = "patch attributions"

    estimator: NDA
    process: Process

    def parts(self, get: Get) -> list[NDABlock]:
        rows = ranges(0, self.queries.count, self.estimator.execution.query_shard)
        return [NDABlock(self.estimator, self.train, self.queries, self.process, block) for block in rows]

    def cost(self) -> Cost:
        return Cost(disk=FLOAT32_BYTES * len(self.estimator.timesteps) * self.pairs)

    def compute(self, get: Get) -> Scores:
        values = np.concatenate([block.values for block in get.many(self.parts(get))], axis=1)
        return self.assembled(values, get, axes={"timestep": list(self.estimator.timesteps)})


@dataclass(frozen=True)
class Patches:
    """All square patches of an image: ``side`` pixels, ``pooled``: in blocks of 2 × 2, ``border``: the value outside."""

    side: int
    pooled: bool
    border: float

    def products(self, channels: int, height: int, width: int) -> int:
        """Return the multiply-adds of all pairs of a patch of an image with a patch of another."""
        lost = self.side - 1 - 2 * ((self.side - 1) // 2)  # an even side has one position less
        pixels = (self.side // 2 if self.pooled else self.side) ** 2
        return ((height - lost) * (width - lost)) ** 2 * (channels * pixels + EXPONENTIAL)

    def of(self, images: Tensor) -> Tensor:
        """Return the patches of ``images [n, C, H, W]`` at L positions, ``[n, D, L]``."""
        margin = (self.side - 1) // 2
        padded = F.pad(images, (margin,) * 4, value=self.border)
        if not self.pooled:
            return F.unfold(padded, self.side)
        channels = padded.shape[1]
        blocks = F.conv2d(padded, padded.new_full((channels, 1, 2, 2), 0.5), groups=channels)
        return F.unfold(blocks, self.side // 2, dilation=2)


def matches(noisy: Tensor, train: Images, alpha: float, sigma: float, patches: Patches, top: int | None, memory: float) -> Tensor:
    """Return the mean over the patches of ``noisy [C, H, W]`` of the weights of each of N training images: ``[N]``.

    ``memory``: bytes that a block of patches against a block of training images may take: distances, patches, and the weights of
    the block of patches. It bounds what is held, whatever N, except that one patch and one training image are always held.
    """
    x = patches.of(noisy.unsqueeze(0))[0].T  # [P, D]
    N, (P, D) = len(train), x.shape
    half = memory / 2 / FLOAT64_BYTES  # numbers
    at_once = int(max(1, min(P, half / (2 * N), half / (COPIES * P))))
    shares = torch.zeros(N, dtype=x.dtype, device=x.device)
    for first, last in ranges(0, P, at_once):
        block = x[first:last]
        whole, largest = x.new_empty(len(block), N), x.new_empty(len(block), N)
        images = int(max(1, min(N, half / (P * (COPIES * len(block) + 2 * D)))))  # patches, and their squares
        for start, stop in ranges(0, N, images):
            z = alpha * train.x0(slice(start, stop)).to(x.device).double()
            whole[:, start:stop], largest[:, start:stop] = _log_weights(block, patches.of(z), sigma, top)
        shares += (largest - whole.logsumexp(1, keepdim=True)).exp().sum(0)
    return shares / P


def _log_weights(x: Tensor, z: Tensor, sigma: float, top: int | None) -> tuple[Tensor, Tensor]:
    """The logarithms of the sums over positions of exp(-‖x - z‖²/(2σ²)), ``[p, n]``: over all, and over the ``top`` largest.

    ``x [p, D]`` are patches of the query, ``z [n, D, L]`` those of training images.
    """
    products = torch.einsum("pd,ndl->pnl", x, z)
    squares = x.square().sum(1)[:, None, None] + z.square().sum(1) - 2 * products
    logits = squares.clamp_(min=0).div_(-2 * sigma**2)
    whole = logits.logsumexp(2)
    return whole, whole if top is None or top >= z.shape[2] else logits.topk(top, 2).values.logsumexp(2)
