"""Training of many models side by side, on subsets or with weights; the result for each is that of ``fit``.

Batch order, draws, dropout seeds, initial parameters, learning rates, clipping and averaging of a model are those of ``fit`` on
the images of its selection with its seed. Unlike ``fit``, this keeps no record of visits and does not use Lightning's hardware.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attribution.images import Images, philox
from attribution.images.draws import Draws, random_draws
from attribution.measurements import Inputs, Measure
from attribution.models.trained import PARAMETERS
from attribution.nodes.saves import Saves
from attribution.precision import tf32_products
from attribution.retraining.modes import Mode, StackedBatch
from attribution.retraining.selection import Selection
from attribution.retraining.stacked_state import BuildOptimizer, Stack
from attribution.training.order import batch_rows
from attribution.training.recipe import Recipe
from attribution.transfers import to_device

SHARED = (
    "attribution.images.draws",
    "attribution.retraining.modes",
    "attribution.retraining.stacked_state",
    "attribution.training.order",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One of the models: its seed, its selection, and the ``folder`` for its progress and, at the end, its parameters.

    ``owner``, the fingerprint of the model, is written into every save: files of another model are not resumed from.
    """

    seed: int
    selection: Selection
    folder: Path
    owner: str = ""

    @property
    def parameters(self) -> Path:
        return self.folder / PARAMETERS


