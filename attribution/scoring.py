"""Attribution in one call: scores of training images for queries, without a configuration or a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from attribution.diffusion import Process
from attribution.estimators.base import Estimator
from attribution.estimators.by_name import estimator_by_name
from attribution.estimators.scores import Scores
from attribution.execution import Execution
from attribution.images import Images, ImageSet
from attribution.images.given import image_set
from attribution.measurements import Loss, Measure
from attribution.models.given import GivenModel
from attribution.models.in_memory import Copies, weights_of
from attribution.models.trained import Trained
from attribution.nodes import Get, InMemory
from attribution.training.given_checkpoints import GivenCheckpoints
from attribution.training.given_record import GivenRecord, RecordFolder
from attribution.training.selected import Matching

Pictures = Tensor | np.ndarray | Images | ImageSet
Checkpoint = nn.Module | Mapping[str, Tensor] | str | Path

VARIANT = "settings"
"""The axis of scores with several values of a setting."""


def attribute(
    network: nn.Module,
    process: Process,
    train: Pictures,
    queries: Pictures,
    estimator: str | Estimator = "kfac",
    *,
    checkpoints: Sequence[Checkpoint] | None = None,
    steps: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    record: str | Path | None = None,
    parameters: str | None = None,
    objective: Measure | None = None,
    seed: int = 0,
    flips: bool = False,
    execution: Execution | None = None,
    get: Get | None = None,
    **settings: Any,
) -> Scores:
    """Return the scores ``[Q, N]`` of all training images for all queries: above 0, training on the image lowered the query's loss.

    Args:
        network: the trained denoiser, called as ``network(x, time)`` with the time that ``process`` gives (t - 1 for a DDPM).
        process: its forward process, such as ``DDPM(NoiseSchedule())``.
        train, queries: images ``[N, C, H, W]``, uint8 in 0..255 or floats as the network takes them, or ``Images``, which may have
            ids and conditions. Draws are a function of the ids.
        estimator: a name of ``attribution.estimators.by_name.ESTIMATORS``, or an estimator.
        checkpoints: for estimators over training (tracincp, gas, tracin, retrac, guided): weights of ``network`` in the order of
            training, as modules, state dicts or files. The last is the explained model.
        steps: of each checkpoint; None: 1, 2, ...
        learning_rates: of each checkpoint; None: all have weight 1.
        record: in place of checkpoints, the folder of a ``LoopRecorder``.
        parameters: a regular expression found in the names of the parameters whose gradients count; None: all.
        objective: the training loss; None: the loss of ``process``.
        seed: of the draws; flips: whether training mirrored images at random.
        execution: device, memory and batch size; None: a GPU if there is one.
        get: an ``InMemory`` that several calls share, so that what they have in common is computed once.
        settings: of the estimator, such as ``damping=1e-6`` or ``draws=16``.

    Returns:
        The scores. If a setting has several values (``damping=[1e-8, 1e-6]``), they are ``[S, Q, N]`` and
        ``scores.at(settings={"estimator.damping": 1e-8})`` are those of one.

    Raises:
        ValueError: an unknown estimator or setting; images, weights or a process that do not fit; a layer without per-example
            gradients; an estimator that needs more of the training than is given.
    """
    objective = objective or Loss(process)
    if isinstance(estimator, str):
        estimator = estimator_by_name(estimator, objective, seed=seed, flips=flips, execution=execution, **settings)
    elif settings:
        raise ValueError(f"{next(iter(settings))}: set it in the estimator that is given, or choose the estimator by its name")
    images, explained = image_set(train), image_set(queries)
    get = get or InMemory()
    model: Copies = Copies(getattr(network, "_orig_mod", network))  # of a compiled network
    trained: Trained
    if record is not None and checkpoints is None:
        trained = _recorded(model, objective, str(record), get(images).index)
    elif record is not None:
        raise ValueError("give either checkpoints or record, which has checkpoints of its own")
    elif checkpoints is not None:
        trained = GivenCheckpoints(
            model=model,
            objective=objective,
            weights=tuple(weights_of(model.network, checkpoint) for checkpoint in checkpoints),
            steps=tuple(range(1, len(checkpoints) + 1) if steps is None else steps),
            learning_rates=None if learning_rates is None else tuple(learning_rates),
            seed=seed,
            flips=flips,
        )
    else:
        trained = GivenModel(model=model, objective=objective, weights=weights_of(model.network, model.network))
    if parameters is not None:
        trained = Matching(parameters).of(trained)
    scores = get(estimator.scores(trained, images, explained))
    variants = estimator.variants(scores)
    if len(variants) == 1:
        return variants[0][1]
    values = np.stack([of_variant.values for _, of_variant in variants])
    return Scores(values, scores.query_index, scores.train_index, {VARIANT: [setting for setting, _ in variants]}, scores.halves)


def _recorded(model: Copies, objective: Measure, folder: str, ids: np.ndarray) -> GivenRecord:
    record = RecordFolder(folder)
    record.check(objective.process, ids)
    weights = tuple(weights_of(model.network, record.checkpoint(step)) for step in record.info["checkpoints"])
    average = None if record.average is None else weights_of(model.network, record.average)
    return GivenRecord(model=model, objective=objective, weights=weights, record=record, average=average)
