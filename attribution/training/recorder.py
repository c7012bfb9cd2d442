"""The callback that writes the training record while Lightning trains."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from attribution.images.draws import Draws
from attribution.nodes.saves import Saves
from attribution.training.checkpoints import CheckpointRule
from attribution.training.module import DiffusionModule
from attribution.training.order import steps_per_epoch
from attribution.training.recipe import Recipe
from attribution.training.record import AVERAGE, SCHEMA, SCHEMA_WITH_DROPOUT, VISIT, VISIT_WITH_DROPOUT, checkpoint_file, step_dtype

SHARED = ("attribution.training.order", "attribution.training.record")


class Recorder(L.Callback):
    """Record visits, steps and checkpoints in the folder of ``saves``, and every ``interval`` steps the state that resuming needs.

    Rows are kept in memory for an interval and written to ``progress/*.npy`` just before Lightning's checkpoint
    ``progress/resume-N.ckpt``; ``saves`` then lists all files of the training run so far. A training run that is killed loses the
    steps after its last save and repeats them exactly. ``start`` is the step of the save to resume from, or 0.
    """

    def __init__(self, saves: Saves, start: int, rule: CheckpointRule, interval: int, n: int, recipe: Recipe, seed: int):
        self.folder, self.rule, self.interval = saves.folder, rule, interval
        self.n, self.batch_size, self.precision, self.seed = n, recipe.batch_size, recipe.precision, seed
        self.saves, self.start = saves, start
        self.visits: list[tuple[int, Tensor, Draws]] = []
        self.steps: list[tuple] = []

    @property
    def resume_from(self) -> Path | None:
        """The Lightning checkpoint of an earlier attempt, or None."""
        return self._resumption(self.start) if self.start else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.checkpoint_steps = set(self.rule.candidates(trainer.max_steps, steps_per_epoch(self.n, self.batch_size)))
        if trainer.is_global_zero:
            self.saves.resume(self.start)
        trainer.strategy.barrier("resume")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        assert isinstance(pl_module, DiffusionModule)
        done = trainer.global_step
        self._record(pl_module, done - 1, trainer.global_rank)
        if done in self.checkpoint_steps:
            state = _parameters(trainer)  # called by all processes, each of which may have only a shard
            if trainer.is_global_zero:
                _write(state, self._checkpoint(done))
        if done % self.interval == 0 or done == trainer.max_steps:
            self._flush(done, trainer, len(pl_module.learning_rates))
        # Not at the end: Lightning has nothing to resume from there, so on_train_end would not run and write the record.
        if done % self.interval == 0 and done < trainer.max_steps:
            trainer.save_checkpoint(self._resumption(done), weights_only=False)  # ends when all processes have written their rows
            if trainer.is_global_zero:
                self.saves.save(
                    done, [*self._checkpoints(done), *self._rows("visits"), *self._rows("steps"), self._resumption(done)]
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        trainer.strategy.barrier("record")
        if not trainer.is_global_zero:
            return
        self.saves.verify([*self._rows("visits"), *self._rows("steps")])
        visits, steps = self._collected("visits"), self._collected("steps")
        np.save(self.folder / "visits.npy", visits)
        np.save(self.folder / "steps.npy", steps)
        files = [self.folder / name for name in ("visits.npy", "steps.npy", "record.json")]
        if pl_module.average is not None:
            files.append(self.folder / AVERAGE)
            _write(pl_module.average.state_dict(), files[-1])
        losses = np.bincount(steps["step"], steps["loss"]) / np.bincount(steps["step"])
        kept = self.rule.keep(sorted(self.checkpoint_steps), losses)
        schema = SCHEMA if visits.dtype == VISIT else SCHEMA_WITH_DROPOUT
        self._describe(schema, kept, int(np.bincount(steps["step"]).max()))
        self.saves.finish([*files, *(self._checkpoint(step) for step in kept)])
        self.saves.discard()
        for step in self.checkpoint_steps - set(kept):
            self._checkpoint(step).unlink(missing_ok=True)

    def _record(self, module: DiffusionModule, step: int, rank: int) -> None:
        # Tensors stay on the device until the interval is written, because the host waits for the device when it reads one.
        self.visits.append((step, module.ids, module.draws))
        self.steps.append((step, rank, module.loss, module.learning_rates, module.clip_factor, module.dropout_seed))

    def _collected(self, kind: str) -> np.ndarray:
        """The rows of all processes, step by step in the order of the batch. Each of W processes has every W-th row of a step.

        W is the number of processes that made the step: a training run may be resumed on another number of devices.
        """
        ranks = sorted({int(path.name.split("-")[1]) for path in self._rows(kind)})
        rows = [np.concatenate([np.load(path) for path in self._rows(kind, rank)]) for rank in ranks]
        worlds = np.bincount(np.concatenate([np.unique(own["step"]) for own in rows]))
        places = [
            (np.arange(len(own)) - np.searchsorted(own["step"], own["step"])) * worlds[own["step"]] + rank
            for rank, own in zip(ranks, rows, strict=True)
        ]
        every = np.concatenate(rows)
        return every[np.lexsort((np.concatenate(places), every["step"]))]

    def _flush(self, done: int, trainer: L.Trainer, groups: int) -> None:
        rank = trainer.global_rank
        steps = _step_rows(self.steps, groups)
        bad = steps["step"][~np.isfinite(steps["loss"])]
        if not trainer.strategy.reduce_boolean_decision(not len(bad)):  # all processes end if one of them has a bad loss
            raise FloatingPointError(
                f"the training loss became NaN or infinite {f'at step {bad[0]}' if len(bad) else f'before step {done}'}: lower the "
                "learning rate, clip gradients, or train in 32-bit precision; earlier progress is kept"
            )
        np.save(self.saves.path(f"visits-{rank}-{done:09d}.npy"), _visit_rows(self.visits))
        np.save(self.saves.path(f"steps-{rank}-{done:09d}.npy"), steps)
        self.visits, self.steps = [], []

    def _describe(self, schema: int, kept: Sequence[int], processes: int) -> None:
        info = {
            "schema": schema,
            "seed": self.seed,
            "examples": self.n,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "steps_per_epoch": steps_per_epoch(self.n, self.batch_size),
            "checkpoints": list(kept),
            **({"processes": processes} if processes > 1 else {}),
        }
        (self.folder / "record.json").write_text(json.dumps(info, indent=1))

    def _resumption(self, step: int) -> Path:
        return self.saves.path(f"resume-{step:09d}.ckpt")

    def _rows(self, kind: str, rank: int | None = None) -> list[Path]:
        return sorted(self.saves.path("").glob(f"{kind}-{'*' if rank is None else rank}-*.npy"))

    def _checkpoint(self, step: int) -> Path:
        return checkpoint_file(self.folder, step)

    def _checkpoints(self, done: int) -> list[Path]:
        return [self._checkpoint(step) for step in sorted(self.checkpoint_steps) if step <= done]


def _visit_rows(visits: Sequence[tuple[int, Tensor, Draws]]) -> np.ndarray:
    """The rows of several steps (``VISIT``), given as (step, ids ``[B]``, draws ``[B, 1]``)."""
    steps, ids, draws = zip(*visits, strict=True)
    drops = draws[0].condition_dropped is not None
    rows = np.empty(sum(map(len, ids)), VISIT_WITH_DROPOUT if drops else VISIT)
    rows["step"], rows["example"] = np.repeat(steps, list(map(len, ids))), torch.cat(ids).cpu().numpy()
    for name in ("timestep", "noise_seed", "flip", *(("condition_dropped",) if drops else ())):
        rows[name] = torch.cat([getattr(of_step, name)[:, 0] for of_step in draws]).cpu().numpy()
    return rows


def _step_rows(steps: Sequence[tuple], groups: int) -> np.ndarray:
    """The rows of several steps (``step_dtype``), given as their fields; losses and clip factors may be on the device."""
    columns: list[Any] = list(zip(*steps, strict=True))
    for position in (2, 4):
        values = columns[position]
        columns[position] = torch.stack(values).tolist() if isinstance(values[0], Tensor) else values
    return np.array(list(zip(*columns, strict=True)), step_dtype(groups))


def _parameters(trainer: L.Trainer) -> dict[str, torch.Tensor]:
    """The network's parameters and buffers. All processes must call this; if they are sharded, only process 0 gets all of them."""
    state, prefix = trainer.strategy.lightning_module_state_dict(), "model."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _write(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path)
