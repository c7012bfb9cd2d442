"""Models of which everything is known that their training takes, so that it can be computed again from the beginning."""

from abc import ABC
from collections.abc import Callable, Iterable

import torch
from torch import nn

from attribution.checks import FieldError
from attribution.models.trained import Trained
from attribution.training.recipe import Recipe
from attribution.training.record import Recorded, RecordError
from attribution.training.selected import Matching, Selected

SHARED = ("attribution.models.trained", "attribution.training.record", "attribution.training.selected")


class Repeatable(Recorded, ABC):
    """A model that was trained here: its record, with these settings, says all that a repetition of its training needs."""

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    recipe: Recipe
    seed: int


def require_repeatable(trained: Trained, user: str) -> Repeatable:
    """Return ``trained`` as a model that ``user`` can train again, step by step.

    Raises:
        RecordError: it was trained elsewhere.
        FieldError: only a part of its parameters is attributed to.
    """
    if isinstance(trained, Selected):
        message = f"{user} differentiates a training run, which moves all parameters: attribute to all of them"
        raise FieldError(Matching(trained.pattern), "pattern", message)
    if not isinstance(trained, Repeatable):
        raise RecordError(
            f"{user} computes the whole training of a model again, but {type(trained).__name__} does not say how: train the model "
            "here, or choose an estimator that works on a final model, such as K-FAC influence or TRAK"
        )
    return trained
