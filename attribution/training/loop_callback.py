"""The recorder of a training loop as a callback, for LightningModules of your own."""

from typing import Any

import lightning as L
from torch import Tensor, nn

from attribution.training.loop_recorder import LoopRecorder


class LoopCallback(L.Callback):
    """Record the training of a LightningModule whose ``training_step`` calls ``recorder.before_step``.

    The callback does the rest: learning rates, losses, checkpoints of the attribute ``network`` of the module, and the record at
    the end. A run that is resumed begins with ``LoopRecorder(folder, start=STEP)``; of several processes, each has a
    ``LoopRecorder(folder, process=RANK)``.

    Raises (when training begins):
        ValueError: the module has no such network, or the recorder has another step or process than the trainer.
    """

    def __init__(self, recorder: LoopRecorder, network: str):
        self.recorder, self.network, self.rate, self.losses = recorder, network, 0.0, []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(getattr(pl_module, self.network, None), nn.Module):
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"LoopCallback: {type(pl_module).__name__} has no network {self.network!r}; choose from {names}")
        for name, own, right in (
            ("start", self.recorder.step, trainer.global_step),
            ("process", self.recorder.process, trainer.global_rank),
        ):
            if own != right:
                raise ValueError(
                    f"the recorder has {name}={own}, but training is at {right}: make LoopRecorder(folder, {name}={right})"
                )

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer) -> None:
        self.rate = optimizer.param_groups[0]["lr"]  # Lightning steps the scheduler before on_train_batch_end

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        result: Any = outputs
        loss = result if isinstance(result, Tensor) else result["loss"]
        self.losses.append(loss.detach() * trainer.accumulate_grad_batches)  # which Lightning has divided it by
        if trainer.global_step > self.recorder.step:
            self.recorder.after_step(self._network(pl_module), sum(self.losses) / len(self.losses), self.rate)
            self.losses = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.recorder.save(self._network(pl_module))

    def _network(self, module: L.LightningModule) -> nn.Module:
        network: nn.Module = getattr(module, self.network)
        return network
