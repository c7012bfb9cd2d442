"""A rehearsal of training: what would fail later is found on an untrained network, before anything is computed."""

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from attribution.checks import FieldError
from attribution.diffusion.denoiser import denoiser, eval_mode, without_label_dropout
from attribution.diffusion.network_arguments import EMBEDDING, ConditionError, NetworkArguments, null_class
from attribution.images.conditions import null
from attribution.images.draws import random_draws
from attribution.measurements import Inputs
from attribution.models.trained import one_line, untrained
from experiments.datasets.conditions import Embeddings, Labels
from experiments.models.experiment import Experiment
from experiments.models.rank_processes import hardware_of
from experiments.models.trained import quiet_lightning

_TOLERANCE = 1e-3
"""The largest difference between equal outputs, relative to their norm; rounding depends on the size of a batch."""


def rehearse(experiment: Experiment) -> None:
    """Train an untrained network for one step on one or two images of the training set, on the CPU.

    Raises:
        FieldError: The network cannot be constructed, fails on the images, returns another shape or type, mixes the images of a
            batch or is random in eval mode; the optimizer, the schedule of learning rates, the checkpoints or the hardware do not
            work, or the sampler is for another process. The field is one of ``experiment``, or of an object that it holds.
    """
    from attribution.training.trainer import check_hardware  # Lightning, which takes seconds to import

    quiet_lightning()

    experiment.training.candidates  # noqa: B018 (raises)
    check_hardware(experiment.trainer, hardware_of(experiment.training), experiment.train.count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = without_label_dropout(untrained(experiment))
        if not any(p.requires_grad for p in network.parameters()):
            raise FieldError(experiment, "model", "the network has no trainable parameter: set requires_grad=True on some")
        dtype = torch.float64 if experiment.trainer.precision == "64-true" else torch.float32
        network = network.to(dtype) if dtype == torch.float64 else network
        _check_null_class(experiment, network)
        _check_pooled(experiment, network)
        inputs = _inputs(experiment, dtype)
        _check_eval(experiment, network, inputs)
        _step(experiment, network, inputs)


def check_sampler(experiment: Experiment) -> None:
    """Raise FieldError if the sampler does not fit the process."""
    try:
        experiment.diffusion.sampler.levels(experiment.diffusion.process)
    except FieldError:
        raise
    except ValueError as error:
        message = f"{error}: choose both by one diffusion= (with explained=pipeline, a rectified flow: pipeline_flow)"
        raise FieldError(experiment, "diffusion", message) from error


def _inputs(experiment: Experiment, dtype: torch.dtype) -> Inputs:
    """The arguments of the objective for two images, or for one if the last batch of an epoch has only one."""
    images = experiment.data.load().train
    last = len(images) % experiment.trainer.batch_size or experiment.trainer.batch_size
    rows = slice(min(2, last))
    draws = random_draws(
        0, "rehearsal", images.ids(rows)[:, None], torch.zeros(1, dtype=torch.int64), experiment.diffusion.process.T
    )
    inputs = experiment.objective.inputs(images.x0(rows).to(dtype), draws, images.conditions(rows))
    return inputs._replace(condition=_extreme(experiment, inputs.condition))


def _extreme(experiment: Experiment, condition: Tensor | None) -> Tensor | None:
    """``condition [B, ...]`` with the largest class and, if training drops conditions, none for the last image."""
    if condition is None:
        return None
    if isinstance(classes := experiment.data.condition, Labels):
        condition = torch.full_like(condition, classes.classes - 1)
    if experiment.objective.condition_dropout:
        condition[-1:] = null(condition[-1:])
    return condition


def _check_null_class(experiment: Experiment, network: nn.Module) -> None:
    """Check that the network's class for a dropped one is not one of the data."""
    classes = experiment.data.condition
    if isinstance(classes, Labels) and experiment.objective.condition_dropout and null_class(network) != classes.classes:
        found = "none" if null_class(network) is None else f"class {null_class(network)}"
        message = (
            f"training drops classes, and class {classes.classes} (condition.classes) stands for a dropped one, but the network "
            f"has {found} for it: give its table {classes.classes + 1} rows (num_class_embeds of U-Nets; an attribute null_class "
            "of a network of your own), or set condition.dropout=0"
        )
        raise FieldError(experiment, "model", message)


def _check_pooled(experiment: Experiment, network: nn.Module) -> None:
    """Check that a network gets a pooled embedding only if it takes one."""
    given = experiment.data.condition
    if isinstance(given, Embeddings) and given.pooled and not NetworkArguments(network).takes_pooled:
        raise FieldError(
            given, "pooled", f"{type(network).__name__} takes no second embedding: set 0, or choose a network as in SD3"
        )


def _check_eval(experiment: Experiment, network: nn.Module, inputs: Inputs) -> None:
    with eval_mode(network), torch.no_grad():
        together, again = _output(experiment, network, inputs), _output(experiment, network, inputs)
        if not _equal(together, again):
            raise FieldError(experiment, "model", "the network is random in eval mode: switch its dropout and noise off there")
        alone = torch.cat([_output(experiment, network, inputs.rows(slice(i, i + 1))) for i in range(len(inputs.t))])
        if not _equal(together, alone):
            message = "the network's output for an image depends on the other images of its batch in eval mode"
            raise FieldError(experiment, "model", f"{message}: make it independent of them")


def _output(experiment: Experiment, network: nn.Module, inputs: Inputs) -> Tensor:
    x0, t, noise, condition = inputs
    x_t = experiment.diffusion.process.add_noise(x0, t, noise)
    try:
        return experiment.objective.output(denoiser(network), x_t, t, condition)
    except ConditionError as error:
        message = f"{error} (condition=labels, embeddings, with condition.pooled if there are two, or none, and a network for it)"
        raise FieldError(experiment, "model", message) from error
    except ValueError as error:
        raise FieldError(experiment, "model", str(error)) from error
    except Exception as error:  # the network may be anyone's
        shape = "×".join(map(str, experiment.shape))
        lacks = condition is None and EMBEDDING in NetworkArguments(network).names
        without = f" without a condition ({EMBEDDING}), which it may need" if lacks else ""
        message = f"the network fails on images of {shape}{without} ({one_line(error)}): change its settings, or the data"
        raise FieldError(experiment, "model", message) from error


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _TOLERANCE * one.norm().clamp_min(1e-6)) or not bool(one.isfinite().all())


