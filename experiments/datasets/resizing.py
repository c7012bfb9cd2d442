"""Images of a data set in another size."""

import numpy as np
from PIL import Image

from attribution.images import Images
from experiments.datasets.image_reader import Framing, Resize


def resized(images: Images, shape: tuple[int, int, int], resize: Resize) -> Images:
    """Return the images with the height and width of ``shape`` (C, H, W). ``resize`` is a method of :class:`Framing`.

    With "none" the images stay as they are; whether they fit is checked where the source is loaded.

    Raises:
        DataError: ``resize`` is unknown.
    """
    framing = Framing((images.shape[0], *shape[1:]), resize)
    if resize == "none" or images.shape[1:] == shape[1:]:
        return images
    channels_last = images.pixels.transpose(0, 2, 3, 1)
    channels_last = channels_last[..., 0] if images.shape[0] == 1 else channels_last
    pixels = np.stack([framing.apply(Image.fromarray(np.ascontiguousarray(image))) for image in channels_last])
    return Images(pixels, images.index, images.label, images.levels)
