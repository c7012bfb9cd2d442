"""Metagradients (MAGIC; Ilyas & Engstrom 2025, "MAGIC: Near-Optimal Data Attribution for Deep Learning", arXiv 2504.16430).

The training loss of each image z gets a weight w_z, which is 1. The score is the derivative of the query's measurement after the
recorded training run, with its batches, noises, learning rates, clipping and dropout,

    τ[q, z] = -N dm(q; θ_T(w))/dw_z

without an approximation: by reverse-mode differentiation through every step of SGD, Adam or AdamW. Removing z lowers w_z by 1, so
Στ/N over removed images is the change of m that a linear model of training predicts. Where SGD converges on a strongly convex loss,
τ is influence ∇m(q)ᵀ H⁻¹ ∇ℓ(z), scale included. τ belongs to this one training run; with another seed it is another derivative.

The record has the parameters at some steps, but not the states of the optimizer. So the run is computed again from its beginning,
and every recorded checkpoint has to come out bit for bit. Of T steps about √T states are kept, and the steps between two of them
are computed once more on the way back. A batch of Q queries takes two training runs, and for each visit two passes for the graph of
its gradient and two for every query. Memory grows with Q, √T and the number of parameters, and neither with the images nor with T.
"""

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attribution.checks import FieldError
from attribution.diffusion import denoiser, eval_mode
from attribution.double_precision import on_device
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import BlockProducts, QueryBlock, ShardedEstimator, ShardedScores, with_all_queries
from attribution.estimators.training_trajectory import RECORDED
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES, ranges
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, key
from attribution.nodes.saves import Saves
from attribution.training.optimizer_steps import PARAMETERS, optimizer_settings, state_names
from attribution.training.order import steps_per_epoch
from attribution.training.record import positions_of
from attribution.training.repeatable import Repeatable, require_repeatable
from attribution.training.rerun import Moment, Rerun
from attribution.training.reverse import ReverseSteps

SHARED = (
    "attribution.diffusion.denoiser",
    "attribution.estimators.sharded",
    "attribution.training.order",
    "attribution.training.repeatable",
    "attribution.training.rerun",
    "attribution.training.reverse",
)

PRECISIONS = ("32-true", "64-true")
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True, kw_only=True)
class Metagradient(ShardedEstimator):
    """The derivative of the measurement with respect to the weight of each training image in the loss of the recorded training.

    ``measurement`` and ``draws`` apply to the queries.
    """

    NAME = "Metagradient"
    VERSION = 1
    RECORDED_DRAWS = True

    def __post_init__(self):
        self.draws.refuse_sides(RECORDED)
        self.draws.refuse_lists("metagradient")

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        repeatable = require_repeatable(trained, "metagradient")
        check_training(repeatable)
        self.measurement.subject(queries)
        self.draws.check(trained.process.T)
        return MetagradientScores(self, train, queries, repeatable)


def check_training(trained: Repeatable) -> None:
    """Check that the training run of ``trained`` can be differentiated.

    Raises:
        FieldError: it cannot, because of its optimizer, precision or compiler.
    """
    kind, recipe = optimizer_settings(trained.optimizer)[0], trained.recipe
    if kind not in OPTIMIZERS:
        names = ", ".join(f"torch.optim.{known.__name__}" for known in OPTIMIZERS)
        raise FieldError(
            trained, "optimizer", f"metagradient differentiates the steps of {names}: choose one of these", kind.__name__
        )
    if len(trained.optimizer(trained.outline.parameters()).param_groups) > 1:
        raise FieldError(trained, "optimizer", "metagradient takes one group of parameters: choose an optimizer with one")
    if recipe.precision not in PRECISIONS:
        message = f"metagradient needs training that can be computed again exactly: train in {' or '.join(PRECISIONS)}"
        raise FieldError(recipe, "precision", message)
    if recipe.compiler is not None:
        raise FieldError(recipe, "compiler", "metagradient cannot compute compiled training again to the bit: set this to null")


