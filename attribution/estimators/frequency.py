"""Spectra of images, without a model: cosines of log-magnitudes of frequencies, by bands.

With F the unitary two-dimensional Fourier transform of each channel of an image in [0, 1], and B bands of equal width in the radius
of the frequency, the similarity of two images is the mean over bands b of

    cos(v_b(q), v_b(z)),      v_b(x) = log(1 + |F x|) at the frequencies in b, of all channels

Magnitudes do not change when an image is moved (with wrap-around), so this compares textures and the sizes of shapes, and not their
places. Natural spectra fall off steeply; the logarithm and the bands give high frequencies a say. Both are **our** choices.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.checks import whole
from attribution.estimators.embedding import Embedding
from attribution.execution import ranges
from attribution.images import Images

SHARED = ("attribution.estimators.embedding",)

AT_ONCE = 1024
"""The number of images whose spectra are held in float64."""


@dataclass(frozen=True)
class Frequencies(Embedding):
    """Log-magnitudes of the spectrum, in which each of ``bands`` has unit norm over √B: cosines are means of the bands' cosines.

    Bands without a frequency, in small images, are left out.
    """

    NAME = "Frequencies"
    VERSION = 1

    bands: int = 4

    def __post_init__(self):
        whole(self, "bands", least=1)

    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        visible = images.visible()
        return np.concatenate([self._vectors(visible[start:stop]) for start, stop in ranges(0, len(visible), AT_ONCE)])

    def _vectors(self, visible: Tensor) -> np.ndarray:
        magnitudes = torch.fft.fft2(visible.double(), norm="ortho").abs().numpy()  # [n, C, H, W]
        logs, (height, width) = np.log1p(magnitudes), visible.shape[-2:]
        band = band_of(height, width, self.bands)
        vectors = [logs[:, :, band == b].reshape(len(logs), -1) for b in np.unique(band)]
        unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), np.finfo(np.float64).tiny) for v in vectors]
        return (np.concatenate(unit, axis=1) / np.sqrt(len(unit))).astype(np.float32)


def band_of(height: int, width: int, bands: int) -> np.ndarray:
    """The band of each frequency of an image, ``[height, width]``: 0 for the lowest radii."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return np.minimum(bands * radius / max(radius.max(), np.finfo(np.float64).tiny), bands - 1).astype(int)
