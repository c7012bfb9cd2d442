"""One training run by Lightning."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from attribution.checks import FieldError
from attribution.double_precision import has_float64
from attribution.images import Images
from attribution.measurements import Measure
from attribution.nodes.saves import Saves
from attribution.training.batches import Batches
from attribution.training.checkpoints import CheckpointRule
from attribution.training.module import DiffusionModule
from attribution.training.recipe import Hardware, Recipe
from attribution.training.recorder import Recorder

SHARED = (
    "attribution.training.batches",
    "attribution.training.module",
    "attribution.training.order",
    "attribution.training.recorder",
)

log = logging.getLogger(__name__)


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
    owner: str = "",
) -> None:
    """Train a model and write its record (``attribution.training.record``) to ``folder``, resuming an earlier call that was killed.

    ``owner``, the fingerprint of the model, is written into every save: files of another model are not resumed from. If a file is
    damaged, training resumes from an earlier save or starts again, with a warning in the log.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        ValueError: hardware that Lightning does not support here, or that cannot share the batches.
    """
    environment = _one_process()
    saves = Saves(folder, owner)
    found = saves.intact(folder / "record.json")
    if found.finished:  # an earlier call was killed after it wrote the record
        saves.discard()
        return
    if found.problem:
        log.warning(found.warning(found.last))
    hardware = hardware or Hardware()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DiffusionModule(
            model(),
            measure,
            optimizer,
            seed,
            flips,
            recipe.lr_schedule,
            recipe.warmup,
            recipe.clip,
            None if recipe.ema is None else recipe.ema_decay,
        ).train()
        recorder = Recorder(saves, found.last, checkpoints, hardware.interval, len(images), recipe.batch_size, seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
            warnings.filterwarnings("ignore", message="The `srun` command is available")
            trainer = _trainer(
                recipe,
                hardware,
                default_root_dir=folder,
                callbacks=[recorder, *callbacks],
                plugins=[_DirectCheckpoints(), environment],
                logger=logger,
                log_every_n_steps=max(1, min(50, recipe.steps // 20)),
            )
            _check_processes(trainer, len(images), recipe.batch_size)
            # Lightning converts the module after it restores a checkpoint, which would round float64 parameters to float32.
            trainer.precision_plugin.convert_module(module)
            _run(trainer, module, Batches(images, seed, recipe.batch_size), recorder.resume_from)
    if trainer.is_global_zero and not saves.finished:
        raise RuntimeError(f"training ended without a record in {folder}; its progress is kept there, run it again to resume")


class _DirectCheckpoints(TorchCheckpointIO):
    """Write checkpoints to their paths. Lightning would copy them in memory first, and to the folder of temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


def _one_process() -> LightningEnvironment:
    """Return an environment in which this process trains by itself, also as a task of Slurm or MPI beside others.

    Lightning would take each task for a rank of one training run, and requeue the job of Slurm on SIGUSR1.
    """
    environment = LightningEnvironment()
    environment.set_global_rank(0)  # Lightning has read it from SLURM_PROCID, and only rank 0 saves and logs
    return environment


def _run(trainer: L.Trainer, module: DiffusionModule, batches: Batches, resume_from: Path | None) -> None:
    """Train, and end as the signal demands if one stops the training: Lightning exits with 0 after SIGTERM, with 1 after SIGINT."""
    try:
        trainer.fit(module, batches, ckpt_path=resume_from, weights_only=True)
    except BaseException as error:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(signal.SIGKILL)  # the processes of ddp_spawn would train on
        if isinstance(error, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _trainer(recipe: Recipe, hardware: Hardware, **settings: Any) -> L.Trainer:
    """Return Lightning's trainer.

    Raises:
        FieldError: Lightning refuses a field of ``hardware``, or the precision of ``recipe``; or the device lacks this precision.
    """
    try:
        trainer = L.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy="ddp_spawn" if hardware.strategy == "auto" and hardware.devices != 1 else hardware.strategy,
            precision=recipe.precision,  # pyright: ignore[reportArgumentType]
            max_steps=recipe.steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **settings,
        )
    except Exception as error:  # Lightning has no class of errors for its arguments
        message = " ".join(str(error).split())
        field = next((name for name in ("accelerator", "strategy", "devices") if name in message), "devices")
        owner, field = (recipe, "precision") if "precision" in message.lower() else (hardware, field)
        raise FieldError(owner, field, f"Lightning refuses it ({message}): choose another value") from error
    if recipe.precision == "64-true" and not has_float64(trainer.strategy.root_device):
        raise FieldError(
            recipe, "precision", f"the device {trainer.strategy.root_device} has no float64: choose 32-true, or the CPU"
        )
    return trainer


def _check_processes(trainer: L.Trainer, n: int, batch_size: int) -> None:
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise ValueError("the strategy starts this program once per device, and all but one would wait forever: choose ddp_spawn")
    world = trainer.world_size
    last = n % batch_size or batch_size
    if batch_size % world or last % world:
        raise ValueError(
            f"{world} processes cannot share batches of {batch_size} and {last} (the last of an epoch) equally: change "
            "the batch size, the number of training images or of devices"
        )


def check_hardware(recipe: Recipe, hardware: Hardware, n: int) -> None:
    """Check, without training, that Lightning supports ``hardware`` here, and that its processes can share ``n`` training images.

    Raises:
        FieldError: Lightning refuses a field of ``hardware``, or the precision of ``recipe``.
        ValueError: the processes cannot share the batches.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        _check_processes(_trainer(recipe, hardware, plugins=[_one_process()], logger=False), n, recipe.batch_size)
