"""Checks of what is known before training: draws that do not fit the process, an average that keeps the first steps, and whatever a
rehearsal of training finds.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.images import Images
from attribution.images.draws import DrawScheme
from attribution.measurements.elbo import Elbo
from attribution.nodes import Node
from experiments.metrics.duplicates import SAME, digests, duplicates
from experiments.models.experiment import Experiment
from experiments.models.rehearsal import check_sampler, rehearse
from experiments.models.trained import TrainedModel
from experiments.store.store import Store
from experiments.tasks.run_context import RunContext, print_notes

P = TypeVar("P")

_LISTED = 10
"""The largest number of names or groups of duplicates in a line."""
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
    """Check the draws of ``users``; unless a model trained here is stored, rehearse training and list duplicate training images.

    Raises:
        FieldError: A field has a value that would fail later.
    """
    check_draws(experiment, *users)
    check_measures(experiment, *users)
    check_sampler(experiment)  # which is no part of a stored model
    if not (isinstance(experiment.trained, TrainedModel) and store.has(experiment.trained)):
        rehearse(experiment)
        print_notes(notes_on_duplicates(experiment.data.load().train))


def notes_on_duplicates(train: Images) -> list[str]:
    """Return a line on training images that are equal, and one on pairs that are nearly equal, with their names."""
    found = duplicates(train, list(digests(train)))
    among, hint = f"of {len(train):,} training images", "copies share the score that one image would get"
    notes = []
    if found.equal:
        groups = [" = ".join(_first(map(train.name, group), len(group))) for group in found.equal[:_LISTED]]
        count = sum(map(len, found.equal))
        notes.append(f"note: {count:,} {among} have an exact copy ({hint}): {'; '.join(_first(groups, len(found.equal)))}")
    if found.near:
        pairs = [f"{train.name(a)} ~ {train.name(b)}" for a, b in found.near[:_LISTED]]
        least = "" if found.complete else "at least "
        count = f"{least}{len(found.near):,} pair{'s'[: len(found.near) != 1]}"
        measure = f"by at most {SAME:.0%} of the range of pixels (root mean square)"
        notes.append(f"note: {count} {among} differ {measure}: {'; '.join(_first(pairs, len(found.near)))}")
    return notes


def _first(items: Iterable[str], count: int) -> list[str]:
    """The first of ``count`` items, and the number of the others."""
    more = [f"and {count - _LISTED:,} more"] if count > _LISTED else []
    return [*itertools.islice(items, _LISTED), *more]


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
    for scheme in _parts(users, DrawScheme):
        scheme.check(T)


def check_measures(experiment: Experiment, *users: Any) -> None:
    """Check that no measure in ``users`` needs discrete pixels if the data have none.

    Raises:
        FieldError: The ELBO would be measured on latents.
    """
    for measure in _parts(users, Elbo):
        if not experiment.data.bounded:
            message = "the ELBO is a bound for images of discrete values, but the data have no bounds (latents); measure the loss"
            raise FieldError(measure, "levels", message)


def _parts(value: Any, kind: type[P]) -> Iterator[P]:
    """Yield the objects of a class that are among the fields of ``value``, at any depth."""
    if isinstance(value, kind):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, Node | type):
        for field in dataclasses.fields(value):
            yield from _parts(getattr(value, field.name), kind)
    elif isinstance(value, Mapping):
        yield from _parts(list(value.values()), kind)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _parts(part, kind)
