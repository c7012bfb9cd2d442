"""CLIP image embeddings (Radford et al. 2021) with Hugging Face transformers, an optional extra (``pip install -e '.[clip]'``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attribution.checks import FieldError
from attribution.estimators.embedding import Embedding
from attribution.execution import ranges
from attribution.images import Images
from attribution.nodes import class_identity, describe, digest

SHARED = ("attribution.estimators.embedding",)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the channels of CLIP's training images."""


@dataclass(frozen=True)
class CLIP(Embedding):
    """The projected image embeddings of a CLIP model.

    ``weights``: a folder with a CLIP model as transformers saves it, or the name of a model in the local cache of downloads. Images
    are resized to the encoder's size (bicubic), and gray images get three channels. Nothing is downloaded.
    """

    NAME = "CLIP"
    VERSION = 1

    weights: str
    batch_size: int = 64

    def description(self) -> dict[str, Any]:
        """The identity: the content of the folder, or the name. ``batch_size`` is not part of it."""
        path = Path(self.weights)
        files = sorted(p for p in path.glob("*") if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
        content = {p.name: digest(np.frombuffer(p.read_bytes(), np.uint8)) for p in files}
        return {**class_identity(type(self)), "weights": describe(content) if content else self.weights}

    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        """Return the output of the projection head, ``[n, d]`` float32.

        Raises:
            ValueError: transformers is not installed, or the weights cannot be found.
        """
        model = self._model().to(device).eval()
        size = model.config.vision_config.image_size
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
        embeddings = []
        with torch.inference_mode():
            for start, stop in ranges(0, len(images), self.batch_size):
                x = images.visible(slice(start, stop)).to(device)
                x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
                x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
                pooled = model.vision_model(pixel_values=(x - mean) / std).pooler_output
                embeddings.append(model.visual_projection(pooled).float().cpu().numpy())
        return np.concatenate(embeddings)

    def _model(self) -> Any:
        try:
            from transformers import CLIPModel
        except ImportError as error:
            raise ValueError("CLIP needs transformers: pip install -e '.[clip]'") from error
        try:
            return CLIPModel.from_pretrained(self.weights, local_files_only=True)
        except (OSError, ValueError) as error:
            remedy = f"give a folder with config.json and model.safetensors, or fetch it once (hf download {self.weights})"
            raise FieldError(self, "weights", f"no CLIP model found; {remedy}") from error
