"""Networks with a table of classes."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def unet_with_classes(classes: int, **settings: Any) -> Callable[[], nn.Module]:
    """The constructor of a UNet2DModel with ``settings`` and a table of ``classes`` + 1 rows, the last of which is for no class.

    The setting of diffusers is the number of rows (``num_class_embeds``), and a config file cannot add 1.
    """
    from diffusers import UNet2DModel

    return functools.partial(UNet2DModel, num_class_embeds=classes + 1, **settings)