def _step(experiment: Experiment, network: nn.Module, inputs: Inputs) -> None:
    """Take a training step."""
    network.train()
    try:
        loss = experiment.objective(denoiser(network), *inputs).mean()
    except Exception as error:  # for example BatchNorm, which takes no batch of one image
        message = f"the network fails in training on {len(inputs.t)} images ({one_line(error)}): change it, or trainer.batch_size"
        raise FieldError(experiment, "model", message) from error
    if not loss.requires_grad:
        raise FieldError(experiment, "model", "the network's output does not depend on a trainable parameter: do not detach it")
    loss.backward()
    try:
        optimizer = experiment.optimizer(p for p in network.parameters())
        rates = {group["lr"] for group in optimizer.param_groups}
        optimizer.step(loss.item)  # for those that take a closure
    except Exception as error:  # the optimizer may be anyone's
        message = f"the optimizer cannot take a step ({one_line(error)}): change its settings"
        raise FieldError(experiment, "optimizer", message) from error
    if rates == {0}:
        raise FieldError(experiment, "optimizer", "the learning rate is 0, and nothing would be learned: set lr above 0")
    steps = experiment.trainer.steps
    get_scheduler(experiment.trainer.lr_schedule, optimizer, num_warmup_steps=0, num_training_steps=steps)
