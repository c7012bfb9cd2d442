"""The progress bar of a training run."""

from collections.abc import Iterator

import lightning as L

from experiments.store.progress import track


class TrainingBar(L.Callback):
    """Shows the progress of a training run and the time left."""

    bar: Iterator[int]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        left = trainer.max_steps - trainer.global_step
        steps = range(left + 1)
        self.bar = iter(track(steps, "training", left) if trainer.is_global_zero else steps)
        next(self.bar)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        next(self.bar)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for _ in self.bar:  # the bar disappears at its end
            pass
