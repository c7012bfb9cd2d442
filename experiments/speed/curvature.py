"""How long curvature takes, over the plain forward and backward pass of the same draws; eigendecompositions are not counted."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from attribution.curvature.ekfac import rotated_squares
from attribution.curvature.factors import FactorSums, Sharing
from attribution.curvature.pseudo import OutputProbe, kronecker_homes
from attribution.diffusion import eval_mode
from attribution.gradients import hooks
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws
from attribution.measurements import Measure
from experiments.speed import peers
from experiments.speed.timing import Row, Run, count_ratio, inputs, multiplications, plain, ratio


def curvature_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Rows for every number of draws: ``examples`` of ``shape`` (C, H, W), all draws of all examples in one pass, in eval mode.

    - ``kfac factors / plain``: Kronecker factors, expand and mc, over the ordinary pass with its summed gradients.
    - ``kfac multiplications / plain``: the same in multiplications.
    - ``kfac floor / plain``: in multiplications, that pass without weight gradients and a aᵀ and b bᵀ of all positions written out.
    - ``kfac reduce / plain``: the factors of ``sharing=reduce``.
    - ``ekfac eigenvalues / plain``: the second pass, of EK-FAC.
    - ``curvlinops / kfac factors``: its factors, expand and mc, of the same inputs over ours; only where it is installed.
    """
    rows: list[Row] = []
    for count in draws:
        passes = _Passes(model, objective, *inputs(model, shape, examples, count, objective.process.T))
        reference, factors = passes.plain, passes.factors("expand")
        pairs = {
            "kfac factors / plain": (factors, reference),
            "kfac reduce / plain": (passes.factors("reduce"), reference),
            "ekfac eigenvalues / plain": (passes.eigenvalues(), reference),
        }
        if (peer := peers.curvlinops_factors(model, objective, passes.x0, passes.draws)) is not None:
            pairs["curvlinops / kfac factors"] = peer, factors
        with eval_mode(model):
            found = {metric: ratio(one, other, repeats) for metric, (one, other) in pairs.items()}
            floor = multiplications(passes.without_weight_gradients) + passes.written_out()
            for metric, number in (("kfac multiplications", multiplications(factors)), ("kfac floor", floor)):
                found[f"{metric} / plain"] = count_ratio(number, multiplications(reference))
        rows += [{"metric": metric, **row, "examples": examples, "draws": count} for metric, row in found.items()]
    return rows


class _Passes:
    """What is timed, all on the same inputs."""

    def __init__(self, model: nn.Module, objective: Measure, x0: Tensor, draws: Draws):
        self.model, self.x0, self.draws = model, x0, draws
        self.plain = plain(model, objective, x0, draws)
        self._probe, self._homes = OutputProbe(objective.process), kronecker_homes(PerExampleGradients(model))

    def _run(self, finish: hooks.Finish) -> None:
        autocast = torch.autocast(self.x0.device.type, enabled=False)
        hooks.run(self.model, self._homes, self._probe, self._probe.inputs(self.x0, self.draws), finish, autocast)

    def without_weight_gradients(self) -> None:
        """Forward, and backward to the outputs of all layers."""
        self._run(lambda name, calls: None)

    def factors(self, sharing: Sharing) -> Run:
        """Their sums over the inputs."""
        return lambda: self._run(FactorSums(sharing).add)

    def eigenvalues(self) -> Run:
        """EK-FAC's second moments. Any basis takes as long as another: the identity."""

        def identity(size: int) -> Tensor:
            return torch.eye(size, dtype=self.x0.dtype, device=self.x0.device)

        bases = {name: [identity(size) for size in reversed(layer.block)] for name, layer in self._homes.values()}
        return lambda: self._run(lambda name, calls: cast(None, rotated_squares(calls, *bases[name])))

    def written_out(self) -> int:
        """The multiplications of a aᵀ and b bᵀ, position by position."""
        total = 0

        def add(name: str, calls: list[hooks.Call]) -> None:
            nonlocal total
            for call in calls:
                out, columns = call.layer.block
                total += cast(Tensor, call.gradient).numel() // out * (out**2 + columns**2)

        self._run(add)
        return total
