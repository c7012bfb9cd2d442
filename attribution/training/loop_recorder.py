"""A recorder for training loops of your own: it leaves the record that estimators over training need.

A loop adds three calls, and a fourth where the noise should be reproducible::

    recorder = LoopRecorder("record", every=500)
    ...
        noise = recorder.noise_like(images)                  # in place of torch.randn_like(images)
        recorder.before_step(ids, timesteps, learning_rate=optimizer.param_groups[0]["lr"])
        ...                                                  # loss, backward, optimizer.step()
        recorder.after_step(model, loss)
    recorder.save(model)

The folder then has the files of ``attribution.training.record``, with the column ``level`` (float64) in ``visits.npy`` if the noise
levels are continuous, and ``noise`` ("recorded" or "drawn anew") in ``record.json``.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attribution.images import philox
from attribution.images.draws import random_draws
from attribution.nodes.files import write_json
from attribution.training.record import AVERAGE, LEVEL_VISIT, SCHEMA, VISIT, checkpoint_file, step_dtype

Values = Tensor | np.ndarray | Sequence[int] | Sequence[float] | Sequence[bool]
"""One value for each image of a batch."""
RECORDED, DRAWN_ANEW = "recorded", "drawn anew"
_INTERVAL = 500
"""Steps whose ids, timesteps and losses stay on the device before the host waits for them."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names of parameters."""


