"""Embeddings by pretrained encoders of images whose weights are in local files. Nothing is downloaded."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.checks import FieldError, whole
from attribution.estimators.embedding import Embedding
from attribution.execution import ranges
from attribution.images import Images
from attribution.models.trained import one_line
from attribution.nodes import class_identity, describe, digest

SHARED = ("attribution.estimators.embedding",)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet."""


@dataclass(frozen=True)
class Encoder(Embedding):
    """The vectors of an encoder of RGB images, which are resized to what it takes and normalized; gray images get three channels.

    ``weights``: a file or folder, or the name of a model in a local cache. ``batch_size`` is not part of the identity.
    """

    MEAN: ClassVar[Sequence[float]] = IMAGENET_MEAN
    STD: ClassVar[Sequence[float]] = IMAGENET_STD
    MODE: ClassVar[str] = "bicubic"
    """How images are interpolated."""

    weights: str
    batch_size: int = 64

    def __post_init__(self):
        whole(self, "batch_size", least=1)

    @abstractmethod
    def load(self) -> nn.Module:
        """Read the model. Raises FieldError: there is none."""

    @abstractmethod
    def input_size(self, model: nn.Module, height: int, width: int) -> tuple[int, int]:
        """The height and width to which an image is resized."""

    @abstractmethod
    def encode(self, model: nn.Module, x: Tensor) -> Tensor:
        """The embeddings ``[B, d]`` of normalized images ``[B, 3, H, W]``."""

    @cached_property
    def content(self) -> Any:
        """The digests of the configuration and the weights in the folder; empty if there are none."""
        files = sorted(p for p in Path(self.weights).glob("*") if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
        return {path.name: file_digest(path) for path in files}

    def description(self) -> dict[str, Any]:
        """The content of the files, or the name if there are none, and the settings."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch_size"}
        return {**class_identity(type(self)), **describe({**settings, "weights": self.content or self.weights})}

    def check(self) -> None:
        """Raises ValueError or FieldError: there is no model, or it does not take images."""
        _ = self.model

    @cached_property
    def model(self) -> nn.Module:
        """The model, which has encoded an image.

        Raises:
            ValueError: a library is not installed.
            FieldError: there is no model, or it does not take images.
        """
        model = self.load().float().eval()
        try:
            with torch.inference_mode():
                self.encode(model, torch.zeros(1, 3, *self.input_size(model, 32, 32)))
        except Exception as error:  # the model may be anyone's
            raise FieldError(self, "weights", f"this model encodes no images ({one_line(error)}): give another one") from error
        return model

    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        model = self.model.to(device)
        size = self.input_size(model, *images.visible_shape[1:])
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.MEAN, self.STD))
        embeddings = []
        with torch.inference_mode():
            for start, stop in ranges(0, len(images), self.batch_size):
                x = images.visible(slice(start, stop)).to(device)
                x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
                x = F.interpolate(x, size, mode=self.MODE, antialias=True).clamp(0, 1)
                embeddings.append(self.encode(model, (x - mean) / std).float().cpu().numpy())
        return np.concatenate(embeddings)


def file_digest(path: Path) -> str:
    """The SHA-256 of the content of a file."""
    return digest(np.frombuffer(path.read_bytes(), np.uint8))


def pretrained(owner: Encoder, kind: str) -> Any:
    """The model of transformers' class ``kind`` with the weights of ``owner``.

    Raises:
        ValueError: transformers is not installed.
        FieldError: there is no such model.
    """
    name = type(owner).__name__
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{name} needs transformers: pip install -e '.[clip]'") from error
    try:
        # An AutoModel looks for adapters, on the network too unless they are told not to.
        adapters = {"adapter_kwargs": {"local_files_only": True}} if kind == "AutoModel" else {}
        return getattr(transformers, kind).from_pretrained(owner.weights, local_files_only=True, **adapters)
    except (OSError, ValueError) as error:
        remedy = f"give a folder with config.json and model.safetensors, or fetch it once (hf download {owner.weights})"
        raise FieldError(owner, "weights", f"no {name} model found; {remedy}") from error
