"""Speed of features (projected gradients), the error of projections, and the speed of other libraries for the same features."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.diffusion import eval_mode
from attribution.gradients.per_example import PerExampleGradients, contracted_together
from attribution.images.draws import Draws
from attribution.measurements import Measure, SquareNorm
from attribution.projection import SJLT, Gaussian, Identity, Kronecker, Projection, Rademacher
from experiments.metrics.estimate import Estimate
from experiments.report.row import Row
from experiments.speed import peers
from experiments.speed.timing import Ratio, in_turns, inputs, plain, quotient, speed_row

FEATURES = 2048
MEMORY = 1e9
"""Bytes of a dense P to keep between passes, for our projections and those of other libraries."""

PLAIN, NONE = "plain", "none"
BOTH, APART = "both features", "apart"
SIZED: dict[str, Projection] = {
    "sjlt": SJLT(FEATURES),
    "rademacher": Rademacher(FEATURES, memory=MEMORY),
    "gaussian": Gaussian(FEATURES, memory=MEMORY),
}
"""The projections with the same number of features as those of the other libraries."""
KINDS: dict[str, Projection] = {NONE: Identity(), **SIZED, "kronecker": Kronecker(k_out=8, k_in=8)}


def feature_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Measure features for every number of ``draws``, with ``examples`` of ``shape`` (C, H, W) in one pass in eval mode.

    The rows for each number of draws and each kind of projection, with 2048 features (kronecker: 8 × 8 for each layer):

    - ``features, KIND / plain``: time of gradients averaged over draws and projected, over that of the plain pass. P is generated
      beforehand as far as it fits into ``MEMORY``; the rest of a dense P is generated again in each run.
    - ``both features / loss``: time of the gradients of the loss and of D-TRAK's square in one forward pass, over those of the loss
    - ``both features / apart``: the same over both in a forward pass each
    - ``error of cosines, KIND``: root mean square, over pairs of examples, of the difference between the cosine of their features
      and the cosine of their gradients; not a ratio of times
    - ``traker / features, KIND``, ``dattri / features, KIND``: time of these packages with their default settings over that of
      ours, if they are installed. With ``P kept``, they keep their matrix too, if it fits into ``MEMORY``.
    """
    rows: list[Row] = []
    for count in draws:
        x0, batch = inputs(model, shape, examples, count, objective.process.T)
        gradients, measure = PerExampleGradients(model, batch_size=examples * count), objective
        ours = {kind: ProjectedFeatures(projection, gradients, measure, x0, batch) for kind, projection in KINDS.items()}
        measures = (measure, SquareNorm(measure.process))
        captures = [partial(gradients.capture, each, x0, batch) for each in measures]

        def together(captures=captures) -> None:
            contracted_together([capture() for capture in captures], [[None], [None]])

        def apart(captures=captures) -> None:
            for capture in captures:
                capture().mean()

        others = {
            **peers.traker_features(model, measure, x0, batch, FEATURES, MEMORY),
            **peers.dattri_features(model, measure, x0, batch, FEATURES, MEMORY),
        }
        both = {BOTH: together, APART: apart}
        runs = {
            PLAIN: plain(model, measure, x0, batch),
            **both,
            **{kind: features.run for kind, features in ours.items()},
            **others,
        }
        with eval_mode(model):
            seconds = in_turns(runs, repeats)
        ratios = {f"features, {kind} / plain": quotient(seconds[kind], seconds[PLAIN]) for kind in KINDS}
        ratios |= {f"{BOTH} / {name}": quotient(seconds[BOTH], seconds[run]) for name, run in (("loss", NONE), (APART, APART))}
        for other, kind in itertools.product(others, SIZED):
            ratios[f"{other} / features, {kind}"] = quotient(seconds[other], seconds[kind])
        for kind in [kind for kind in KINDS if kind != NONE and examples > 1]:
            error = error_of_cosines(ours[kind].features, ours[NONE].features)
            ratios[f"error of cosines, {kind}"] = Ratio(Estimate(error), {"features": ours[kind].size})
        rows += [speed_row(metric, value, examples, count) for metric, value in ratios.items()]
    return rows


class ProjectedFeatures:
    """The features of the inputs under a projection; each ``run`` computes ``features``."""

    features: Tensor

    def __init__(self, projection: Projection, gradients: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws):
        self._projector = projection.start(gradients.blocks, x0.device, x0.dtype)
        self.size = self._projector.size
        self._capture = lambda: gradients.capture(measure, x0, draws)

    def run(self) -> None:
        self.features = self._projector.features(self._capture())


def error_of_cosines(features: Tensor, gradients: Tensor) -> float:
    """Return the root mean square, over pairs of rows, of cosine in ``features [B, k]`` minus cosine in ``gradients [B, P]``."""
    pairs = torch.triu_indices(len(features), len(features), offset=1)
    approximate, exact = ((unit @ unit.T)[*pairs] for unit in (F.normalize(rows.double()) for rows in (features, gradients)))
    return (approximate - exact).square().mean().sqrt().item()
