"""The LightningModule: the training loss at recorded draws; everything else is left to Lightning."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.optimization import get_scheduler
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from attribution.diffusion.denoiser import denoiser, without_label_dropout
from attribution.images import philox
from attribution.images.draws import Draws, random_draws
from attribution.measurements import Measure
from attribution.precision import allow_tf32
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


class DiffusionModule(L.LightningModule):
    """Train ``model`` on ``measure`` with draws that are a function of (seed, example, step).

    Batches are ``(ids [B], x0 [B, C, H, W], condition [B, ...] or None)``. After each step the recorder reads ``ids``, ``draws``,
    ``loss``, ``dropout_seed``, ``learning_rates`` and ``clip_factor``. ``ema_decay`` gives the decay of the average at each step.
    ``tf32``, ``channels_last`` and ``compiler`` are those of ``Recipe``.
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
        tf32: bool = False,
        channels_last: bool = False,
        compiler: str | None = None,
    ):
        super().__init__()
        model = without_label_dropout(model)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model, self.measure, self.build_optimizer = model, measure, optimizer
        self.seed, self.flips, self.lr_schedule, self.warmup, self.clip = seed, flips, lr_schedule, warmup, clip
        self.tf32, self.compiler = tf32, compiler
        self.ema_decay, self.average = ema_decay, None
        if ema_decay is not None:
            self.average = copy.deepcopy(model).requires_grad_(False)  # DDP would wait for gradients of the average
        self.clip_factor: Tensor | float = 1.0

    def setup(self, stage: str) -> None:
        # Here, because the processes of ddp_spawn inherit neither the setting nor the compiled network.
        allow_tf32(self.tf32)
        if self.compiler is not None:
            self.model.compile(backend=self.compiler)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.ids, x0, condition = batch
        self.step = step = self.global_step
        self.draws = random_draws(
            self.seed,
            "training",
            self.ids[:, None],
            torch.full((), step, device=self.ids.device),
            self.measure.process.T,
            self.flips,
            self.measure.condition_dropout,
        )
        self.dropout_seed = philox.key(self.seed, "dropout", step, self.global_rank)[0]
        loss = training_loss(self.model, self.measure, x0, self.draws, self.dropout_seed, condition)
        self.loss = loss.detach()
        if self._logs:
            self.log("loss", self.loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Lightning steps the scheduler before on_train_batch_end, so the rate that is applied must be read here.
        self.learning_rates = np.array([group["lr"] for group in optimizer.param_groups])
        if self._logs:
            self.log("lr", self.learning_rates[0])

    @property
    def _logs(self) -> bool:
        """Whether a logger takes the numbers of this step. Other steps log nothing, because logging copies to the device."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        return bool(self.trainer.loggers) and (self.trainer.global_step + 1) % every == 0

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        if self.clip is not None:
            if self._is_sharded:  # this process has only a part of the gradients
                sharded: Any = self.trainer.strategy.model
                norm = sharded.clip_grad_norm_(self.clip)
            else:
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.clip_factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)  # the factor of clip_grad_norm_

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self._update_average(self.average)

    @torch.no_grad()
    def _update_average(self, average: nn.Module) -> None:
        """``average = d_t · average + (1 - d_t) · parameters`` with d_0 = 0. Buffers are copied.

        ``AveragedModel`` of PyTorch does the same, but counts steps on the device, where the host has to wait for the count.
        """
        assert self.ema_decay is not None
        averaged: list[Tensor] = list(average.parameters())
        current: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - self.ema_decay(self.step))
        for buffer, of_model in zip(average.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(of_model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Saves of earlier versions have the average as an ``AveragedModel`` of PyTorch. FSDP has loaded the state by now.
        state = checkpoint.get("state_dict", {})
        if state.pop("average.n_averaged", None) is not None:
            for name in [name for name in state if name.startswith("average.module.")]:
                state[name.replace("average.module.", "average.", 1)] = state.pop(name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._is_sharded and not any(state.get("state") for state in checkpoint.get("optimizer_states", ())):
            checkpoint.pop("optimizer_states", None)  # empty, as for plain SGD: Lightning cannot load it with FSDP

    def on_train_start(self) -> None:
        if self._is_sharded:  # the learning rate is in the optimizer's state, which may have been left out of the checkpoint
            (scheduler,) = self.trainer.lr_scheduler_configs
            for group, rate in zip(scheduler.scheduler.optimizer.param_groups, scheduler.scheduler.get_last_lr(), strict=True):
                group["lr"] = rate

    @property
    def _is_sharded(self) -> bool:
        return isinstance(self.trainer.strategy, FSDPStrategy)

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer(self.model.parameters())
        steps = self.trainer.max_steps
        scheduler = get_scheduler(
            self.lr_schedule, optimizer, num_warmup_steps=round(self.warmup * steps), num_training_steps=steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
