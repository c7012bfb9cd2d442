"""Checks of what is known before training: draws that do not fit the process, an average that keeps the first steps, and whatever a
rehearsal of training finds.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.images.draws import DrawScheme
from attribution.nodes import Node
from experiments.models.experiment import Experiment
from experiments.models.rehearsal import rehearse
from experiments.models.trained import TrainedModel
from experiments.store.store import Store
from experiments.tasks.run_context import RunContext

_FIRST_WEIGHT = 0.01
"""The weight of the first step in the parameter average above which the average is far from converged."""


def check_before_training(run: RunContext, *users: Any) -> None:
    """Check the draws of ``users`` (estimators, a benchmark), and rehearse the training unless its result is stored.

    Warn of a parameter average that is far from converged.

    Raises:
        FieldError: A field has a value that would fail later.
    """
    check_experiment(run.experiment, run.store, *users)
    if not isinstance(run.experiment.trained, TrainedModel):
        return
    recipe = run.experiment.training.recipe
    if recipe.ema_first_weight > _FIRST_WEIGHT:
        message = (
            f"trainer.ema={recipe.ema} over trainer.steps={recipe.steps} keeps {recipe.ema_first_weight:.0%} of the weights of the "
            "first step in the averaged model: set trainer.ema_warmup=true, lower trainer.ema, or train longer"
        )
        print(f"warning: {message}")
        run.report.warn(message)  # also beside the results


def check_experiment(experiment: Experiment, store: Store, *users: Any) -> None:
    """Check the draws of ``users``, and rehearse the training unless its result is in the store.

    Raises:
        FieldError: A field has a value that would fail later.
    """
    check_draws(experiment, *users)
    if not store.has(experiment.trained):
        rehearse(experiment)


def check_draws(experiment: Experiment, *users: Any) -> None:
    """Check that every draw scheme in ``users`` fits the timesteps of the process, and that no list of swept values is empty.

    Raises:
        FieldError: A scheme needs other timesteps or has more bins than there are, or an estimator has no value of a setting.
    """
    for user in users:
        swept = user.requested() if isinstance(user, Estimator) else {}
        if empty := [name for name, values in swept.items() if not values]:
            raise FieldError(user, empty[0], "give at least one value")
    T = experiment.diffusion.process.T
    for scheme in _schemes(users):
        scheme.check(T)


def _schemes(value: Any) -> Iterator[DrawScheme]:
    if isinstance(value, DrawScheme):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, Node | type):
        for field in dataclasses.fields(value):
            yield from _schemes(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield from _schemes(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _schemes(part)
