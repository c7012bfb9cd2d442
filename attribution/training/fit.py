"""One training: its recipe, its hardware, and the function that runs it with Lightning."""

import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

from attribution.images import Images
from attribution.measurements import Measure
from attribution.training.checkpoints import CheckpointRule
from attribution.training.module import DiffusionModule
from attribution.training.order import Batches
from attribution.training.recorder import Recorder

SHARED = ("attribution.training.module", "attribution.training.order", "attribution.training.recorder")

LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training; all of them are part of the model's identity.

    ``lr_schedule``: one of ``LR_SCHEDULES``, as defined in diffusers; all except ``constant`` begin with a warm-up of ``warmup``, a
    fraction of ``steps``. ``clip``: the largest gradient norm. ``ema``: the decay of the parameter average. ``precision``: as in
    Lightning (32-true, 64-true, bf16-mixed, ...).

    Raises:
        ValueError: a setting outside its range.
    """

    NAME = "Recipe"
    VERSION = 1

    steps: int
    batch_size: int
    lr_schedule: str = "constant"
    warmup: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: str = "32-true"

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)}: must be a whole number, at least 1")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"trainer.warmup={self.warmup}: a fraction of trainer.steps, between 0 and 1")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"trainer.clip={self.clip}: the largest gradient norm, above 0, or null")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"trainer.ema={self.ema}: a decay between 0 and 1, or null")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"trainer.lr_schedule={self.lr_schedule}: choose one of {', '.join(LR_SCHEDULES)}")


@dataclass(frozen=True)
class Hardware:
    """The devices of a training, and the steps between two savings of progress (``interval``); not part of the model's identity.

    ``strategy="auto"`` means one process, or ``ddp_spawn`` for several devices. Strategies that start the program again on every
    rank are errors, because these ranks would wait for the store's lock that rank 0 holds.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    interval: int = 200

    def __post_init__(self):
        if self.interval < 1:
            raise ValueError(f"hardware.interval={self.interval}: steps between two savings of progress, at least 1")


def fit(
    folder: Path,
    images: Images,
    model: Callable[[], nn.Module],
    measure: Measure,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    recipe: Recipe,
    checkpoints: CheckpointRule,
    seed: int,
    flips: bool = False,
    hardware: Hardware | None = None,
    callbacks: Sequence[L.Callback] = (),
    logger: Any = False,
) -> None:
    """Train a model and write its record (``attribution.training.record``) to ``folder``, resuming an earlier call that was killed.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        ValueError: hardware that Lightning does not support here, or that cannot share the batches.
    """
    if (folder / "record.json").exists():  # an earlier call was killed after it wrote the record
        shutil.rmtree(folder / "progress", ignore_errors=True)
        return
    hardware = hardware or Hardware()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DiffusionModule(
            model(), measure, optimizer, seed, flips, recipe.lr_schedule, recipe.warmup, recipe.clip, recipe.ema
        ).train()
        recorder = Recorder(folder, checkpoints, hardware.interval, len(images), recipe.batch_size, seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
            trainer = _trainer(
                accelerator=hardware.accelerator,
                devices=hardware.devices,
                num_nodes=hardware.num_nodes,
                strategy="ddp_spawn" if hardware.strategy == "auto" and hardware.devices != 1 else hardware.strategy,
                precision=recipe.precision,  # pyright: ignore[reportArgumentType]
                max_steps=recipe.steps,
                callbacks=[recorder, *callbacks],
                logger=logger,
                log_every_n_steps=max(1, min(50, recipe.steps // 20)),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
            _check_processes(trainer, len(images), recipe.batch_size)
            # Lightning converts the module after it restores a checkpoint, which would round float64 parameters to float32.
            trainer.precision_plugin.convert_module(module)
            trainer.fit(module, Batches(images, seed, recipe.batch_size), ckpt_path=recorder.resume_from, weights_only=True)
    if trainer.is_global_zero:
        if not (folder / "record.json").exists():
            raise RuntimeError(f"training ended without a record in {folder}; its progress is kept there, run it again to resume")
        shutil.rmtree(recorder.progress)


def _trainer(**settings: Any) -> L.Trainer:
    try:
        return L.Trainer(**settings)
    except MisconfigurationException as error:
        raise ValueError(f"hardware: {error}") from error


def _check_processes(trainer: L.Trainer, n: int, batch_size: int) -> None:
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise ValueError(
            "hardware.strategy starts this program once per device, and all but one would wait forever: choose ddp_spawn"
        )
    world = trainer.world_size
    last = n % batch_size or batch_size
    if batch_size % world or last % world:
        raise ValueError(
            f"{world} processes cannot share batches of {batch_size} and {last} (the last of an epoch) equally: change "
            "trainer.batch_size, data.n_train or hardware.devices"
        )
