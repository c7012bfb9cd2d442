"""Retrained models as store nodes: a training run repeated on subsets, with weights of examples, or with other seeds."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
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
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from attribution.training.recipe import Recipe
from experiments.models.trained import TrainedModel
from experiments.store.progress import track

SHARED = ("attribution.retraining.fit_together",)


@dataclass(frozen=True, kw_only=True)
class Retrained(Trained[FinalParameters], JointNode[FinalParameters]):
    """``model`` trained on a ``selection`` of ``data`` by ``recipe`` with ``seed``. Only the final parameters are stored.

    ``data`` is the whole training set; ``recipe.steps`` is the number of steps of the retrained model. Missing models with the same
    ``block`` are trained together by one process; ``in_blocks`` sets it.
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
    execution: Execution = execution(default=Execution())

    @classmethod
    def of(cls, trained: TrainedModel, selection: Selection, seed: int, steps: int, mode: Mode, execution: Execution) -> Self:
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
        )

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
        state = 4 * self.parameter_count
        batch = min(self.recipe.batch_size, len(self.selection))
        return Cost(
            passes=self.recipe.steps * batch,
            inputs=batch * self.mode.group,
            memory=4 * state * self.mode.group,  # parameters, gradients, and the two moments of Adam
            disk=state,
        )


def in_blocks(nodes: Sequence[Retrained]) -> list[Retrained]:
    """The same models in blocks of at most ``mode.group`` and nearly equal size. One process trains the models of a block together.

    A block is a function of the list, and its name is the fingerprint of its first model. So processes with the same list divide it
    by blocks, and a killed process continues with the same blocks. Call ``get.many(in_blocks(nodes))`` with one list of all models
    that an experiment needs.
    """
    blocks = np.array_split(np.arange(len(nodes)), -(-len(nodes) // nodes[0].mode.group)) if nodes else []
    return [dataclasses.replace(nodes[i], block=nodes[block[0]].fingerprint) for block in blocks for i in block.tolist()]
