"""One training run by Lightning."""

import logging
import signal
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from attribution.images import Images
from attribution.measurements import Measure
from attribution.nodes.saves import Saves
from attribution.precision import tf32_products
from attribution.training.batches import Batches
from attribution.training.checkpoints import CheckpointRule
from attribution.training.module import DiffusionModule
from attribution.training.rank_environment import process_group
from attribution.training.ranks import Rank
from attribution.training.recipe import Hardware, Recipe
from attribution.training.recorder import Recorder
from attribution.training.trainer import check_processes, processes_to_start, quiet, trainer_of

SHARED = (
    "attribution.training.batches",
    "attribution.training.module",
    "attribution.training.order",
    "attribution.training.rank_environment",
    "attribution.training.ranks",
    "attribution.training.recorder",
    "attribution.training.trainer",
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
    ranks: AbstractContextManager[Rank | None] = nullcontext(),  # noqa: B008 (has no state)
) -> None:
    """Train a model and write its record (``attribution.training.record``) to ``folder``, resuming an earlier call that was killed.

    ``owner``, the fingerprint of the model, is written into every save: files of another model are not resumed from. If a file is
    damaged, training resumes from an earlier save or starts again, with a warning in the log.

    Args:
        ranks: a context that gives this process its rank among those that train the model. The other processes call
            ``fit`` with the same arguments and their own ranks. Without a rank, this process trains alone or, with
            ``ddp_spawn``, starts the others.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
        ValueError: hardware that Lightning does not support here, that cannot share the batches equally, or that needs ranks.
    """
    saves = Saves(folder, owner)
    found = saves.intact(folder / "record.json")
    if found.finished:  # an earlier call was killed after it wrote the record
        saves.discard()
        return
    if found.problem:
        log.warning(found.warning(found.last))
    hardware = hardware or Hardware()
    with ranks as rank, process_group(), torch.random.fork_rng():
        if rank is None and processes_to_start(recipe, hardware) > 1:
            raise ValueError(f"strategy={hardware.strategy} needs a process per device: give each its rank, or choose ddp_spawn")
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
            recipe.tf32,
            recipe.channels_last,
            recipe.compiler,
        ).train()
        recorder = Recorder(saves, found.last, checkpoints, hardware.interval, len(images), recipe, seed)
        with quiet(), tf32_products(recipe.tf32):
            trainer = trainer_of(
                recipe,
                hardware,
                rank,
                default_root_dir=folder,
                callbacks=[recorder, *callbacks],
                logger=logger,
                log_every_n_steps=max(1, min(50, recipe.steps // 20)),
            )
            check_processes(trainer, len(images), recipe.batch_size)
            # Lightning converts the module after it restores a checkpoint, which would round float64 parameters to float32.
            trainer.precision_plugin.convert_module(module)
            _run(trainer, module, Batches(images, seed, recipe.batch_size), recorder.resume_from)
    if trainer.is_global_zero and not saves.finished:
        raise RuntimeError(f"training ended without a record in {folder}; its progress is kept there, run it again to resume")


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
