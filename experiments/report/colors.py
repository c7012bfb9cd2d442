"""Images as people see them."""

from collections.abc import Sequence

import numpy as np

from attribution.images import Images


def colors(images: Images, rows: Sequence[int]) -> np.ndarray:
    """The images in ``rows`` as float32 ``[B, H, W, 1 or 3]`` in [0, 1]; values beyond black and white are clipped to them.

    Of images with 2 channels, the first is shown; of those with more than 3, the first three.
    """
    values = images.visible(rows).numpy()
    return np.clip(values[:, : 3 if values.shape[1] >= 3 else 1].transpose(0, 2, 3, 1), 0, 1)
