"""How long features (projected gradients) take, how far projections put them off, and how long other libraries take for them."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.diffusion import eval_mode
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws
from attribution.measurements import Measure
from attribution.projection import SJLT, Gaussian, Identity, Kronecker, Projection, Rademacher
from experiments.speed import peers
from experiments.speed.timing import Row, in_turns, inputs, plain, quotient

FEATURES = 2048
MEMORY = 1e9
"""Bytes of a dense P that are kept between passes, ours and the other libraries' alike."""

PLAIN, NONE = "plain", "none"
SIZED: dict[str, Projection] = {
    "sjlt": SJLT(FEATURES),
    "rademacher": Rademacher(FEATURES, memory=MEMORY),
    "gaussian": Gaussian(FEATURES, memory=MEMORY),
}
"""Those with the same number of features as the other libraries'."""
KINDS: dict[str, Projection] = {NONE: Identity(), **SIZED, "kronecker": Kronecker(k_out=8, k_in=8)}


def feature_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Rows for every number of draws: ``examples`` of ``shape`` (C, H, W), all draws of all examples in one pass, in eval mode.

    For each kind of projection, with 2048 features (kronecker 8 × 8: as many as come out):

    - ``features, KIND / plain``: gradients of the loss averaged over draws and projected, over the plain pass. P is made before, as
      far as ``MEMORY`` keeps it; what of a dense P does not fit is made again, for these few examples.
    - ``error of cosines, KIND``: root mean square, over pairs of examples, of the cosine between their features less that between
      their gradients; no ratio of times.
    - ``traker / features, KIND``, ``dattri / features, KIND``: features of these packages as they are set by default, over ours;
      only where they are installed. ``P kept``: set to keep their matrix too, where ``MEMORY`` holds it.
    """
    rows: list[Row] = []
    for count in draws:
        x0, some = inputs(model, shape, examples, count, objective.process.T)
        gradients, measure = PerExampleGradients(model, batch_size=examples * count), objective
        ours = {kind: _Features(projection, gradients, measure, x0, some) for kind, projection in KINDS.items()}
        others = {
            **peers.traker_features(model, measure, x0, some, FEATURES, MEMORY),
            **peers.dattri_features(model, measure, x0, some, FEATURES, MEMORY),
        }
        runs = {PLAIN: plain(model, measure, x0, some), **{kind: one.run for kind, one in ours.items()}, **others}
        with eval_mode(model):
            seconds = in_turns(runs, repeats)
        found = {f"features, {kind} / plain": quotient(seconds[kind], seconds[PLAIN]) for kind in KINDS}
        for other, kind in itertools.product(others, SIZED):
            found[f"{other} / features, {kind}"] = quotient(seconds[other], seconds[kind])
        for kind in [kind for kind in KINDS if kind != NONE and examples > 1]:
            error = error_of_cosines(ours[kind].made, ours[NONE].made)
            found[f"error of cosines, {kind}"] = {"value": error, "low": None, "high": None, "features": ours[kind].size}
        rows += [{"metric": metric, **row, "examples": examples, "draws": count} for metric, row in found.items()]
    return rows


class _Features:
    """A projection's features of the inputs: ``made`` by each run."""

    made: Tensor

    def __init__(self, projection: Projection, gradients: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws):
        self._projector = projection.start(gradients.blocks, x0.device, x0.dtype)
        self.size = self._projector.size
        self._capture = lambda: gradients.capture(measure, x0, draws)

    def run(self) -> None:
        self.made = self._projector.features(self._capture())


def error_of_cosines(features: Tensor, gradients: Tensor) -> float:
    """Root mean square, over pairs of different rows, of the cosine between ``features [B, k]`` less that between ``gradients``."""
    pairs = torch.triu_indices(len(features), len(features), offset=1)
    found, exact = ((unit @ unit.T)[*pairs] for unit in (F.normalize(rows.double()) for rows in (features, gradients)))
    return (found - exact).square().mean().sqrt().item()
