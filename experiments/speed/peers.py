"""Other libraries on the same model and data, where they are installed: nothing here needs them."""

import warnings
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor, nn

from attribution.diffusion import NoiseSchedule, denoiser
from attribution.draws import Draws
from attribution.measurements import Loss
from experiments.speed.timing import Run


def curvlinops_factors(model: nn.Module, schedule: NoiseSchedule, x0: Tensor, draws: Draws) -> Run | None:
    """curvlinops' factors (expand, Monte Carlo, one v for each input) of the Linear and Conv2d layers; None without it."""
    if find_spec("curvlinops") is None:
        print("curvlinops is not installed: no row for it (pip install curvlinops-for-pytorch)")
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = import_module("curvlinops").KFACLinearOperator
    flat = _Flat(model)
    parameters = [
        p
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for p in module.parameters(recurse=False)
        if p.requires_grad
    ]

    def run() -> None:
        x, t, noise = Loss(schedule).inputs(x0, draws)
        data = [({"x_t": schedule.add_noise(x, t, noise), "t": t}, noise.flatten(1))]
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
                batch_size_fn=lambda batch: len(batch["t"]),
            ).compute_kronecker_factors()

    return run


class _Flat(nn.Module):
    """One argument and a row of outputs for each input, as curvlinops wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return denoiser(self.model)(batch["x_t"], batch["t"]).flatten(1)
