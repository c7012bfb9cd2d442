"""The source of an image: a classifier of pixels for images without a label."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from attribution.images import Images
from experiments.metrics.estimate import Estimate

UNKNOWN = -1
"""The label of an image of unknown source."""


class PixelClassifier:
    """Logistic regression from pixels to the labels of ``train``, every label with the same total weight."""

    def __init__(self, train: Images):
        self._model = LogisticRegression(max_iter=5000, class_weight="balanced").fit(_pixels(train), train.label)

    def labels(self, images: Images) -> np.ndarray:
        """The label of each image, ``[N]``: its own where it has one, otherwise the predicted one."""
        return np.where(images.label == UNKNOWN, self._model.predict(_pixels(images)), images.label)

    def recall(self, held_out: Images) -> dict[int, np.ndarray]:
        """For each label in ``held_out``, which of its images are classified correctly, bool."""
        predicted = self._model.predict(_pixels(held_out))
        return {label: predicted[held_out.label == label] == label for label in np.unique(held_out.label).tolist()}


def share(hits: np.ndarray) -> Estimate:
    """The share of hits among independent images, with the exact 95 % interval (Clopper & Pearson 1934).

    Its ends differ even if all of a few images are hits; a bootstrap interval would have no width.
    """
    count = binomtest(int(hits.sum()), len(hits))
    low, high = count.proportion_ci(0.95, "exact")
    return Estimate(float(count.statistic), float(low), float(high))


def check(sources: Mapping[int, str], train: Images) -> None:
    """Check that every label of the training images has a name.

    Raises:
        ValueError: ``sources`` are not two or more different names, one for each label of the training images.
    """
    labels = np.unique(train.label).tolist()
    if sorted(sources) != labels or len(set(sources.values())) < len(sources) or len(sources) < 2:
        raise ValueError(
            f"benchmark.sources={dict(sources)}: the training images have labels {labels}; give each its own name, of two "
            "sources at least (data=patches_digits and data=cifar_mnist have two)"
        )


def _pixels(images: Images) -> np.ndarray:
    return images.x0().flatten(1).numpy()
