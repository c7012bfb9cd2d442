"""Embeddings of DINO (Caron et al. 2021) and DINOv2 (Oquab et al. 2023) with transformers (``pip install -e '.[clip]'``)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attribution.checks import whole
from attribution.estimators.encoder import Encoder, pretrained

SHARED = ("attribution.estimators.encoder",)


@dataclass(frozen=True)
class DINO(Encoder):
    """The class token after the last normalization of a vision transformer that was trained without labels.

    ``weights``: a folder as transformers saves it, or the name of a model in the local cache of downloads. ``size``: the side in
    pixels to which the whole image is resized (bicubic); the published preprocessing crops the center in addition.
    """

    NAME = "DINO"
    VERSION = 1

    size: int = 224

    def __post_init__(self):
        super().__post_init__()
        whole(self, "size", least=1)

    def load(self) -> nn.Module:
        return pretrained(self, "AutoModel")

    def input_size(self, model: nn.Module, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def encode(self, model: Any, x: Tensor) -> Tensor:
        return model(pixel_values=x).last_hidden_state[:, 0]
