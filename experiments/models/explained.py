"""The explained model (``explained=``): trained here, or given with its weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from attribution.checks import FieldError
from attribution.diffusion import Process
from attribution.models.adapters import AdapterWeights, adapters_in
from attribution.models.given import GivenModel, Weights
from attribution.models.lora import LoRA
from attribution.models.pipeline import PipelineNetwork, PipelineWeights, pipeline_at
from attribution.models.trained import Trained
from attribution.models.weights import WeightsFile
from experiments.models.trained import TrainedModel


class Explained(ABC):
    """Where the explained model comes from."""

    @abstractmethod
    def of(self, training: TrainedModel) -> Trained:
        """The explained model. ``training`` describes how a model would be trained here."""

    def check_shape(self, shape: tuple[int, int, int]) -> None:  # noqa: B027 (most have nothing to check)
        """Raise FieldError if the model is known to take images of a shape other than ``shape`` (C, H, W)."""


@dataclass(frozen=True)
class FromTraining(Explained):
    """The model is trained here, and its training is recorded."""

    def of(self, training: TrainedModel) -> TrainedModel:
        return training


@dataclass(frozen=True)
class FromPipeline(Explained):
    """The model of a pipeline of diffusers at ``path``: a folder, or a name in the Hugging Face cache.

    The network and the forward process are the pipeline's as well (``model=pipeline diffusion=pipeline``).

    Raises:
        FieldError: there is no such pipeline, or it has no network that can be explained.
    """

    path: str

    def __post_init__(self):
        pipeline_process(self.path)

    def of(self, training: TrainedModel) -> GivenModel:
        if training.model != PipelineNetwork(self.path) or training.process != pipeline_process(self.path):
            raise FieldError(self, "path", "the pipeline has its own network and process: set model=pipeline diffusion=pipeline")
        return GivenModel(model=training.model, objective=training.objective, weights=PipelineWeights(self.path))

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        try:
            pipeline_at(self.path).check_shape(shape)
        except ValueError as error:
            raise FieldError(self, "path", str(error)) from error


@dataclass(frozen=True)
class FromCheckpoint(Explained):
    """The network of the run (``model=``) with the weights in the file ``path``: a state dict, or a checkpoint that has one.

    With ``model=lora``, the file may have the adapters alone.

    ``prefix``: of the names of these weights in the file; null finds it if there is only one.

    Raises (in ``of``):
        FieldError: there is no such file, or it does not have the weights of the network.
    """

    path: str
    prefix: str | None = None

    def of(self, training: TrainedModel) -> GivenModel:
        try:
            weights = self._weights(training)
        except FieldError as error:
            raise FieldError(self, error.field, error.message) from error
        return GivenModel(model=training.model, objective=training.objective, weights=weights)

    def _weights(self, training: TrainedModel) -> Weights:
        file, model = WeightsFile(self.path, self.prefix or ""), training.model
        if isinstance(model, LoRA):
            try:
                names = file.tensors()
            except ValueError as error:
                raise FieldError(self, "path", str(error)) from error
            if adapters_in(file) and not any(".base_layer." in name for name in names):
                adapters = AdapterWeights(file, model)
                adapters.content  # noqa: B018 (raises if the adapters are not those of the network)
                return adapters
        return file.of_network(training.outline)


TRAINED_HERE = FromTraining()


def pipeline_process(path: str) -> Process:
    """The forward process of the pipeline at ``path``.

    Raises:
        FieldError: there is no such pipeline, or it has no process that is known here.
    """
    pipeline = pipeline_at(path)
    try:
        return pipeline.process
    except ValueError as error:
        raise FieldError(pipeline, "path", str(error)) from error


def pipeline_network(path: str) -> Callable[[], nn.Module]:
    """The constructor of the network of the pipeline at ``path``."""
    return PipelineNetwork(path)
