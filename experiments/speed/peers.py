"""Other libraries on the same model and data, for comparison; they are imported only if they are installed."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.diffusion import Process, denoiser
from attribution.execution import FLOAT32_BYTES
from attribution.images.draws import Draws
from attribution.measurements import Measure
from experiments.speed.timing import Run

Features = Callable[[], Any]
"""A ``Run`` that returns features ``[B, k]``."""


def curvlinops_factors(model: nn.Module, objective: Measure, x0: Tensor, draws: Draws) -> Run | None:
    """Return a run of curvlinops' factors of Linear and Conv2d layers (expand, one Monte Carlo sample); None if not installed."""
    if not installed("curvlinops", "curvlinops", "curvlinops-for-pytorch"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = import_module("curvlinops").KFACLinearOperator
    flat = Flat(model)
    parameters = list(kronecker_parameters(model).values())

    def run() -> None:
        x, t, noise, _ = objective.inputs(x0, draws)
        data = [network_batch(objective.process, x, t, noise)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            operator(
                flat,
                nn.MSELoss(),
                parameters,
                data,
                fisher_type="mc",
                kfac_approx="expand",
                separate_weight_and_bias=False,
                check_deterministic=False,
                num_data=len(x),
                batch_size_fn=lambda batch: len(batch["time"]),
            ).compute_kronecker_factors()

    return run


def traker_features(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, k: int, memory: float) -> dict[str, Features]:
    """Return runs of ``TRAKer.featurize`` without its files, in float32, with ``k`` features; none if traker is not installed.

    ``traker`` has the default settings. ``traker, P kept`` has one block for all of P, so that P is generated only once; it is left
    out if P takes more than ``memory`` bytes.
    """
    if not installed("traker", "trak", "traker"):
        return {}
    loss, device = MeanLoss(model, measure), x0.device.type

    def features(projector: Any) -> Features:
        with TemporaryDirectory() as folder:
            traker = import_module("trak").TRAKer(
                loss,
                task=Output(),
                train_set_size=len(x0),
                save_dir=folder,
                load_from_save_dir=False,
                device=device,
                projector=projector,
                proj_dim=k,
                logging_level=logging.ERROR,
                use_half_precision=False,
            )

        def run() -> Tensor:
            with functional():
                gradients = traker.gradient_computer.compute_per_sample_grad(batch_of(measure, x0, draws))
                return traker.projector.project(gradients, model_id=0) / traker.normalize_factor

        return run

    runs, parameters = {"traker": features(None)}, sum(p.numel() for p in model.parameters())
    if FLOAT32_BYTES * k * parameters <= memory:
        kept = import_module("trak.projectors").BasicProjector(
            parameters, k, seed=0, proj_type="normal", device=device, block_size=k
        )
        runs["traker, P kept"] = features(kept)
    return runs


def dattri_features(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, k: int, memory: float) -> dict[str, Features]:
    """Return runs of dattri's ``TRAKAttributor``, with its projector made beforehand; named as in ``traker_features``."""
    if not installed("dattri", "dattri", "dattri"):
        return {}
    loss, projection = MeanLoss(model, measure), import_module("dattri.func.projection")
    task = import_module("dattri.task").AttributionTask(
        lambda weights, batch: functional_call(loss, weights, batch),
        loss,
        checkpoints={},
        checkpoints_load_func=lambda loaded, _: loaded,
    )
    gradient, (weights, _) = task.get_grad_loss_func(in_dims=(None, 0)), task.get_param()
    parameters = weights.numel()

    def features(project: Callable[[Tensor, int], Tensor]) -> Features:
        def run() -> Tensor:
            with functional():
                gradients = torch.nan_to_num(gradient(weights, batch_of(measure, x0, draws)))
                gradients /= math.sqrt(parameters)
                return project(gradients, 0)

        return run

    like = torch.empty(len(x0), parameters, dtype=weights.dtype, device=x0.device)
    runs = {"dattri": features(projection.random_project(like, len(x0), k, 32, device=x0.device))}
    if FLOAT32_BYTES * k * parameters <= memory:
        kind = projection.ProjectionType.normal
        kept = projection.BasicProjector(parameters, k, seed=0, proj_type=kind, device=x0.device, block_size=k)
        runs["dattri, P kept"] = features(kept.project)
    return runs


def kronecker_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters of Linear and Conv2d layers, by name."""
    return {
        f"{layer}.{name}": p
        for layer, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad
    }


def installed(name: str, module: str, package: str) -> bool:
    """Whether the module can be imported; prints a line if not."""
    if find_spec(module) is not None:
        return True
    print(f"{name} is not installed: no rows for it (pip install {package})")
    return False


def batch_of(measure: Measure, x0: Tensor, draws: Draws) -> tuple[Tensor, ...]:
    """Return the arguments of the measure, each ``[B, K, ..]``, without the condition."""
    return tuple(rows.unflatten(0, (len(x0), draws.count)) for rows in measure.inputs(x0, draws)[:3])


@contextmanager
def functional() -> Iterator[None]:
    """Make gradients by ``torch.func`` faster: without a second graph, and with the plain kernel of attention.

    The fused kernels have no batching rule, and warn that they are slow.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class MeanLoss(nn.Module):
    """A network with its loss: the mean over the draws of one example, whose gradient is the mean of the gradients."""

    def __init__(self, model: nn.Module, measure: Measure):
        super().__init__()
        self.model, self.measure = model, measure

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.measure(denoiser(self.model), x0, t, noise).mean()


class Output:
    """The model output function in the interface of traker: the loss itself, so that Q = 1."""

    def get_output(self, loss: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], *batch: Tensor) -> Tensor:
        return functional_call(loss, (weights, buffers), batch)

    def get_out_to_loss_grad(self, loss: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.ones(len(batch[0]), 1)


class Flat(nn.Module):
    """A network in the interface of curvlinops: one argument, and one row of outputs for each input."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return denoiser(self.model)(batch["x"], batch["time"]).flatten(1)


def network_batch(process: Process, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the argument of ``Flat`` for the images at noise levels ``t [B]``, and its target ``[B, C·H·W]``."""
    x = process.network_input(process.add_noise(x0, t, noise), t)
    return {"x": x, "time": process.network_time(t)}, process.target(x0, t, noise).flatten(1)
