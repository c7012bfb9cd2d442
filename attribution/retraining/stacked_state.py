"""The state of M models in training: one matrix of parameters, one optimizer, one average.

An optimizer that updates every number independently (SGD, Adam, AdamW, ...) gives the same result for a matrix with one row per
model as for each model alone, in a few operations instead of a few per parameter and model.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from attribution.diffusion.denoiser import without_label_dropout
from attribution.training.recipe import Recipe

SHARED = ("attribution.diffusion.denoiser",)

BuildOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Stack:
    """M models of one recipe: ``model()`` initialized with each of ``seeds`` as in ``fit``, one row per seed in this order.

    Raises:
        ValueError: an optimizer that does not allow stacking, or a precision that the device lacks.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        seeds: Sequence[int],
        optimizer: BuildOptimizer,
        recipe: Recipe,
        device: torch.device,
    ):
        recipe.check_device(device)
        _check_elementwise(optimizer)
        self.recipe, self.device = recipe, device
        self.dtype = torch.float64 if recipe.precision == "64-true" else torch.float32
        rows, constants = [], []
        for seed in seeds:
            torch.manual_seed(seed)
            self.network = without_label_dropout(model()).to(device)
            if self.dtype == torch.float64:
                self.network = self.network.double()
            rows.append(torch.cat([p.detach().flatten() for p in self.network.parameters() if p.requires_grad]))
            constants.append(_constants(self.network))
        self._shapes = {name: p.shape for name, p in self.network.named_parameters() if p.requires_grad}
        self.constants = {name: torch.stack([tensors[name] for tensors in constants]) for name in constants[0]}
        self._versions = [tensor._version for tensor in self.constants.values()]
        self.matrix = nn.Parameter(torch.stack(rows))
        self.average: Tensor | None = None
        self.optimizer = optimizer([self.matrix])
        scheduler = get_scheduler(
            recipe.lr_schedule,
            self.optimizer,
            num_warmup_steps=round(recipe.warmup * recipe.steps),
            num_training_steps=recipe.steps,
        )
        # All schedules of diffusers are functions of the step, so no scheduler state has to be restored.
        self._rates = list(zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True))

    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters of all models by name, ``[M, ...]``: views of the matrix."""
        pieces = self.matrix.detach().split([shape.numel() for shape in self._shapes.values()], 1)
        return {
            name: piece.unflatten(1, shape) if shape else piece[:, 0]
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }

    def step(self, step: int, gradients: Tensor) -> None:
        """Take optimizer step ``step`` (0-based) with ``gradients [M, P]``, clipped per model, and update the parameter average.

        Clipping overwrites ``gradients``, and none are kept, so that a step never holds two of them.

        Raises:
            ValueError: the network changed its buffers, which is not supported.
        """
        if [tensor._version for tensor in self.constants.values()] != self._versions:
            raise ValueError(
                "model: the network changes its buffers in training (batch norm?): retraining doesn't support this network"
            )
        if self.recipe.clip is not None:
            norms = gradients.norm(dim=1, keepdim=True)
            gradients.mul_(torch.clamp(self.recipe.clip / (norms + 1e-6), max=1.0))  # as in clip_grad_norm_
        for group, (base, factor) in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = base * factor(step)
        self.matrix.grad = gradients
        self.optimizer.step()
        self.matrix.grad = None
        if self.recipe.ema is not None:
            current = self.matrix.detach()
            decay = self.recipe.ema_decay(step)
            self.average = current.clone() if self.average is None else self.average.lerp_(current, 1 - decay)

    def state(self, m: int) -> dict[str, Tensor]:
        """The state that model ``m`` needs to resume training."""
        average = {} if self.average is None else {"average": self.average}
        shared = self.optimizer.state[self.matrix]
        optimizer = {f"optimizer.{name}": value for name, value in shared.items() if value is not None}
        rows = {"parameters": self.matrix.detach(), **average, **optimizer}
        return {name: (tensor[m] if tensor.shape == self.matrix.shape else tensor).cpu().clone() for name, tensor in rows.items()}

    def restore(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Resume from the ``state`` of each model; all must be of the same step."""
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        rows = {name: tensor.to(self.device) for name, tensor in stacked.items() if tensor.shape == self.matrix.shape}
        self.matrix.data.copy_(rows.pop("parameters"))
        self.average = rows.pop("average", None)
        counts = {name: tensor[0] for name, tensor in stacked.items() if tensor.shape != self.matrix.shape}
        self.optimizer.state[self.matrix] = {name.removeprefix("optimizer."): tensor for name, tensor in (rows | counts).items()}

    def final(self, m: int) -> dict[str, Tensor]:
        """The state dict of model ``m`` after training: averaged if training kept an average."""
        matrix = self.matrix.detach() if self.average is None else self.average
        pieces = matrix[m].split([shape.numel() for shape in self._shapes.values()])
        values = {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        with torch.no_grad():
            for name, value in {**values, **{name: tensor[m] for name, tensor in self.constants.items()}}.items():
                tensors[name].copy_(value)
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}


def _constants(network: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters and buffers."""
    frozen = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(network.named_buffers())}


def _check_elementwise(build: BuildOptimizer) -> None:
    """Check by trial that the optimizer updates a matrix as it updates separate tensors.

    Raises:
        ValueError: it does not.
    """
    generator = torch.Generator().manual_seed(0)
    values, *gradients = torch.randn(4, 2, 6, dtype=torch.float64, generator=generator)
    whole = nn.Parameter(values.clone())
    parts = [nn.Parameter(row.reshape(2, 3).clone()) for row in values]
    try:
        together, alone = build([whole]), [build([part]) for part in parts]
        for gradient in gradients:
            whole.grad = gradient.clone()
            together.step()
            for part, row, optimizer in zip(parts, gradient, alone, strict=True):
                part.grad = row.reshape(2, 3).clone()
                optimizer.step()
        same = torch.allclose(whole, torch.stack([part.flatten() for part in parts]), rtol=1e-9, atol=1e-12)
    except Exception as error:
        raise ValueError(f"{_NOT_ELEMENTWISE} ({error})") from error
    if not same:
        raise ValueError(_NOT_ELEMENTWISE)


_NOT_ELEMENTWISE = "optimizer: retraining side by side needs an optimizer that updates every number independently: sgd, adam, adamw"
