"""Means of gradients over draws: for prefixes of the draws, and by bins of their timesteps."""

from collections.abc import Callable

from torch import Tensor

from attribution.execution import ranges
from attribution.gradients.per_example import Captured, LayerGradients, PerExampleGradients
from attribution.images.bins import bin_of
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure

SHARED = ("attribution.gradients.per_example", "attribution.images.bins")

Mean = Callable[[Captured, Draws], LayerGradients]
"""Returns the (weighted) mean of the captured gradients over their draws."""


def prefix_means(
    per_example: PerExampleGradients,
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    condition: Tensor | None,
    scheme: DrawScheme,
    mean: Mean,
) -> list[LayerGradients]:
    """Return ``[bins, B, out, in]`` per layer for each prefix of the draws: the sum over the draws in each bin, divided by k.

    The prefixes are the first k draws, for each k in ``scheme.prefixes``. Every draw is evaluated once.
    """
    total: LayerGradients = {}
    means = []
    for start, stop in zip([0, *scheme.prefixes], scheme.prefixes, strict=False):
        added = _by_bin(per_example, measure, x0, draws.columns(slice(start, stop)), condition, scheme.bins, mean)
        for layer, gradient in added.items():
            total[layer] = total.get(layer, 0) + (stop - start) * gradient
        means.append({layer: gradient / stop for layer, gradient in total.items()})
    return means


def _by_bin(
    per_example: PerExampleGradients,
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    condition: Tensor | None,
    bins: int,
    mean: Mean,
) -> LayerGradients:
    """The sum over the draws in each bin, divided by the number of all draws."""
    if bins == 1:
        captured = per_example.capture(measure, x0, draws, condition)
        return {layer: g.unsqueeze(0) for layer, g in mean(captured, draws).items()}
    total: LayerGradients = {}
    # One pass of the network at a time: all bins share its gradients.
    for rows in ranges(0, len(draws), max(1, per_example.batch_size // draws.count)):
        for columns in ranges(0, draws.count, per_example.batch_size):
            batch = draws.rows(slice(*rows)).columns(slice(*columns))
            given = None if condition is None else condition[slice(*rows)]
            captured = per_example.capture(measure, x0[slice(*rows)], batch, given)
            captured.keep_calls()
            bin_ = bin_of(measure.timesteps(batch), bins, measure.process.T)
            for b in range(bins):
                for layer, g in mean(captured.where(bin_ == b), batch).items():
                    if layer not in total:
                        total[layer] = g.new_zeros(bins, len(draws), *g.shape[1:])
                    total[layer][b, slice(*rows)] += (batch.count / draws.count) * g
    return total
