"""Where an image is from: a classifier for images that nobody labelled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from attribution.images import Images
from experiments.metrics.common import Estimate

UNKNOWN = -1
"""The label of an image whose source nobody says."""


class PixelClassifier:
    """Logistic regression from pixels to the labels of ``train``, every label of the same total weight."""

    def __init__(self, train: Images):
        self._model = LogisticRegression(max_iter=5000, class_weight="balanced").fit(_pixels(train), train.label)

    def labels(self, images: Images) -> np.ndarray:
        """``[N]``: the label where the image has one, else what its pixels say."""
        return np.where(images.label == UNKNOWN, self._model.predict(_pixels(images)), images.label)

    def recall(self, held_out: Images) -> dict[int, dict[str, Any]]:
        """For each label in ``held_out``, the share of its images that are told right, as ``share`` gives it."""
        told = self._model.predict(_pixels(held_out))
        labels = np.unique(held_out.label).tolist()
        return {label: share(told[held_out.label == label] == label) for label in labels}


def share(hits: np.ndarray) -> dict[str, Any]:
    """How many of some independent images are hits, with the exact 95 % interval (Clopper & Pearson 1934).

    Its ends differ where all of few images are hits too, where a bootstrap knows no doubt.
    """
    count = binomtest(int(hits.sum()), len(hits))
    low, high = count.proportion_ci(0.95, "exact")
    return {**Estimate(float(count.statistic), float(low), float(high))._asdict(), "n": len(hits)}


def check(sources: Mapping[int, str], train: Images) -> None:
    """Raises ValueError: ``sources`` are not two or more different names, one for each label of the training images."""
    labels = np.unique(train.label).tolist()
    if sorted(sources) != labels or len(set(sources.values())) < len(sources) or len(sources) < 2:
        raise ValueError(
            f"benchmark.sources={dict(sources)}: the training images have labels {labels}; give each its own name, of two "
            "sources at least (data=patches_digits and data=cifar_mnist have two)"
        )


def _pixels(images: Images) -> np.ndarray:
    return images.x0().flatten(1).numpy()
