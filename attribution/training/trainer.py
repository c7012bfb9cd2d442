"""Lightning's trainer for one training run."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from attribution.checks import FieldError
from attribution.precision import FLOAT32
from attribution.training.rank_environment import Ranks
from attribution.training.ranks import Rank
from attribution.training.recipe import Hardware, Recipe

_FOLLOWED = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy)
"""Lightning's strategies that can be recorded: every process takes every step, and process 0 can write all parameters."""


class _File(io.BufferedWriter):
    """A file that ignores writes after it is closed.

    If a signal interrupts ``torch.save``, PyTorch's writer can outlive the file. It ends its archive when it is freed, and an error
    there would abort the process.
    """

    def write(self, data: Any) -> int:
        return len(data) if self.closed else super().write(data)


class _DirectCheckpoints(TorchCheckpointIO):
    """Write checkpoints to their paths. Lightning would copy them in memory first, and to the folder of temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with _File(io.FileIO(path, "wb")) as file:
            torch.save(checkpoint, file)


def _one_process() -> LightningEnvironment:
    """Return an environment in which this process trains by itself, also as a task of Slurm or MPI beside others.

    Lightning would take each task for a rank of one training run, and requeue the job of Slurm on SIGUSR1.
    """
    environment = LightningEnvironment()
    environment.set_global_rank(0)  # Lightning has read it from SLURM_PROCID, and only rank 0 saves and logs
    return environment


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's warnings about what is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # in networks of diffusers
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        warnings.filterwarnings("ignore", message="FSDP.state_dict_type")  # Lightning's, not ours to replace
        yield


def trainer_of(recipe: Recipe, hardware: Hardware, rank: Rank | None = None, **settings: Any) -> L.Trainer:
    """Return Lightning's trainer; with a ``rank``, that of one of several processes.

    Raises:
        FieldError: Lightning refuses a field of ``hardware``, or the precision of ``recipe``; the device lacks this precision; or
            a training run with this strategy cannot be recorded, or cannot average parameters.
    """
    _check_strategy(recipe, hardware)
    try:
        trainer = L.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy="ddp_spawn" if hardware.strategy == "auto" and hardware.devices != 1 else hardware.strategy,
            precision=FLOAT32 if recipe.tf32 else recipe.precision,  # pyright: ignore[reportArgumentType]
            num_nodes=1 if rank is None else rank.machines,
            plugins=[_DirectCheckpoints(), _one_process() if rank is None else Ranks(rank)],
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
    recipe.check_device(trainer.strategy.root_device)
    if rank is not None:
        # On SIGTERM it would call the other processes to an operation in which they take no part, and wait for them forever. The
        # caller, who gives the ranks, handles signals.
        trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def check_processes(trainer: L.Trainer, n: int, batch_size: int) -> None:
    """Check that the processes of ``trainer`` can share batches of ``batch_size`` of ``n`` training images.

    Raises:
        ValueError: they cannot share them equally, or would wait for each other forever.
    """
    world = trainer.world_size
    last = n % batch_size or batch_size
    if batch_size % world or last % world:
        raise ValueError(
            f"{world} processes cannot share batches of {batch_size} and {last} (the last of an epoch) equally: change "
            "the batch size, the number of training images or of devices"
        )


def processes_to_start(recipe: Recipe, hardware: Hardware) -> int:
    """Return how many processes, this one included, the strategy expects its caller to start; 1 if it starts them itself."""
    with quiet():
        trainer = trainer_of(recipe, hardware, logger=False)
    return trainer.world_size if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) else 1


def _check_strategy(recipe: Recipe, hardware: Hardware) -> None:
    if hardware.strategy not in StrategyRegistry:
        return  # auto, or a name that Lightning refuses itself
    kind = StrategyRegistry[hardware.strategy]["strategy"]
    if kind.__module__.startswith("lightning.") and kind not in _FOLLOWED:
        raise FieldError(hardware, "strategy", "training with this strategy cannot be recorded: choose ddp, ddp_spawn or fsdp")
    if issubclass(kind, FSDPStrategy) and recipe.ema is not None:
        raise FieldError(
            recipe, "ema", "fsdp shards the parameters over the devices and takes no average: set this to null, or choose ddp"
        )


def check_hardware(recipe: Recipe, hardware: Hardware, n: int) -> None:
    """Check, without training, that Lightning supports ``hardware`` here, and that its processes can share ``n`` training images.

    Raises:
        FieldError: Lightning refuses a field of ``hardware``, or the precision of ``recipe``.
        ValueError: the processes cannot share the batches.
    """
    with quiet():
        check_processes(trainer_of(recipe, hardware, logger=False), n, recipe.batch_size)
