"""Attribution in one call: scores of training images for queries, without a configuration or a store."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.diffusion import Process
from attribution.diffusion.denoiser import denoiser
from attribution.diffusion.network_arguments import null_class
from attribution.estimators.base import Estimator
from attribution.estimators.by_name import ESTIMATORS, estimator_by_name
from attribution.estimators.scores import Scores
from attribution.execution import Execution
from attribution.images import Images, ImageSet
from attribution.images.conditions import NULL_CLASS
from attribution.images.given import image_set
from attribution.measurements import Loss, Measure
from attribution.models.given import GivenModel, Weights
from attribution.models.in_memory import Copies, State, weights_of
from attribution.models.trained import one_line
from attribution.nodes import Get, InMemory
from attribution.training.given_checkpoints import GivenCheckpoints
from attribution.training.given_record import RecordFolder, given_record
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
        estimator: a name of ``attribution.estimators.by_name.ESTIMATORS``, or an estimator, which has its own settings.
        checkpoints: for estimators over training (tracincp, gas, tracin, retrac, guided): weights of ``network`` in the order of
            training, as modules, state dicts or files. The last is the explained model.
        steps: of each checkpoint; None: 1, 2, ...
        learning_rates: of each checkpoint; None: all have weight 1.
        record: in place of checkpoints, the folder of a ``LoopRecorder``. Of its checkpoints, tracin, retrac and guided take those
            by which training had visited every image.
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
    _check_kinds(network, process, estimator)
    objective = objective or Loss(process)
    if objective.process != process:
        raise ValueError("objective is a loss of another process: make it with the process that is given")
    if isinstance(estimator, str):
        chosen = estimator_by_name(estimator, objective, seed=seed, flips=flips, execution=execution, **settings)
    elif own := [*settings, *(["execution"] if execution is not None else [])]:
        raise ValueError(f"{own[0]}: set it in the estimator that is given, or choose the estimator by its name")
    else:
        chosen = estimator
    images, explained = image_set(train), image_set(queries)
    get = get or InMemory()
    model: Copies = Copies(getattr(network, "_orig_mod", network))  # of a compiled network
    _check_classes(model.network, objective, train=get(images), queries=get(explained))
    for name, given in {"train": images, "queries": explained}.items():
        _check_network(model, objective, get(given), name)
    if record is not None:
        if any(given is not None for given in (checkpoints, steps, learning_rates)):
            raise ValueError("give either record, which has checkpoints of its own, or checkpoints, steps and learning_rates")
        ids, read = get(images).index, functools.partial(weights_of, model.network)
        trained = given_record(model, objective, RecordFolder(str(record)), ids, read)
        visited = tuple(step for step in trained.steps if step >= trained.record.info["steps_per_epoch"])
        if isinstance(estimator, str) and chosen.RECORDED_DRAWS and visited:
            chosen = replace(chosen, checkpoints=visited)
    elif checkpoints is not None:
        weights = tuple(weights_of(model.network, checkpoint) for checkpoint in _listed("checkpoints", checkpoints))
        _check_copies(weights)
        trained = GivenCheckpoints(
            model=model,
            objective=objective,
            weights=weights,
            steps=tuple(range(1, len(weights) + 1)) if steps is None else _listed("steps", steps),
            learning_rates=None if learning_rates is None else _listed("learning_rates", learning_rates),
            seed=seed,
            flips=flips,
        )
    elif steps is not None or learning_rates is not None:
        raise ValueError(f"{'steps' if steps is not None else 'learning_rates'}: give checkpoints as well, one for each")
    else:
        trained = GivenModel(model=model, objective=objective, weights=weights_of(model.network, model.network))
    if parameters is not None:
        trained = Matching(parameters).of(trained)
    scores = get(chosen.scores(trained, images, explained))
    variants = chosen.variants(scores)
    if len(variants) == 1:
        return variants[0][1]
    values = np.stack([of_variant.values for _, of_variant in variants])
    cross = None if scores.cross is None else np.stack([of_variant.cross for _, of_variant in variants])  # pyright: ignore[reportCallIssue, reportArgumentType]
    axes = {VARIANT: [setting for setting, _ in variants]}
    return Scores(values, scores.query_index, scores.train_index, axes, scores.halves, cross)


def _check_classes(network: nn.Module, objective: Measure, **given: Images) -> None:
    """Check the classes of ``given`` images.

    Raises:
        ValueError: the network does not have such a class, or has none for no class although training dropped classes.
    """
    name, last = type(network).__name__, null_class(network)
    for argument, images in given.items():
        classes = images.condition
        if classes is None or classes.dtype.kind not in "iu":
            continue
        if last is None and objective.condition_dropout:
            message = f"training drops classes by the objective, but {name} has no class for that"
            raise ValueError(f"{message}: give it an attribute null_class, or set condition_dropout=0")
        if last is not None and classes.size and not (classes.min() >= NULL_CLASS and classes.max() <= last):
            found = f"classes {classes.min()}..{classes.max()}"
            raise ValueError(
                f"{argument} has {found}, but {name} has a table of 0..{last}: give these, or {NULL_CLASS} for no class"
            )


def _check_kinds(network: Any, process: Any, estimator: Any) -> None:
    """Check the arguments without which nothing else can be checked."""
    for name, value, kind in (
        ("network", network, nn.Module),
        ("process", process, Process),
        ("estimator", estimator, str | Estimator),
    ):
        if not isinstance(value, kind):
            shown = f"is the class {value.__name__}" if isinstance(value, type) else f"has the type {type(value).__name__}"
            right = {
                "network": "give a torch.nn.Module",
                "process": "give a process of attribution.diffusion, such as DDPM(NoiseSchedule())",
                "estimator": f"give one of {', '.join(ESTIMATORS)}, or an object of a class of attribution.estimators",
            }
            raise ValueError(f"{name} {shown}: {right[name]}")


def _check_network(model: Copies, objective: Measure, images: Images, name: str) -> None:
    """Check that the network denoises ``images``: one on the meta device, or on the CPU if it does not run there.

    Of classes the smallest and the largest are tried, on the CPU, because only values show whether the network has them.

    Raises:
        ValueError: it does not.
    """
    classes = None if images.condition is None or images.condition.ndim > 1 else images.condition
    rows = [0] if classes is None else [int(classes.argmin()), int(classes.argmax())]
    x, condition = images.x0(rows), images.conditions(rows)
    t, failed = torch.full((len(rows),), objective.process.T), None
    for device in ("meta", "cpu") if classes is None else ("cpu",):
        with torch.device(device):
            network = model().eval()
        dtype = next(network.parameters(), x).dtype
        try:
            with torch.no_grad():
                given = None if condition is None else condition.to(device)
                objective.output(denoiser(network), x.to(device, dtype), t.to(device), given)
            return
        except Exception as error:  # the network may be anyone's
            failed = error
    if isinstance(failed, ValueError):
        raise failed
    assert failed is not None
    of = "" if classes is None else f" of the classes {classes.min()} to {classes.max()}"
    raise ValueError(
        f"{name}: the network cannot denoise images {list(x.shape[1:])}{of} ({one_line(failed)}): give images like those that "
        "it was trained on, and a network called as network(x, t)"
    ) from failed


def _check_copies(checkpoints: Sequence[Weights]) -> None:
    """Raise ValueError if two checkpoints are the same tensors in memory, which have the latest values only."""
    places: dict[int, int] = {}
    for i, checkpoint in enumerate(checkpoints):
        for tensor in list(checkpoint.state.values())[:1] if isinstance(checkpoint, State) else ():
            if (first := places.setdefault(tensor.data_ptr(), i)) != i:
                raise ValueError(
                    f"checkpoints {first} and {i} are the same tensors, so both have the latest weights: state_dict() copies "
                    "nothing, copy.deepcopy(network.state_dict()) does"
                )


def _listed(name: str, values: Any) -> tuple:
    """``values`` as a tuple, with numbers of NumPy and torch as Python's."""
    if isinstance(values, str | Path | Mapping | nn.Module) or not isinstance(values, Iterable):
        raise ValueError(f"{name} has the type {type(values).__name__}: give a list, in the order of training")
    return tuple(values.tolist() if isinstance(values, Tensor | np.ndarray) else values)
