"""How and on which devices a model is trained."""

from dataclasses import dataclass

import numpy as np
import torch

from attribution.checks import FieldError, number, whole
from attribution.double_precision import has_float64
from attribution.nodes import added
from attribution.precision import MIXABLE, TF32

LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
PRECISIONS = (*MIXABLE, "64-true", "16-mixed", "bf16-true", "16-true", "transformer-engine")
COMPILERS = ("inductor", "cudagraphs", "aot_eager", "eager")
"""Backends of ``torch.compile``; the last two compile nothing and serve to find errors."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; all of them are part of the model's identity.

    ``lr_schedule``: one of ``LR_SCHEDULES``, as defined in diffusers; all except ``constant`` begin with a warm-up of ``warmup``, a
    fraction of ``steps``. ``clip``: the largest gradient norm. ``ema``: the decay of the parameter average. ``ema_warmup``: raise
    the decay from 0 to ``ema``, so that the average forgets the first steps also in a short training run; without it the decay is
    constant, as in papers that train for long. ``precision``: one of ``PRECISIONS``: Lightning's, and ``tf32``, float32 with
    products in TF32 on a CUDA GPU (and in float32 elsewhere). ``channels_last``: the memory format of the weights of convolutions,
    meant for GPUs in reduced precision. ``compiler``: the backend of ``torch.compile``, one of ``COMPILERS``; None does not
    compile. The last two change rounding only, but training amplifies rounding.

    Raises:
        ValueError: a setting outside its range.
    """

    NAME = "Recipe"
    VERSION = 2

    steps: int
    batch_size: int
    lr_schedule: str = "constant"
    warmup: float = 0.0
    clip: float | None = None
    ema: float | None = None
    ema_warmup: bool = True
    precision: str = "32-true"
    channels_last: bool = added(default=False)
    compiler: str | None = added(default=None)

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            whole(self, name, least=1)
        number(self, "warmup", least=0, most=1)
        if self.clip is not None and not self.clip > 0:
            raise FieldError(self, "clip", "must be above 0: it is the largest gradient norm; None does not clip")
        if self.ema is not None and not 0 < self.ema < 1:
            raise FieldError(self, "ema", "must be between 0 and 1: it is the decay of the average; None takes no average")
        if self.lr_schedule not in LR_SCHEDULES:
            raise FieldError(self, "lr_schedule", f"must be one of {', '.join(LR_SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise FieldError(self, "precision", f"must be one of {', '.join(PRECISIONS)}")
        if self.compiler not in (None, *COMPILERS):
            raise FieldError(self, "compiler", f"must be null or one of {', '.join(COMPILERS)}")

    @property
    def tf32(self) -> bool:
        """Whether products of float32 tensors may be computed in TF32."""
        return self.precision == TF32

    def check_device(self, device: torch.device) -> None:
        """Raises FieldError: ``precision`` is 64-true, and the device has no float64."""
        if self.precision == "64-true" and not has_float64(device):
            raise FieldError(self, "precision", f"the device {device} has no float64: choose 32-true, or the CPU")

    def ema_decay(self, step: int) -> float:
        """The decay d_t of the average at ``step`` t (0-based): ``average = d_t · average + (1 - d_t) · parameters``.

        ``d_0 = 0``: the average begins as the parameters after the first step. Then ``d_t = min(ema, (1 + t) / (10 + t))``, the
        warm-up of TensorFlow's ``ExponentialMovingAverage`` and diffusers' ``EMAModel``, or ``d_t = ema`` without warm-up.
        """
        assert self.ema is not None
        if step == 0:
            return 0.0
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warmup else self.ema

    @property
    def average_weights(self) -> np.ndarray:
        """The weights of the parameters after each step in those of the trained model, ``[steps]``; 0, .., 0, 1 without average."""
        if self.ema is None:
            return np.append(np.zeros(self.steps - 1), 1.0)
        decays = np.array([self.ema_decay(step) for step in range(self.steps)])
        later = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)  # the product of the decays of all later steps
        return (1 - decays) * later

    @property
    def ema_first_weight(self) -> float:
        """The weight of the parameters after the first step in the final average; 0 without an average."""
        return 0.0 if self.ema is None else float(self.average_weights[0])


@dataclass(frozen=True)
class Hardware:
    """The devices of a training run, and the steps between two saves of progress (``interval``); not part of the model's identity.

    Several tasks of Slurm share a store and train different models. ``strategy="auto"`` means one process, or ``ddp_spawn`` for
    several devices of this machine. ``ddp`` and ``fsdp`` need one process per device, each with a rank
    (``attribution.training.ranks``).
    """

    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    interval: int = 200

    def __post_init__(self):
        whole(self, "interval", least=1)
        if isinstance(self.devices, int) and self.devices != -1 and self.devices < 1:
            raise FieldError(self, "devices", "must be a number of at least 1, -1 (all), auto, or a list such as '0,1'")
