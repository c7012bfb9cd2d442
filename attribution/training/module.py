"""The LightningModule: the training loss at recorded draws; everything else is left to Lightning."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.swa_utils import AveragedModel

from attribution.diffusion import denoiser
from attribution.images import philox
from attribution.images.draws import Draws, random_draws
from attribution.measurements import Measure
from attribution.training.order import Batch

SHARED = ("attribution.diffusion.denoiser", "attribution.images.draws")


def training_loss(
    model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, dropout_seed: int, condition: Tensor | None = None
) -> Tensor:
    """Mean over the batch of the loss at one draw per example; ``x0 [B, C, H, W]``, ``draws [B, 1]``, ``condition [B, ...]``.

    Training and its replay both call this. The dropout seed makes the randomness of the network part of the record.
    """
    torch.manual_seed(dropout_seed)
    return measure(denoiser(model), *measure.inputs(x0, draws, condition)).mean()


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _update_average(decay: Callable[[int], float], average: _Tensors, parameters: _Tensors, step: Tensor | int) -> None:
    """``average = decay(t) · average + (1 - decay(t)) · parameters``, called by ``AveragedModel`` with ``step`` t."""
    torch._foreach_lerp_(average, parameters, 1 - decay(int(step)))


class DiffusionModule(L.LightningModule):
    """Train ``model`` on ``measure`` with draws that are a function of (seed, example, step).

    Batches are ``(ids [B], x0 [B, C, H, W], condition [B, ...] or None)``. After each step the recorder reads ``ids``, ``draws``,
    ``loss``, ``dropout_seed``, ``learning_rates`` and ``clip_factor``. ``ema_decay`` gives the decay of the average at each step.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Measure,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        seed: int,
        flips: bool = False,
        lr_schedule: str = "constant",
        warmup: float = 0.0,
        clip: float | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ):
        super().__init__()
        self.model, self.measure, self.build_optimizer = model, measure, optimizer
        self.seed, self.flips, self.lr_schedule, self.warmup, self.clip = seed, flips, lr_schedule, warmup, clip
        self.average = None
        if ema_decay is not None:
            # A partial function, because ddp_spawn pickles the module. DDP would wait for gradients of the average.
            self.average = AveragedModel(model, multi_avg_fn=partial(_update_average, ema_decay)).requires_grad_(False)
        self.clip_factor: Tensor | float = 1.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.ids, x0, condition = batch
        step = self.global_step
        self.draws = random_draws(self.seed, "training", self.ids[:, None], torch.tensor(step), self.measure.process.T, self.flips)
        self.dropout_seed = philox.key(self.seed, "dropout", step, self.global_rank)[0]
        loss = training_loss(self.model, self.measure, x0, self.draws, self.dropout_seed, condition)
        self.loss = loss.detach()
        self.log("loss", self.loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning steps the scheduler before on_train_batch_end, so the rate that is applied must be read here.
        self.learning_rates = np.array([group["lr"] for group in optimizer.param_groups])
        self.log("lr", self.learning_rates[0])

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if self.clip is not None:
            whole = self.trainer.strategy.model
            if isinstance(whole, FullyShardedDataParallel):  # a process has only a part of the gradients
                norm = whole.clip_grad_norm_(self.clip)
            else:
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.clip_factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)  # the factor of clip_grad_norm_

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self.model.parameters())
        steps = self.trainer.max_steps
        scheduler = get_scheduler(
            self.lr_schedule, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