@dataclass(frozen=True)
class MetagradientBlock(QueryBlock[BlockProducts]):
    """τ of the queries ``rows[0]..rows[1]-1`` and all training images, ``[Q, N]``: one sweep back through training."""

    NAME = "MetagradientBlock"
    VERSION = 1
    TITLE = "training in reverse"
    ARTIFACT = BlockProducts

    estimator: Metagradient
    trained: Repeatable  # pyright: ignore[reportIncompatibleVariableOverride]
    train: ImageSet

    def together(self) -> Hashable:
        return key(self)  # alone: the parameters move

    def cost(self) -> Cost:
        recipe, Q = self.trained.recipe, self.count
        visits = recipe.steps * self.train.count / steps_per_epoch(self.train.count, recipe.batch_size)
        size = (FLOAT64_BYTES if recipe.precision == "64-true" else FLOAT32_BYTES) * self.trained.parameter_count
        vectors = 1 + len(state_names(*optimizer_settings(self.trained.optimizer)))
        held = (2 * segment(recipe.steps) + 3) * vectors + Q * (2 * vectors + 4)  # moments; adjoints before and after a step
        return Cost(
            passes=visits * (2 + 2 + 2 * Q) + Q * self.estimator.draws.count,
            memory=held * size + FLOAT64_BYTES * Q * self.train.count,
            inputs=3 * min(recipe.batch_size, self.train.count),  # the graph of a gradient holds more than that of a loss
            disk=FLOAT32_BYTES * Q * self.train.count,
        )

    @classmethod
    def compute_together(cls, nodes: Sequence["MetagradientBlock"], get: Get) -> list[BlockProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return [node._scores(get) for node in nodes]

    def _scores(self, get: Get) -> BlockProducts:
        trained, record, images = self.trained, get(self.trained), get(self.train)
        recipe, device = trained.recipe, self.estimator.execution.torch_device()
        rerun = Rerun(trained, record, images, device)
        kind, settings = optimizer_settings(trained.optimizer)
        names = state_names(kind, settings)
        final, shares = self._measured_gradients(on_device(trained.network(get), device), get), recipe.average_weights
        reverse = ReverseSteps(copy.deepcopy(rerun.network), trained.objective, record, images, kind, settings, recipe.clip)

        saves = Saves(get.workspace(self), self.fingerprint)
        done = saves.intact().last
        saves.resume(done)
        if done:
            state = load_file(_file(saves, done))
            derivatives = state.pop("derivatives")
            adjoints = {name: tensor.to(device) for name, tensor in state.items()}
        else:
            derivatives = torch.zeros(self.count, len(images), dtype=torch.float64)
            adjoints = {name: torch.zeros_like(final) for name in (PARAMETERS, *names)}
        for moments in _segments(rerun, recipe.steps, recipe.steps - done):
            for moment in reversed(moments):
                adjoints[PARAMETERS] += float(shares[moment.step]) * final
                adjoints, visits, of_weights = reverse(moment.step, moment.flat(names), adjoints)
                derivatives.index_add_(1, torch.from_numpy(positions_of(images, visits)), of_weights.cpu().double())
            done = recipe.steps - moments[0].step
            adjoints = {name: adjoints.get(name, torch.zeros_like(final)) for name in (PARAMETERS, *names)}
            save_file({"derivatives": derivatives, **{name: each.cpu() for name, each in adjoints.items()}}, _file(saves, done))
            saves.save(done, [_file(saves, done)])
        values = -len(images) * derivatives.numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError(
                "derivatives through training are not finite, as they grow where training is unstable: lower the learning rate, or "
                "raise eps of Adam"
            )
        return BlockProducts(values.astype(np.float32))

    def _measured_gradients(self, network: nn.Module, get: Get) -> Tensor:
        """∇m(q) at the explained model, the mean over a query's draws: ``[Q, P]`` in the precision of its parameters."""
        measure, execution = self.estimator.measurement, self.estimator.execution
        x0, draws, condition = self.inputs(get)
        parameters, rows = [p for p in network.parameters() if p.requires_grad], []
        with torch.inference_mode(False), torch.enable_grad(), eval_mode(network):
            for q in range(self.count):
                one, total = slice(q, q + 1), torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
                given = None if condition is None else condition[one].to(x0.device)
                for columns in ranges(0, draws.count, execution.batch_size):
                    inputs = measure.inputs(x0[one].to(parameters[0].dtype), draws.rows(one).columns(slice(*columns)), given)
                    cost = measure(denoiser(network), *inputs).sum() / draws.count
                    gradients = torch.autograd.grad(cost, parameters, materialize_grads=True)
                    total = total.to(cost.device) + torch.cat([g.reshape(-1) for g in gradients])
                rows.append(total)
        return torch.stack(rows)


def segment(steps: int) -> int:
    """The number of steps between two states of training that are kept."""
    return max(1, round(math.sqrt(steps)))


def _segments(rerun: Rerun, steps: int, left: int):
    """The moments before the first ``left`` of ``steps`` training steps, in segments, the last one first.

    A first run keeps the first moment of every segment; each segment is then run once more.
    """
    size, starts = segment(steps), []
    while rerun.step < left:
        if rerun.step % size == 0:
            starts.append(rerun.moment())
        rerun.advance()
    for start in reversed(starts):
        rerun.go_to(start)
        moments: list[Moment] = []
        while rerun.step < min(start.step + size, left):
            moments.append(rerun.moment())
            rerun.advance()
        yield moments


def _file(saves: Saves, done: int) -> Path:
    """The file with the adjoints after ``done`` steps back."""
    return saves.path(f"adjoints-{done:09d}.safetensors")


@dataclass(frozen=True)
class MetagradientScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "MetagradientScores"
    VERSION = 1
    TITLE = "metagradient scores"

    estimator: Metagradient
    trained: Repeatable

    def parts(self, get: Get) -> list[Node]:
        return list(self.blocks)

    def cost(self) -> Cost:
        return Cost(memory=2 * FLOAT32_BYTES * self.pairs, disk=FLOAT32_BYTES * self.pairs)

    def compute(self, get: Get) -> Scores:
        return self.assembled(with_all_queries(get.many(self.blocks)), get)

    @property
    def blocks(self) -> list[MetagradientBlock]:
        """The scores of all queries, in blocks that share a sweep."""
        subject = self.estimator.measurement.subject(self.queries)
        return [
            MetagradientBlock(self.estimator, self.trained, subject, rows, self.train)
            for rows in ranges(0, self.queries.count, self.estimator.execution.query_shard)
        ]
