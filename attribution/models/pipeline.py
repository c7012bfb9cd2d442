"""Denoisers trained elsewhere: the network and the noise schedule of a pipeline of diffusers."""

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from attribution.diffusion import DDPM, NoiseSchedule, Process, RectifiedFlow
from attribution.measurements import Loss, Measure
from attribution.models.given import Weights
from attribution.models.trained import one_line
from attribution.nodes import class_identity, describe, digest

SHARED = ("attribution.models.given",)

_PREDICTIONS: dict[str, Literal["epsilon", "v", "sample"]] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""``prediction`` of a DDPM by the name that diffusers has for it."""
_NETWORKS = (
    "UNet2DModel", "DiTTransformer2DModel", "UNet2DConditionModel", "PixArtTransformer2DModel", "SD3Transformer2DModel",
)  # fmt: skip
_CONTENT = (".safetensors", ".bin", ".json")
_TEXT = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
_UNUSED = ("vae", *_TEXT, "image_encoder", "safety_checker", "feature_extractor")
"""Parts of pipelines that are not read: the images of a run are latents already, and its texts embeddings."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers at ``path``: a folder written by ``save_pretrained``, or a name in the Hugging Face cache.

    It is a DDPMPipeline, DDIMPipeline, DiTPipeline, StableDiffusionPipeline, StableDiffusion3Pipeline, PixArtAlphaPipeline or
    PixArtSigmaPipeline. Nothing is downloaded. The network may take a class or embeddings of a text. Those of all but the first two
    pipelines denoise latents, which the images have to be.
    """

    NAME = "Pipeline"
    VERSION = 1

    path: str

    def description(self) -> dict[str, Any]:
        """The content of a folder, or the name."""
        return {**class_identity(type(self)), "path": self._content or self.path}

    @property
    def network(self) -> nn.Module:
        """The network in eval mode, called with x_t, t - 1 and maybe a class, t in 1..T. Raises ValueError, as ``process`` does."""
        return self._parts[0]

    @property
    def process(self) -> Process:
        """The forward process of the pipeline.

        Raises:
            ValueError: no pipeline at ``path``, or one that is neither a DDPM nor a rectified flow of images or of latents.
        """
        return self._parts[1]

    @property
    def objective(self) -> Measure:
        """The training loss of the pipeline's process."""
        return Loss(self.process)

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError: the network takes images of a shape other than ``shape`` (C, H, W)."""
        config: Any = self.network.config
        size = config.sample_size or shape[1:]
        height, width = (size, size) if isinstance(size, int) else size
        if config.in_channels != shape[0] or (height, width) != shape[1:]:
            raise ValueError(
                f"the pipeline {self.path} takes images of {config.in_channels}×{height}×{width}, but those of the data set are "
                f"{'×'.join(map(str, shape))} (channels, height, width): choose the data that it was trained on"
            )

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _location(self) -> str:
        """The folder if it exists, otherwise the name in the cache."""
        return str(self._folder) if self._folder.is_dir() else self.path

    @property
    def _index(self) -> dict[str, Any]:
        """The parts of the pipeline by name."""
        path = self._folder / "model_index.json"
        if not self._folder.is_dir():
            path = Path(hf_hub_download(self.path, path.name, local_files_only=True))
        return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def _content(self) -> dict[str, str]:
        root = self._folder
        files = sorted(path for path in root.rglob("*") if path.suffix in _CONTENT)
        return {path.relative_to(root).as_posix(): digest(np.frombuffer(path.read_bytes(), np.uint8)) for path in files}

    @cached_property
    def _parts(self) -> tuple[nn.Module, Process]:
        import diffusers
        from diffusers.utils import logging

        logging.disable_progress_bar()
        try:
            unused = {name: None for name in _UNUSED if name in self._index}
            components = diffusers.DiffusionPipeline.from_pretrained(
                self._location, local_files_only=True, low_cpu_mem_usage=False, **unused
            ).components
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            if (self._folder / "model_index.json").is_file():
                raise ValueError(f"the pipeline {self.path} cannot be read ({one_line(error)}): repair its folder") from error
            raise ValueError(
                f"the pipeline {self.path} does not exist: give a folder with model_index.json, as save_pretrained writes it, "
                f"or download it first (hf download {self.path})"
            ) from error
        network = components.get("unet", components.get("transformer"))
        networks = [name for name, part in components.items() if isinstance(part, nn.Module)]
        if others := [name for name in networks if components[name] is not network]:
            raise ValueError(
                f"the pipeline {self.path} has further networks ({', '.join(others)}): choose one of images, which has none"
            )
        scheduler = components.get("scheduler")
        config: Any = getattr(network, "config", None)
        known = any(isinstance(network, getattr(diffusers, name)) for name in _NETWORKS)
        predicts = known and config.out_channels in (None, config.in_channels, 2 * config.in_channels)
        noises = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler) or hasattr(scheduler, "alphas_cumprod")
        if network is None or not predicts or not noises:
            raise ValueError(
                f"the pipeline {self.path} has no {', '.join(_NETWORKS[:-1])} or {_NETWORKS[-1]} that denoises images: choose a "
                "DDPM, DDIM, DiT, PixArt, Stable Diffusion or Stable Diffusion 3 pipeline"
            )
        for further in ("addition_embed_type", "use_additional_conditions"):
            if value := config.get(further) or vars(network).get(further):
                raise ValueError(
                    f"the network of the pipeline {self.path} takes further inputs ({further}={value}), which a run does not have: "
                    "choose a pipeline without them"
                )
        return network.eval(), _process(self.path, scheduler)


@dataclass(frozen=True)
class PipelineNetwork:
    """The constructor of a pipeline's network, with new weights. Its identity is the architecture."""

    NAME = "PipelineNetwork"
    VERSION = 1

    path: str

    def description(self) -> dict[str, Any]:
        """The class of the network and the arguments of its constructor."""
        return {**class_identity(type(self)), "network": describe(self._class), "config": self._config}

    def __call__(self) -> nn.Module:
        return self._class.from_config(self._config)

    @property
    def _class(self) -> Any:
        return type(pipeline_at(self.path).network)

    @property
    def _config(self) -> dict[str, Any]:
        """Without diffusers' own entries, such as its version and the path."""
        config: Any = pipeline_at(self.path).network.config
        return {name: value for name, value in config.items() if not name.startswith("_")}


