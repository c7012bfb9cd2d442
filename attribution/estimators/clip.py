"""CLIP image embeddings (Radford et al. 2021) with Hugging Face transformers, an optional extra (``pip install -e '.[clip]'``)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attribution.estimators.encoder import Encoder, pretrained

SHARED = ("attribution.estimators.encoder",)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the channels of CLIP's training images."""


@dataclass(frozen=True)
class CLIP(Encoder):
    """The projected image embeddings of a CLIP model.

    ``weights``: a folder with a CLIP model as transformers saves it, or the name of a model in the local cache of downloads. Images
    are resized to the encoder's size (bicubic).
    """

    NAME = "CLIP"
    VERSION = 1
    MEAN = MEAN
    STD = STD

    def load(self) -> nn.Module:
        return pretrained(self, "CLIPModel")

    def input_size(self, model: Any, height: int, width: int) -> tuple[int, int]:
        size = model.config.vision_config.image_size
        return size, size

    def encode(self, model: Any, x: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
