"""Copy descriptors of SSCD (Pizzi et al. 2022, "A Self-Supervised Descriptor for Image Copy Detection"), by TorchScript files."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from attribution.checks import FieldError, whole
from attribution.estimators.encoder import Encoder, file_digest

SHARED = ("attribution.estimators.encoder",)


@dataclass(frozen=True)
class SSCD(Encoder):
    """The descriptors of a published model.

    ``weights``: the TorchScript file, such as ``sscd_disc_mixup.torchscript.pt``. ``size``: the shorter side in pixels to which
    images are resized (bilinear), 288 as published.
    """

    NAME = "SSCD"
    VERSION = 1
    MODE = "bilinear"

    size: int = 288

    def __post_init__(self):
        super().__post_init__()
        whole(self, "size", least=1)

    @cached_property
    def content(self) -> str:
        """The digest of the file; empty if there is none."""
        path = Path(self.weights)
        return file_digest(path) if path.is_file() else ""

    def load(self) -> nn.Module:
        if not Path(self.weights).is_file():
            remedy = "give the TorchScript file of SSCD's page (github.com/facebookresearch/sscd-copy-detection)"
            raise FieldError(self, "weights", f"there is no such file; {remedy}")
        try:
            with warnings.catch_warnings():  # SSCD is published in no newer format
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(self.weights, map_location="cpu")
        except (RuntimeError, OSError) as error:
            raise FieldError(self, "weights", "is no TorchScript file: choose SSCD's *.torchscript.pt") from error

    def input_size(self, model: nn.Module, height: int, width: int) -> tuple[int, int]:
        short = min(height, width)
        return round(self.size * height / short), round(self.size * width / short)

    def encode(self, model: nn.Module, x: Tensor) -> Tensor:
        return model(x)
