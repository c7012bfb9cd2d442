"""Images as people see them."""

import numpy as np
import pytest

from attribution.images import Images
from experiments.report.colors import colors


def images(channels, display=1.0, scale=1.0):
    pixels = scale * np.random.default_rng(channels).uniform(-1.5, 1.5, (3, channels, 4, 6)).astype(np.float32)
    return Images(pixels, np.arange(3), np.full(3, -1), display=display)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (16, 3)])
def test_channels(channels, shown):
    """Claim: of 2 channels the first is shown, of more than 3 the first three, none of them as transparency; ends are clipped."""
    made = images(channels)
    expected = np.clip((made.pixels[[2, 0], :shown].transpose(0, 2, 3, 1) + 1) / 2, 0, 1)
    np.testing.assert_allclose(colors(made, [2, 0]), expected, atol=1e-6)


def test_latents_have_a_scale_of_their_own():
    """Claim: latents at their scale look as images in [-1, 1] do, and the scale goes with the images."""
    np.testing.assert_allclose(colors(images(4, 8.0, 8.0).take([1, 2]), [1]), colors(images(4), [2]), atol=1e-6)


def test_the_scale_is_stored_and_is_no_part_of_the_content(tmp_path):
    made = images(4, 8.0)
    made.save(tmp_path)
    assert Images.load(tmp_path).display == 8
    assert made.digest() == images(4).digest()
    assert made.named("train").display == 8
