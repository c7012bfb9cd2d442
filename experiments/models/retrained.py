"""Retrained models as store nodes: a training run repeated on subsets, with weights of examples, or with other seeds."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import nn

from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.models.trained import FinalParameters, Trained
from attribution.nodes import Cost, Get, JointNode, execution
from attribution.nodes.saves import KEPT
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from attribution.training.recipe import Recipe
from experiments.models.trained import TrainedModel
from experiments.store.progress import track

SHARED = ("attribution.retraining.fit_together",)

_TRIES = 3
"""How often to train a model again that other runs delete."""


@dataclass(frozen=True, kw_only=True)
class Retrained(Trained[FinalParameters], JointNode[FinalParameters]):
    """``model`` trained on a ``selection`` of ``data`` by ``recipe`` with ``seed``. Only the final parameters are stored.

    ``data`` is the whole training set; ``recipe.steps`` is the number of steps of the retrained model. Missing models with the same
    ``block`` are trained together by one process; ``in_blocks`` sets it. Without ``keep`` the store deletes the model when
    all requested nodes that use the model are stored.
    """

    NAME = "Retrained"
    VERSION = 1
    TITLE = "retraining"
    ARTIFACT = FinalParameters

    data: ImageSet
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    recipe: Recipe
    flips: bool
    seed: int
    selection: Selection
    mode: Mode
    block: str = execution(default="")
    keep: bool = execution(default=True)
    execution: Execution = execution(default=Execution())

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        selection: Selection,
        seed: int,
        steps: int,
        mode: Mode,
        execution: Execution,
        keep: bool = True,
    ) -> Self:
        """Return the model of ``trained`` trained again on ``selection``, with ``seed``, for ``steps`` steps."""
        return cls(
            model=trained.model,
            objective=trained.objective,
            data=trained.data,
            optimizer=trained.optimizer,
            recipe=dataclasses.replace(trained.recipe, steps=steps),
            flips=trained.flips,
            seed=seed,
            selection=selection,
            mode=mode,
            execution=execution,
            keep=keep,
        )

    @property
    def temporary(self) -> bool:
        return not self.keep

    def network(self, get: Get, step: int | None = None) -> nn.Module:
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):  # a run with other measurements has just deleted the model: train it again
                return super().network(get, step)
        return super().network(get, step)

    def together(self) -> tuple[str, str]:
        return self._family, self.block

    @cached_property
    def _family(self) -> str:
        """Fingerprint of what is common to models that differ only in seed and selection."""
        return dataclasses.replace(self, seed=0, selection=Selection(np.zeros(1, np.int64))).fingerprint

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> Sequence[FinalParameters]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, folders = nodes[0], [get.workspace(node) for node in nodes]
        images = get(first.data)
        members = [Member(node.seed, node.selection, folder, node.fingerprint) for node, folder in zip(nodes, folders, strict=True)]
        for start in range(0, len(members), first.mode.group):
            group = members[start : start + first.mode.group]
            title = f"training {len(group)} model{'s' * (len(group) > 1)}"
            fit_together(
                group,
                images,
                first.model,
                first.objective,
                first.optimizer,
                first.recipe,
                first.mode,
                first.flips,
                first.execution.torch_device(),
                progress=lambda steps, title=title: track(steps, title),
            )
        return [FinalParameters(folder) for folder in folders]

    def cost(self) -> Cost:
        state = (8 if self.recipe.precision == "64-true" else 4) * self.parameter_count
        batch = min(self.recipe.batch_size, len(self.selection))
        return Cost(
            passes=self.recipe.steps * batch,
            inputs=batch * self.mode.group,
            # Parameters, what the optimizer keeps, their average, gradients as computed and joined, a temporary of the optimizer.
            memory=(4 + _moments(self.optimizer) + (self.recipe.ema is not None)) * state * self.mode.group,
            disk=self._state_bytes,
        )

    @cached_property
    def _state_bytes(self) -> int:
        """The bytes of parameters and buffers on disk."""
        double = self.recipe.precision == "64-true"
        tensors = self.outline.state_dict().values()
        return sum(8 * t.numel() if double and t.is_floating_point() else t.nbytes for t in tensors)

    def disk_in_training(self, models: int) -> float:
        """The bytes that one process takes on disk while it trains a block of ``models``: the saves of each, and one more.

        A save has the parameters, what the optimizer keeps of their size, and their average if there is one.
        """
        trained = 8 if self.recipe.precision == "64-true" else 4
        tensors = 1 + _moments(self.optimizer) + (self.recipe.ema is not None)
        return (KEPT * models + 1) * tensors * trained * self.parameter_count


def in_blocks(nodes: Sequence[Retrained]) -> list[Retrained]:
    """The same models in blocks of at most ``mode.group`` and nearly equal size. One process trains the models of a block together.

    A block is a function of the list, and its name is the fingerprint of its first model. So processes with the same list divide it
    by blocks, and a killed process continues with the same blocks. Call ``get.many(in_blocks(nodes))`` with one list of all models
    that an experiment needs.
    """
    blocks = np.array_split(np.arange(len(nodes)), -(-len(nodes) // nodes[0].mode.group)) if nodes else []
    return [dataclasses.replace(nodes[i], block=nodes[block[0]].fingerprint) for block in blocks for i in block.tolist()]


def _moments(build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]) -> int:
    """How many tensors of the size of the parameters an optimizer keeps, found by a step."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = build([parameter])
    parameter.grad = torch.zeros(2)
    optimizer.step()
    return sum(torch.is_tensor(value) and value.shape == parameter.shape for value in optimizer.state[parameter].values())
