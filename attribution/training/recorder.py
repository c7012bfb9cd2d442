"""The callback that writes the training record while Lightning trains."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from safetensors.torch import save_file

from attribution.training.checkpoints import CheckpointRule
from attribution.training.module import DiffusionModule
from attribution.training.order import steps_per_epoch
from attribution.training.record import SCHEMA, VISIT, step_dtype

SHARED = ("attribution.training.order", "attribution.training.record")


class Recorder(L.Callback):
    """Record visits, steps and checkpoints in ``folder``, and every ``interval`` steps the state that resuming needs.

    Rows are kept in memory for an interval and written to ``progress/*.npy`` just before Lightning's checkpoint
    ``progress/resume.ckpt`` replaces the previous one. A training run that is killed loses the steps after that checkpoint and
    repeats them exactly.
    """

    def __init__(self, folder: Path, rule: CheckpointRule, interval: int, n: int, batch_size: int, seed: int):
        self.folder, self.rule, self.interval = folder, rule, interval
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.progress = folder / "progress"
        self.visits: list[np.ndarray] = []
        self.steps: list[tuple] = []

    @property
    def resume_from(self) -> Path | None:
        """The Lightning checkpoint of an earlier attempt, or None."""
        path = self.progress / "resume.ckpt"
        return path if path.exists() else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for folder in (self.progress, self.folder / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint_steps = set(self.rule.candidates(trainer.max_steps, steps_per_epoch(self.n, self.batch_size)))
        if trainer.is_global_zero:
            for path in self.progress.glob("*.npy"):
                if int(path.stem.rsplit("-", 1)[1]) > trainer.global_step:  # its resume.ckpt was not written
                    path.unlink()
        trainer.strategy.barrier("resume")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        assert isinstance(pl_module, DiffusionModule)
        done = trainer.global_step
        self._record(pl_module, done - 1, trainer.global_rank)
        if done in self.checkpoint_steps and trainer.is_global_zero:
            _write(pl_module.model.state_dict(), self.folder / "checkpoints" / f"{done}.safetensors")
        if done % self.interval == 0 or done == trainer.max_steps:
            self._flush(done, trainer.global_rank, len(pl_module.learning_rates))
        # Not at the end: Lightning has nothing to resume from there, so on_train_end would not run and write the record.
        if done % self.interval == 0 and done < trainer.max_steps:
            trainer.save_checkpoint(self.progress / "resume.tmp", weights_only=False)
            if trainer.is_global_zero:
                os.replace(self.progress / "resume.tmp", self.progress / "resume.ckpt")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        trainer.strategy.barrier("record")
        if not trainer.is_global_zero:
            return
        visits, steps = (
            np.concatenate([np.load(path) for path in sorted(self.progress.glob(f"{kind}-*.npy"))]) for kind in ("visits", "steps")
        )
        np.save(self.folder / "visits.npy", visits[np.argsort(visits["step"], kind="stable")])
        np.save(self.folder / "steps.npy", steps[np.argsort(steps["step"], kind="stable")])
        if pl_module.average is not None:
            _write(pl_module.average.module.state_dict(), self.folder / "average.safetensors")
        losses = np.bincount(steps["step"], steps["loss"]) / np.bincount(steps["step"])
        kept = self.rule.keep(sorted(self.checkpoint_steps), losses)
        for step in self.checkpoint_steps - set(kept):
            (self.folder / "checkpoints" / f"{step}.safetensors").unlink()
        self._describe(kept, trainer.precision)

    def _record(self, module: DiffusionModule, step: int, rank: int) -> None:
        rows = np.empty(len(module.ids), VISIT)
        rows["step"], rows["example"] = step, module.ids.cpu().numpy()
        for name in ("timestep", "noise_seed", "flip"):
            rows[name] = getattr(module.draws, name)[:, 0].cpu().numpy()
        self.visits.append(rows)
        # Losses stay on the device until the interval is written, because reading one synchronizes with the device.
        self.steps.append((step, rank, module.loss, module.learning_rates, module.clip_factor, module.dropout_seed))

    def _flush(self, done: int, rank: int, groups: int) -> None:
        steps = np.array([(s, r, float(loss), lr, float(c), d) for s, r, loss, lr, c, d in self.steps], step_dtype(groups))
        if not np.isfinite(steps["loss"]).all():
            bad = steps["step"][~np.isfinite(steps["loss"])][0]
            raise FloatingPointError(
                f"the training loss became NaN or infinite at step {bad}: lower the learning rate, clip "
                "gradients, or train in 32-bit precision; earlier progress is kept"
            )
        np.save(self.progress / f"visits-{rank}-{done:09d}.npy", np.concatenate(self.visits))
        np.save(self.progress / f"steps-{rank}-{done:09d}.npy", steps)
        self.visits, self.steps = [], []

    def _describe(self, kept: Sequence[int], precision: str) -> None:
        info = {
            "schema": SCHEMA,
            "seed": self.seed,
            "examples": self.n,
            "batch_size": self.batch_size,
            "precision": precision,
            "steps_per_epoch": steps_per_epoch(self.n, self.batch_size),
            "checkpoints": list(kept),
        }
        part = self.folder / "record.part"
        part.write_text(json.dumps(info, indent=1))
        os.replace(part, self.folder / "record.json")  # its existence marks the record as complete


def _write(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path)
