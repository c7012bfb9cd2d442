"""The settings of an explained model and its data, and the nodes that they define."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from attribution.checks import FieldError
from attribution.diffusion import Process
from attribution.diffusion.samplers import Sampler, TransitionSampler
from attribution.execution import Execution
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.training import Recorded, require_record
from attribution.training.checkpoints import CheckpointRule
from attribution.training.recipe import Hardware, Recipe
from attribution.training.selected import ALL, Parameters
from experiments.datasets import Source, Split
from experiments.models.explained import TRAINED_HERE, Explained
from experiments.models.sample_conditions import SampleConditions
from experiments.models.samples import Samples
from experiments.models.trained import LoggerFor, TrainedModel


@dataclass(frozen=True)
class Diffusion:
    """The forward process that training uses and the sampler that generation uses."""

    process: Process
    sampler: Sampler


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One explained model and its data."""

    data: Source
    model: Callable[[], nn.Module]
    diffusion: Diffusion
    objective: Measure
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    trainer: Recipe
    checkpoints: CheckpointRule
    seed: int
    hardware: Hardware
    execution: Execution
    explained: Explained = TRAINED_HERE
    parameters: Parameters = ALL
    logger: LoggerFor | None = None

    def __post_init__(self):
        """Raises FieldError: the sampler clips values that have no bounds, or guides a network trained with all its conditions."""
        sampler = self.diffusion.sampler
        if sampler.guidance != 1 and (self.data.condition is None or not self.objective.condition_dropout):
            message = (
                "must be 1 (none): guidance needs conditions, and training that drops some of them: choose condition=labels or "
                "embeddings with condition.dropout above 0, or that of the training of a given model"
            )
            raise FieldError(sampler, "guidance", message)
        if not self.data.bounded and isinstance(sampler, TransitionSampler) and sampler.clip:
            message = "must be false: the values of the data have no bounds (latents), and the sampler would clip them to [-1, 1]"
            raise FieldError(sampler, "clip", message)

    @property
    def train(self) -> Split:
        """The training images."""
        return Split(self.data, "train")

    @cached_property
    def trained(self) -> Trained:
        """The explained model.

        Raises:
            FieldError: a given model does not fit the network or the images of the run.
        """
        self.explained.check_shape(self.shape)
        return self.explained.of(self.training)

    @cached_property
    def attributed(self) -> Trained:
        """The explained model with gradients of the chosen ``parameters`` only.

        Raises:
            FieldError: there are no such parameters.
        """
        return self.parameters.of(self.trained)

    @property
    def recorded(self) -> Recorded:
        """The explained model with the record of its training.

        Raises:
            RecordError: it has no record, or checkpoints only.
        """
        return require_record(self.attributed, "this benchmark", visits=True)

    @property
    def checkpointed(self) -> Recorded:
        """The explained model with its checkpoints.

        Raises:
            RecordError: it has final parameters only.
        """
        return require_record(self.attributed, "this benchmark")

    @property
    def training(self) -> TrainedModel:
        """The training run that the settings describe: of the explained model if it is trained here, and of retrained models."""
        return TrainedModel(
            model=self.model,
            objective=self.objective,
            data=self.train,
            optimizer=self.optimizer,
            recipe=self.trainer,
            checkpoints=self.checkpoints,
            seed=self.seed,
            flips=self.data.flips,
            hardware=self.hardware,
            logger=self.logger,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.data.shape

    def samples(self, n: int, seed: int) -> Samples:
        """``n`` images that the trained model generates."""
        condition = self.data.condition
        return Samples(
            trained=self.trained,
            sampler=self.diffusion.sampler,
            shape=self.shape,
            n=n,
            seed=seed,
            execution=self.execution,
            display=self.data.display,
            decoder=self.data.decoder,
            conditions=None if condition is None else SampleConditions(self.train, condition.generated),
        )
