"""A classifier that assigns unlabelled images to a source by their pixels."""

from typing import Any

import numpy as np

from attribution.images import Images

UNKNOWN = -1
"""The label of an image whose source is unknown."""


class PixelClassifier:
    """Logistic regression from pixels to the labels of ``train``, with equal total weight for every label."""

    def __init__(self, train: Images):
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(max_iter=5000, class_weight="balanced").fit(_pixels(train), train.label)

    def labels(self, images: Images) -> np.ndarray:
        """Return the label of each image ``[N]``, predicted from the pixels where the label is unknown."""
        return np.where(images.label == UNKNOWN, self._model.predict(_pixels(images)), images.label)

    def recall(self, held_out: Images) -> dict[int, dict[str, Any]]:
        """Return label → share of the images with this label in ``held_out`` that are predicted correctly, as ``share`` does."""
        predicted = self._model.predict(_pixels(held_out))
        labels = np.unique(held_out.label).tolist()
        return {label: share(predicted[held_out.label == label] == label) for label in labels}


def share(hits: np.ndarray) -> dict[str, Any]:
    """Return the share of hits among independent images, its exact 95 % interval (Clopper & Pearson 1934), and their number.

    Keys: ``value``, ``low``, ``high`` and ``n``. The interval has a positive width even if all images are hits; the interval of a bootstrap would not.
    """
    from scipy.stats import binomtest

    test = binomtest(int(hits.sum()), len(hits))
    low, high = test.proportion_ci(0.95, "exact")
    return {"value": float(test.statistic), "low": float(low), "high": float(high), "n": len(hits)}


def _pixels(images: Images) -> np.ndarray:
    return images.x0().flatten(1).numpy()
