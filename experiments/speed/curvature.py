"""Speed of curvature, relative to the plain forward and backward pass of the same draws, without eigendecompositions."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from attribution.curvature.ekfac import rotated_squares
from attribution.curvature.factors import FactorSums, Sharing
from attribution.curvature.pseudo_gradients import OutputProbe, kronecker_modules
from attribution.diffusion import eval_mode
from attribution.gradients import hooks
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws
from attribution.measurements import Measure
from experiments.report.row import Row
from experiments.speed import peers
from experiments.speed.timing import Run, count_ratio, inputs, multiplications, plain, ratio, speed_row


def curvature_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Measure curvature for every number of ``draws``, with ``examples`` of ``shape`` (C, H, W) in one pass in eval mode.

    The rows for each number of draws:

    - ``kfac factors / plain``: time of Kronecker factors (expand, Monte Carlo) over that of the plain pass
    - ``kfac multiplications / plain``: the same ratio, of numbers of multiplications
    - ``kfac floor / plain``: multiplications of the pass without weight gradients plus those of a aᵀ and b bᵀ at all positions,
      over those of the plain pass
    - ``kfac reduce / plain``: time of the factors with ``sharing=reduce`` over that of the plain pass
    - ``ekfac eigenvalues / plain``: time of the second pass of EK-FAC over that of the plain pass
    - ``curvlinops / kfac factors``: time of curvlinops' factors (expand, Monte Carlo) of the same inputs over that of ours, if
      curvlinops is installed
    """
    rows: list[Row] = []
    for count in draws:
        passes = Passes(model, objective, *inputs(model, shape, examples, count, objective.process.T))
        reference, factors = passes.plain, passes.factors("expand")
        pairs = {
            "kfac factors / plain": (factors, reference),
            "kfac reduce / plain": (passes.factors("reduce"), reference),
            "ekfac eigenvalues / plain": (passes.eigenvalues(), reference),
        }
        if (peer := peers.curvlinops_factors(model, objective, passes.x0, passes.draws)) is not None:
            pairs["curvlinops / kfac factors"] = peer, factors
        with eval_mode(model):
            ratios = {metric: ratio(run, other, repeats) for metric, (run, other) in pairs.items()}
            floor = multiplications(passes.without_weight_gradients) + passes.outer_products()
            for metric, number in (("kfac multiplications", multiplications(factors)), ("kfac floor", floor)):
                ratios[f"{metric} / plain"] = count_ratio(number, multiplications(reference))
        rows += [speed_row(metric, value, examples, count) for metric, value in ratios.items()]
    return rows


class Passes:
    """The passes to time, all on the same inputs."""

    def __init__(self, model: nn.Module, objective: Measure, x0: Tensor, draws: Draws):
        self.model, self.x0, self.draws = model, x0, draws
        self.plain = plain(model, objective, x0, draws)
        self._probe, self._modules = OutputProbe(objective.process), kronecker_modules(PerExampleGradients(model))

    def _run(self, on_layer: hooks.OnLayer) -> None:
        autocast = torch.autocast(self.x0.device.type, enabled=False)
        hooks.run(self.model, self._modules, self._probe, self._probe.inputs(self.x0, self.draws), on_layer, autocast)

    def without_weight_gradients(self) -> None:
        """Run forward, and backward to the outputs of all layers."""
        self._run(lambda name, calls: None)

    def factors(self, sharing: Sharing) -> Run:
        """Return the pass that sums Kronecker factors over the inputs."""
        return lambda: self._run(FactorSums(sharing).add)

    def eigenvalues(self) -> Run:
        """Return the pass of EK-FAC's second moments, with the identity as basis, which costs as much as any."""

        def identity(size: int) -> Tensor:
            return torch.eye(size, dtype=self.x0.dtype, device=self.x0.device)

        bases = {name: [identity(size) for size in reversed(layer.block)] for name, layer in self._modules.values()}
        return lambda: self._run(lambda name, calls: cast(None, rotated_squares(calls, *bases[name])))

    def outer_products(self) -> int:
        """Return the number of multiplications of a aᵀ and b bᵀ, position by position."""
        total = 0

        def add(name: str, calls: list[hooks.Call]) -> None:
            nonlocal total
            for call in calls:
                out, columns = call.layer.block
                total += cast(Tensor, call.gradient).numel() // out * (out**2 + columns**2)

        self._run(add)
        return total
