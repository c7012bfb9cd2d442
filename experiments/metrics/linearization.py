"""How far predicted changes are from true ones: pure functions of ``[.., Q, M]``, Q queries and M sets of removed images."""

import numpy as np

from experiments.metrics.bootstrap import UNLIMITED, Bootstrap, Statistic
from experiments.metrics.lds import SUBSETS

ERROR_LIMITS = (0.0, 1.0)


def relative_errors(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray, scaled: bool) -> np.ndarray:
    """``‖predicted - true‖ / ‖true‖`` over the sets, which count ``weights [B, M]`` times: ``[Q, M], [Q, M] -> [B, Q]``.

    With ``scaled``, ``predicted`` is multiplied by the factor of at least 0 that makes the error least, which is then at most 1.
    Queries without a true change have NaN.
    """
    of_true = weights @ (true * true).T
    of_true = np.where(of_true > 0, of_true, np.nan)
    if not scaled:
        return np.sqrt(weights @ ((predicted - true) ** 2).T / of_true)
    product, of_predicted = np.maximum(weights @ (predicted * true).T, 0), weights @ (predicted * predicted).T
    cosine = np.divide(product, np.sqrt(of_predicted * of_true), out=np.zeros_like(product), where=of_predicted > 0)
    return np.where(np.isnan(of_true), np.nan, np.sqrt(np.clip(1 - cosine**2, 0, 1)))


def mean_error(predicted: np.ndarray, true: np.ndarray, bootstrap: Bootstrap, scaled: bool) -> Statistic:
    """The mean of the relative errors over queries, with deviations over queries and over sets: ``[Q, M], [Q, M]``."""
    Q, M = true.shape
    value = relative_errors(predicted, true, np.ones((1, M)), scaled)[0]
    over_sets = relative_errors(predicted, true, bootstrap.counts(SUBSETS, M), scaled).mean(1)
    over_queries = bootstrap.counts("queries", Q) @ value / Q
    resampled = {"queries": (over_queries, Q), SUBSETS: (over_sets, M)}
    return bootstrap.statistic(value.mean(), resampled, ERROR_LIMITS if scaled else UNLIMITED)