class LoopRecorder:
    """Records a training loop in ``folder``: visits, learning rates, losses, and a checkpoint every ``every`` steps.

    ``every=None``: checkpoints only where ``save`` is called.

    Rows are kept in memory, about 30 bytes for each visit, and written by ``save``; call it whenever the loop saves its own state,
    and at the end. A loop that is resumed at step ``start`` continues the record of the folder.

    Of several processes, each has a recorder with its number ``process`` and passes what ``accelerator.gather`` returns (ids,
    timesteps and ``noise_seeds``) to ``before_step``. Only process 0 writes.

    Raises:
        ValueError: the folder has a record and ``start`` is 0, or its record ends before ``start``.
    """

    def __init__(self, folder: str | Path, every: int | None = None, seed: int = 0, start: int = 0, process: int = 0):
        if every is not None and every < 1:
            raise ValueError(f"every={every}: must be at least 1, or None")
        self.folder, self.every, self.seed, self.process = Path(folder), every, seed, process
        self.step = start
        self.noise_seeds: Tensor | None = None
        """The seeds of the last ``noise_like``, int64 ``[B]``."""
        self._visit_rows: list[np.ndarray] = []  # as they are written
        self._step_rows: list[np.ndarray] = []
        self._visits: list[tuple] = []  # not yet rows
        self._steps: list[tuple] = []
        self._of_step: list[tuple] = []
        self._rows_of_step, self._anew = 0, False
        self._rate: float | None = None
        self._checkpoints: set[int] = set()  # steps of this training run: an earlier one may have left files in the folder
        if (self.folder / "record.json").is_file():
            if not start:
                raise ValueError(f"{folder} has a record: choose another folder, or continue it with start=STEP")
            self._continue(start)
        elif start:
            raise ValueError(f"start={start}: {folder} has no record to continue; call save whenever the loop saves its own state")

    def noise_like(self, images: Tensor) -> Tensor:
        """Standard normal noise of the shape, dtype and device of ``images [B, ...]``, which the record can reproduce."""
        rows = self._rows_of_step + torch.arange(len(images), device=images.device)
        step = torch.full((), self.step, device=images.device)
        draws = random_draws(self.seed, f"loop {self.process}", rows[:, None], step, 1)
        self.noise_seeds = draws.noise_seed[:, 0]
        return philox.normal(self.noise_seeds, images[0].numel()).view(images.shape).to(images.dtype)

    def before_step(
        self,
        ids: Values,
        timesteps: Values | None = None,
        *,
        levels: Values | None = None,
        noise_seeds: Tensor | None = None,
        flips: Values | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Record the visits of a batch. A step that accumulates several batches calls it for each.

        Args:
            ids: of the images, int64 ``[B]``.
            timesteps: of a DDPM as the network gets them, 0..T-1 ``[B]``.
            levels: in place of timesteps, the continuous noise levels ``[B]``: s in (0, 1) of a rectified flow, σ of EDM. They are
                kept exactly.
            noise_seeds: those of ``noise_like``, which is the default; without either, the noise is unknown.
            flips: whether each image was mirrored, bool ``[B]``; None: none was.
            learning_rate: of this step, read before a scheduler changes it; here or in ``after_step``.

        Raises:
            ValueError: neither timesteps nor levels, or both; another number of values than ids; ids or timesteps that are not
                whole.
        """
        if (timesteps is None) == (levels is None):
            raise ValueError("give either timesteps (whole numbers 0..T-1) or levels (continuous)")
        seeds = self.noise_seeds if noise_seeds is None else noise_seeds
        given = {"ids": ids, "timesteps": timesteps, "levels": levels, "noise_seeds": seeds, "flips": flips}
        # Tensors stay on the device until they are written, because the host waits for the device when it reads one.
        known = {name: None if values is None else _tensor(name, values) for name, values in given.items()}
        for name in ("ids", "timesteps"):
            if (values := known[name]) is not None and (values.is_floating_point() or values.dtype == torch.bool):
                hint = "0..T-1: give continuous noise levels as levels=" if name == "timesteps" else "of the images"
                raise ValueError(f"{name} are whole numbers {hint}")
        for name, values in known.items():
            if values is not None and len(values) != len(ids):
                hint = ": of several processes, gather recorder.noise_seeds as well" if name == "noise_seeds" else ""
                raise ValueError(f"before_step has {len(ids)} ids and {len(values)} {name}{hint}")
        self._of_step.append((self.step, *known.values()))
        self._rows_of_step, self.noise_seeds = self._rows_of_step + len(ids), None
        self._rate = self._rate if learning_rate is None else learning_rate

    def after_step(self, model: nn.Module, loss: Tensor | float, learning_rate: float | None = None) -> None:
        """Record an optimizer step with the mean ``loss`` of its batch, and a checkpoint of ``model`` if one is due.

        Raises:
            ValueError: no ``before_step`` since the last step, no learning rate, or several losses.
        """
        rate = self._rate if learning_rate is None else learning_rate
        if not self._of_step:
            raise ValueError(f"step {self.step}: call before_step before after_step")
        if rate is None:
            raise ValueError("give learning_rate=optimizer.param_groups[0]['lr'] to before_step")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise ValueError(f"the loss has the shape {list(loss.shape)}: give the mean over the batch, one number")
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        self._visits += self._of_step
        self._steps.append((self.step, loss, float(rate)))
        self._of_step, self._rows_of_step, self._rate = [], 0, None
        self.step += 1
        if len(self._steps) == _INTERVAL:
            self._convert()
        if self.every is not None and self.step % self.every == 0 and self.process == 0:
            self._write_checkpoint(model)

    def save(self, model: nn.Module, average: nn.Module | Mapping[str, Tensor] | None = None) -> None:
        """Write the record of all steps so far, with a checkpoint of ``model`` and, if training keeps one, the ``average`` model.

        Without ``average``, the record has none, even if an earlier call gave one.

        Raises:
            ValueError: no step was recorded.
        """
        if not self._steps and not self._step_rows:
            raise ValueError("no step was recorded: call before_step and after_step in every step")
        if self.process != 0:
            return
        folder, (visits, steps) = self.folder, self._written()
        self._write_checkpoint(model)
        if average is None:
            (folder / AVERAGE).unlink(missing_ok=True)
        else:
            state = average.state_dict() if isinstance(average, nn.Module) else average
            self._write_weights(state, folder / AVERAGE)
        _replace(folder / "visits.npy", lambda path: np.save(path, visits))
        _replace(folder / "steps.npy", lambda path: np.save(path, steps))
        examples, first = np.unique(visits["example"], return_index=True)
        info = {
            "schema": SCHEMA,
            "seed": self.seed,
            "examples": len(examples),
            "batch_size": int(np.bincount(visits["step"]).max()),
            "precision": "32-true",
            "steps_per_epoch": int(visits["step"][first].max()) + 1,  # the first step after which every example was visited
            "noise": DRAWN_ANEW if self._anew else RECORDED,
            "checkpoints": sorted(self._checkpoints),
        }
        write_json(folder / "record.json", info)

    def _continue(self, start: int) -> None:
        visits, steps = np.load(self.folder / "visits.npy"), np.load(self.folder / "steps.npy")
        if len(steps) < start:
            raise ValueError(f"start={start}: the record in {self.folder} ends at step {len(steps)}; resume from there or earlier")
        self._visit_rows, self._step_rows = [visits[visits["step"] < start]], [steps[steps["step"] < start]]
        info = json.loads((self.folder / "record.json").read_text())
        self._anew = info["noise"] == DRAWN_ANEW
        self._checkpoints = {step for step in info["checkpoints"] if step <= start}

    def _written(self) -> tuple[np.ndarray, np.ndarray]:
        """All visits and steps so far as rows."""
        self._convert()
        if len({rows.dtype for rows in self._visit_rows}) > 1:
            raise ValueError("some steps have timesteps and others levels: give the same to all of them")
        self._visit_rows, self._step_rows = [np.concatenate(self._visit_rows)], [np.concatenate(self._step_rows)]
        return self._visit_rows[0], self._step_rows[0]

    def _convert(self) -> None:
        """Make rows of the steps since the last call."""
        if self._steps:
            rows = [(step, 0, float(loss), (rate,), 1.0, 0) for step, loss, rate in self._steps]
            self._visit_rows += map(self._rows, self._visits)
            self._step_rows.append(np.array(rows, step_dtype(1)))
            self._visits, self._steps = [], []

    def _rows(self, visit: tuple) -> np.ndarray:
        """The rows of a visit (step, ids, timesteps, levels, noise seeds, flips)."""
        step, ids, timesteps, levels, seeds, flips = visit
        rows = np.zeros(len(ids), VISIT if levels is None else LEVEL_VISIT)
        rows["step"], rows["example"] = step, ids.cpu().numpy()
        if levels is None:
            rows["timestep"] = timesteps.cpu().numpy() + 1
        else:
            rows["level"] = levels.double().cpu().numpy()
        if seeds is None:
            self._anew = True
            seeds = random_draws(self.seed, DRAWN_ANEW, ids.cpu()[:, None], torch.full((), step), 1).noise_seed[:, 0]
        rows["noise_seed"] = seeds.cpu().numpy()
        rows["flip"] = False if flips is None else flips.cpu().numpy()
        return rows

    def _write_checkpoint(self, model: nn.Module) -> None:
        path = checkpoint_file(self.folder, self.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_weights(model.state_dict(), path)
        self._checkpoints.add(self.step)

    def _write_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        for wrapper in _WRAPPERS * 2:
            if all(name.startswith(wrapper) for name in state):
                state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        _replace(path, lambda temporary: save_file(copies, temporary))


def _tensor(name: str, values: Values) -> Tensor:
    """``values`` as a tensor without gradients."""
    try:
        tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be numbers: give a tensor, an array or a list of them") from error
    if tensor.dim() != 1:
        raise ValueError(f"{name} have the shape {list(tensor.shape)}: give one number for each image, [B]")
    return tensor


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it, so that no half-written file is left."""
    temporary = path.with_name(f"new-{path.name}")
    write(temporary)
    os.replace(temporary, path)
