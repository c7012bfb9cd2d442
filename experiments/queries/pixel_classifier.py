"""A classifier that assigns unlabeled images to a source by their pixels."""

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

    def recall(self, held_out: Images) -> dict[int, np.ndarray]:
        """Return for each label in ``held_out`` which of its images are classified correctly, bool."""
        predicted = self._model.predict(_pixels(held_out))
        return {label: predicted[held_out.label == label] == label for label in np.unique(held_out.label).tolist()}


def _pixels(images: Images) -> np.ndarray:
    return images.x0().flatten(1).numpy()