def fit_together(
    members: Sequence[Member],
    images: Images,
    model: Callable[[], nn.Module],
    measure: Measure,
    optimizer: BuildOptimizer,
    recipe: Recipe,
    mode: Mode,
    flips: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Train ``members`` and write the parameters of each to its folder, resuming an earlier call that was killed.

    The result is bit-equal to an uninterrupted call with the same members; with other members, or in another order, it is equal up
    to rounding. If a file is damaged, all members resume from an earlier step or start again, with a warning in the log.

    Args:
        images: the whole training set; the selections hold rows of it.
        progress: yields the steps that are left and shows the progress.

    Raises:
        ValueError: rows outside the training set, or a model, an optimizer or a precision that ``mode`` cannot train.
        FloatingPointError: a loss became NaN or infinite.
    """
    _check_rows(members, len(images))
    saves = [Saves(member.folder, member.owner) for member in members]
    start = _start(members, saves)
    if start is None:
        return
    with torch.random.fork_rng():
        stack = Stack(model, [member.seed for member in members], optimizer, recipe, torch.device(device))
        mode.prepare(stack.network, recipe)
        if start:
            stack.restore([load_file(_state(saved, start)) for saved in saves])
        losses: list[Tensor] = []
        last_save = time.monotonic()
        with _default_dtype(stack.dtype), tf32_products(recipe.tf32):
            for step in progress(range(start, recipe.steps)):
                batch = _batch(members, images, step, recipe.batch_size, measure, flips, stack)
                loss, gradients = mode.gradients(stack.network, stack.parameters(), stack.constants, measure, batch, recipe)
                stack.step(step, gradients)
                del gradients  # before those of the next step are made
                losses.append(loss)
                if time.monotonic() - last_save >= mode.save_seconds or step + 1 == recipe.steps:
                    _check_finite(torch.stack(losses), step + 1, members)
                    _save(saves, stack, step + 1)
                    losses.clear()
                    last_save = time.monotonic()
    for m, member in enumerate(members):
        save_file(stack.final(m), member.parameters)
    for member, saved in zip(members, saves, strict=True):
        saved.finish([member.parameters])


def _batch(
    members: Sequence[Member], images: Images, step: int, batch_size: int, measure: Measure, flips: bool, stack: Stack
) -> StackedBatch:
    """The batches of ``step`` (0-based), with the rows and draws of ``fit``."""
    positions = [batch_rows(member.seed, step, len(member.selection), batch_size) for member in members]
    lengths = [len(batch) for batch in positions]
    rows = np.zeros((len(members), max(lengths)), dtype=np.int64)
    weight = np.zeros(rows.shape)
    for m, (member, batch) in enumerate(zip(members, positions, strict=True)):
        rows[m, : lengths[m]] = member.selection.rows[batch]
        weight[m, : lengths[m]] = member.selection.weights_of(batch) / lengths[m]
    ids = images.ids(rows.ravel()).view(rows.shape)
    x0 = to_device(images.x0(rows.ravel()), stack.device, stack.dtype)
    draws = _draws(members, ids, step, measure, flips).to(stack.device)
    condition = images.conditions(rows.ravel())
    inputs = measure.inputs(x0, draws, None if condition is None else to_device(condition, stack.device))
    return StackedBatch(
        Inputs(*(None if tensor is None else tensor.unflatten(0, rows.shape) for tensor in inputs)),  # pyright: ignore[reportArgumentType]
        to_device(torch.from_numpy(weight), stack.device, stack.dtype),
        lengths,
        [philox.key(member.seed, "dropout", step, 0)[0] for member in members],
    )


def _draws(members: Sequence[Member], ids: Tensor, step: int, measure: Measure, flips: bool) -> Draws:
    """The draw of each example ``ids [M, B]``: ``[M·B, 1]``. Members with the same seed share one call."""
    timestep, noise_seed = torch.empty_like(ids), torch.empty_like(ids)
    flip, dropout = torch.empty_like(ids, dtype=torch.bool), measure.condition_dropout
    dropped = torch.empty_like(flip) if dropout else None
    seeds = np.array([member.seed for member in members])
    for seed in np.unique(seeds):
        chosen = torch.from_numpy(seeds == seed)
        draws = random_draws(int(seed), "training", ids[chosen], torch.tensor(step), measure.process.T, flips, dropout)
        timestep[chosen], noise_seed[chosen], flip[chosen] = draws.timestep, draws.noise_seed, draws.flip
        if dropped is not None and draws.condition_dropped is not None:
            dropped[chosen] = draws.condition_dropped
    return Draws(timestep, noise_seed, flip, dropped).map(lambda tensor: tensor.view(-1, 1))


def _start(members: Sequence[Member], saves: Sequence[Saves]) -> int | None:
    """The last step that all members saved, 0 if there is none, or None if all are finished; later saves are deleted.

    Rounding depends on the members that are trained together, so they all resume from the same step, finished ones too. Their saves
    are kept until the results are published.
    """
    found = [saved.intact(member.parameters) for member, saved in zip(members, saves, strict=True)]
    if all(each.finished for each in found):
        return None
    step = max(set(found[0].steps).intersection(*(each.steps for each in found[1:])), default=0)
    if damaged := next((each for each in found if each.problem), None):
        log.warning(damaged.warning(step))
    for saved in saves:
        saved.resume(step)
    return step


def _save(saves: Sequence[Saves], stack: Stack, step: int) -> None:
    for m, saved in enumerate(saves):
        save_file(stack.state(m), _state(saved, step))
        saved.save(step, [_state(saved, step)])


def _state(saved: Saves, step: int) -> Path:
    """The file with the state of one model after ``step`` steps."""
    return saved.path(f"state-{step:09d}.safetensors")


def _check_rows(members: Sequence[Member], count: int) -> None:
    for member in members:
        if (last := int(member.selection.rows[-1])) >= count:
            raise ValueError(f"a selection has row {last} but the training set has only {count} rows: choose rows below that")


def _check_finite(losses: Tensor, done: int, members: Sequence[Member]) -> None:
    """Check ``losses [S, M]`` of the last S of ``done`` steps. Raises FloatingPointError: a loss is not finite."""
    if not (bad := (~losses.isfinite()).nonzero()).numel():
        return
    step, m = bad[0].tolist()
    raise FloatingPointError(
        f"the training loss of the model with seed {members[m].seed} on {len(members[m].selection)} examples became NaN or "
        f"infinite at step {done - len(losses) + step}: lower the learning rate or clip gradients"
    )


@contextmanager
def _default_dtype(dtype: torch.dtype):
    """Set torch's default dtype, as Lightning does, so that tensors that networks create have the precision of training."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