@dataclass(frozen=True)
class PipelineWeights(Weights):
    """The weights of the network of the pipeline at ``path``."""

    path: str

    def tensors(self) -> dict[str, Tensor]:
        return pipeline_at(self.path).network.state_dict()


@lru_cache(maxsize=2)
def pipeline_at(path: str) -> Pipeline:
    """The pipeline at ``path``, which is read once."""
    return Pipeline(path)


def _process(path: str, scheduler: Any) -> Process:
    if not hasattr(scheduler, "alphas_cumprod"):
        return _flow(path, scheduler.config)
    name = scheduler.config.get("prediction_type", "epsilon")
    if name not in _PREDICTIONS:
        raise ValueError(f"the pipeline {path} predicts {name}: choose one that predicts {', '.join(_PREDICTIONS)}")
    return DDPM(_schedule(scheduler), _PREDICTIONS[name])


def _flow(path: str, config: Any) -> RectifiedFlow:
    """The flow that Stable Diffusion 3 was trained with (Esser et al. 2024): s of u, whose logit is normal with mean 0.

    The scheduler's shift α for the resolution, ``s = α u/(1 + (α - 1) u)`` (eq. 23), adds log α to the logit.
    """
    if config.use_dynamic_shifting:
        raise ValueError(
            f"the scheduler of the pipeline {path} has another shift for each resolution (use_dynamic_shifting), so that the noise "
            "levels of its training are not known: choose a pipeline with a constant shift"
        )
    if config.num_train_timesteps != 1000:
        raise ValueError(
            f"the pipeline {path} has {config.num_train_timesteps} timesteps, so that its network does not get 1000 s as time: "
            "choose a pipeline with 1000"
        )
    return RectifiedFlow(time="logit_normal", logit_mean=math.log(config.shift))


def _schedule(scheduler: Any) -> NoiseSchedule:
    """The schedule with the ᾱ_t of ``scheduler``. The values are compared; the schedule's name in the configuration is not used."""
    config, alpha_bars = scheduler.config, scheduler.alphas_cumprod.double().numpy()
    T = len(alpha_bars)
    for kind in ("linear", "cosine", "scaled_linear", "sigmoid"):
        schedule = NoiseSchedule(T, kind, config.beta_start, config.beta_end)
        if np.allclose(schedule.alpha_bars[1:], alpha_bars, rtol=1e-3, atol=1e-7):
            return schedule
    return NoiseSchedule(T, trained_betas=scheduler.betas.double().tolist())
