"""Means of gradients over draws: for prefixes of the draws, by bins of their timesteps, and with several weights in one pass."""

from collections.abc import Callable, Sequence

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
    means: Sequence[Mean],
) -> list[list[LayerGradients]]:
    """Return, for each of ``means`` and each prefix of the draws, ``[bins, B, out, in]`` per layer.

    They are sums over the draws in each bin, divided by k. The prefixes are the first k draws, for each k in ``scheme.prefixes``.
    Every draw is evaluated once. No result depends on which other means are computed with it.
    """
    totals: list[LayerGradients] = [{} for _ in means]
    results: list[list[LayerGradients]] = [[] for _ in means]
    for start, stop in zip([0, *scheme.prefixes], scheme.prefixes, strict=False):
        sums = _sums_by_bin(per_example, measure, x0, draws.columns(slice(start, stop)), condition, scheme.bins, means)
        for total, added, result in zip(totals, sums, results, strict=True):
            for layer, gradient in added.items():
                total[layer] = total[layer] + gradient if layer in total else gradient
            if stop == scheme.prefixes[-1]:  # the totals are not needed any more
                result.append({layer: gradient.div_(stop) for layer, gradient in total.items()})
            else:
                result.append({layer: gradient / stop for layer, gradient in total.items()})
    return results


def _sums_by_bin(
    per_example: PerExampleGradients,
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    condition: Tensor | None,
    bins: int,
    means: Sequence[Mean],
) -> list[LayerGradients]:
    """The sums over the draws in each bin, for each of ``means``."""
    totals: list[LayerGradients] = [{} for _ in means]
    size = per_example.inputs_per_pass(measure, x0, draws, condition)
    # One pass of the network at a time: all bins and means share its gradients.
    for rows in ranges(0, len(draws), max(1, size // draws.count)):
        for columns in ranges(0, draws.count, size):
            batch = draws.rows(slice(*rows)).columns(slice(*columns))
            given = None if condition is None else condition[slice(*rows)]
            captured = per_example.capture(measure, x0[slice(*rows)], batch, given)
            if bins > 1 or len(means) > 1:
                captured.keep_calls()
            bin_ = bin_of(measure.timesteps(batch), bins, measure.process.T)
            for b in range(bins):
                inside = captured if bins == 1 else captured.where(bin_ == b)
                for total, mean in zip(totals, means, strict=True):
                    for layer, g in mean(inside, batch).items():
                        if layer not in total:
                            total[layer] = g.new_zeros(bins, len(draws), *g.shape[1:])
                        total[layer][b, slice(*rows)].add_(g, alpha=batch.count)
    return totals
