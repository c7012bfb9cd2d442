"""Models trained side by side equal those of ``fit``."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from attribution.diffusion import denoiser
from attribution.measurements import Inputs, Loss
from attribution.models.trained import PARAMETERS
from attribution.nodes import describe
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Mode, Together
from attribution.retraining.selection import Selection
from attribution.retraining.stacked_forward import stacked_losses
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.order import batch_rows
from attribution.training.recipe import Hardware, Recipe
from attribution.training.record import TrainingRecord
from tests.worlds import PROCESS, UNET, Blobs

PLAIN: Any = functools.partial(UNET, dropout=0.0)
RECIPE = Recipe(steps=6, batch_size=5, lr_schedule="cosine", warmup=0.2, clip=0.5, ema=0.8, precision="64-true")
ADAMW: Any = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
IMAGES = Blobs().compute(None)  # pyright: ignore[reportArgumentType]
SELECTIONS = [
    Selection(np.arange(12)),
    Selection.of(IMAGES.index % 2 == 0),
    Selection.without(range(4, 15), len(IMAGES)),  # 13 rows: an epoch of another length
    Selection(np.arange(24)),
]
SEEDS = [3, 3, 5, 7]
Parameters = dict[str, torch.Tensor]


class Small(nn.Module):
    """A small network with a convolution, a norm and a timestep, for claims that do not depend on the network."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3, padding=1)
        self.time = nn.Linear(1, 8)

    def forward(self, x, t):
        h = self.first(x) + self.time(t[:, None].to(x.dtype) / 100)[:, :, None, None]
        return self.last(torch.nn.functional.silu(self.norm(h)))


def members(folder: Path, selections: Sequence[Selection] = SELECTIONS, seeds: Sequence[int] = SEEDS) -> list[Member]:
    return [Member(seed, selection, folder / str(m)) for m, (selection, seed) in enumerate(zip(selections, seeds, strict=True))]


def trained(of: Sequence[Member], mode: Mode, model: Any = Small, optimizer=ADAMW, recipe=RECIPE, **more: Any) -> list[Parameters]:
    fit_together(of, IMAGES, model, Loss(PROCESS), optimizer, recipe, mode, flips=True, **more)
    return [load_file(member.folder / PARAMETERS) for member in of]


def by_fit(member: Member, folder: Path, model: Any, optimizer=ADAMW, recipe=RECIPE, images=IMAGES) -> Parameters:
    images = images.take(member.selection.rows)
    hardware = Hardware(accelerator="cpu")
    fit(folder, images, model, Loss(PROCESS), optimizer, recipe, EverySteps(6), member.seed, flips=True, hardware=hardware)
    return TrainingRecord(folder).final_parameters()


def assert_close(a: Parameters, b: Parameters, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def same(a: Parameters, b: Parameters) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("mode", "model", "optimizer", "changes"),
    [
        (Together(), PLAIN, ADAMW, {}),
        (Together(), PLAIN, functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9), {"ema": None, "clip": 0.05}),
        (Together(), PLAIN, ADAMW, {"ema": 0.9, "ema_warmup": False}),
        (Alone(), UNET, functools.partial(torch.optim.Adam, lr=1e-3), {"lr_schedule": "constant"}),
    ],
    ids=["together", "together-sgd", "together-plain-average", "alone-dropout"],
)
@pytest.mark.slow
def test_models_trained_side_by_side_are_those_of_fit(tmp_path, mode, model, optimizer, changes):
    """Claim: subsets of several sizes, seeds, flips, warm-up, cosine, clipping, averaging and dropout agree with ``fit``."""
    recipe = dataclasses.replace(RECIPE, **changes)
    of = members(tmp_path / "together")
    for m, parameters in enumerate(trained(of, mode, model, optimizer, recipe)):
        assert_close(parameters, by_fit(of[m], tmp_path / f"fit{m}", model, optimizer, recipe))


class Labeled(Small):
    """A network with a class as condition."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(2, 1)

    def forward(self, x, t, condition):
        return super().forward(x + self.label(condition)[:, :, None, None], t)


@pytest.mark.parametrize("mode", [Together(), Alone()])
def test_conditional_models_are_those_of_fit(tmp_path, mode):
    """Claim: each image's condition reaches the network of every model, as in ``fit``."""
    conditioned = dataclasses.replace(IMAGES, condition=IMAGES.label)
    of = members(tmp_path / "together", SELECTIONS[:3], SEEDS[:3])
    fit_together(of, conditioned, Labeled, Loss(PROCESS), ADAMW, RECIPE, mode, flips=True)
    for m, member in enumerate(of):
        expected = by_fit(member, tmp_path / f"fit{m}", Labeled, images=conditioned)
        assert_close(load_file(member.folder / PARAMETERS), expected)
        other = dataclasses.replace(conditioned, condition=1 - IMAGES.label)
        assert not same(expected, by_fit(member, tmp_path / f"other{m}", Labeled, images=other))


class Everything(nn.Module):
    """Every kind of operation that has a stacked implementation, and one that has none."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.strided = nn.Conv2d(16, 16, 3, stride=2, padding=(1, 1), dilation=1, groups=2)
        self.same = nn.Conv2d(16, 16, (3, 1), padding="same", dilation=2, padding_mode="circular")
        self.pointwise, self.pointwise_without = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 12, 1, bias=False)
        self.wide_apart = nn.Conv2d(12, 12, 1, stride=2)
        self.norm, self.norm_without, self.layer_norm = nn.GroupNorm(4, 12), nn.GroupNorm(3, 12, affine=False), nn.LayerNorm(12)
        self.narrow = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x, t):
        h = self.same(self.strided(self.wide(x)))
        h = self.norm_without(self.wide_apart(self.norm(self.pointwise_without(self.pointwise(h)))))
        tokens = self.layer_norm(h.flatten(2).mT).unflatten(2, (3, 4)).transpose(1, 2)
        mask = torch.ones(tokens.shape[-2], tokens.shape[-2], dtype=torch.bool).tril()
        attend = nn.functional.scaled_dot_product_attention
        tokens = attend(tokens, tokens, tokens, scale=0.3) + attend(tokens, tokens, tokens, mask) + t[:, None, None, None]
        return nn.functional.pixel_shuffle(self.narrow(tokens.transpose(1, 2).flatten(2).mT.unflatten(2, h.shape[2:])), 2)


def test_stacked_operations_are_those_of_each_model():
    """Claim: losses and gradients of three models in one pass are those of three passes, for all operations."""
    torch.manual_seed(0)
    models = [Everything().double() for _ in range(3)]
    x0, noise = torch.randn(2, 3, 5, 1, 8, 8, dtype=torch.float64)
    t = torch.randint(1, 101, (3, 5))
    state = {
        name: torch.stack([dict(m.named_parameters())[name].detach() for m in models]) for name, _ in models[0].named_parameters()
    }
    for tensor in state.values():
        tensor.requires_grad_()

    def shrunk(denoise, x0, t, noise, condition=None):
        return (denoise(x0, t) - noise[..., ::2, ::2]).square().flatten(1).mean(1)

    losses = stacked_losses(models[0], state, shrunk, Inputs(x0, t, noise))  # pyright: ignore[reportArgumentType]
    gradients = torch.autograd.grad(losses.sum(), list(state.values()))
    for m, model in enumerate(models):
        alone = shrunk(denoiser(model), x0[m], t[m], noise[m])
        torch.testing.assert_close(losses[m], alone, rtol=1e-10, atol=1e-12)
        for gradient, expected in zip(gradients, torch.autograd.grad(alone.sum(), list(model.parameters())), strict=True):
            torch.testing.assert_close(gradient[m], expected, rtol=1e-9, atol=1e-11)


def test_the_comparison_with_fit_sees_clipping_and_seeds(tmp_path):
    """Claim: the test above can fail: clipping by a norm over all models, or another seed, differs by far more."""
    selections, seeds = SELECTIONS[:2], SEEDS[:2]
    optimizer = functools.partial(torch.optim.SGD, lr=0.05)
    recipe = dataclasses.replace(RECIPE, clip=0.05, ema=None)
    true = trained(members(tmp_path / "true", selections, seeds), Together(), optimizer=optimizer, recipe=recipe)
    jointly = dataclasses.replace(recipe, clip=0.05 / 2**0.5)
    others = [
        trained(members(tmp_path / "clip", selections, seeds), Together(), optimizer=optimizer, recipe=jointly),
        trained(members(tmp_path / "seed", selections, [4, 4]), Together(), optimizer=optimizer, recipe=recipe),
    ]
    for other in others:
        with pytest.raises(AssertionError):
            assert_close(true[0], other[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", [Together(), Alone()])
def test_weights_multiply_each_example_s_loss(tmp_path, mode):
    """Claim: one SGD step with weights w moves along (1/B) Σ w_i ∇ℓ_i, with gradients computed one example at a time."""
    weights = np.linspace(0, 2, 12)
    member = Member(3, Selection(np.arange(12), weights), tmp_path / "member")
    recipe = Recipe(steps=1, batch_size=5, precision="64-true")
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    (weighted,) = trained([member], mode, optimizer=sgd, recipe=recipe)
    torch.manual_seed(3)
    start = Small().double().state_dict()
    expected = {name: tensor.clone() for name, tensor in start.items()}
    for row in batch_rows(3, 0, 12, 5):
        # An example alone in its set is the batch of step 0, with the same draw as in any set.
        single = Member(3, Selection(np.array([row])), tmp_path / f"row{row}")
        (after,) = trained([single], mode, optimizer=sgd, recipe=recipe)
        for name in expected:
            expected[name] += weights[row] * (after[name] - start[name]) / 5
    assert_close(weighted, expected)


@pytest.mark.parametrize("mode", [Together(), Alone()])
def test_weights_of_one_are_none_and_of_zero_leave_no_trace(tmp_path, mode):
    """Claim: with weight 1 a model is that of the subset; an example of weight 0 has no effect but keeps its place in a batch."""
    rows = np.arange(12)
    weights = np.where(rows < 6, 0.0, 0.5)
    selections = [Selection(rows), Selection(rows, np.ones(12)), Selection(rows, weights), Selection(rows[6:])]
    plain, ones, zeros, removed = trained(members(tmp_path / "a", selections, [3] * 4), mode)
    assert_close(plain, ones)
    others = dataclasses.replace(IMAGES, pixels=IMAGES.pixels.copy())
    others.pixels[:6] = 255 - others.pixels[:6]
    member = Member(3, selections[2], tmp_path / "b")
    fit_together([member], others, Small, Loss(PROCESS), ADAMW, RECIPE, mode, flips=True)
    assert_close(load_file(member.folder / PARAMETERS), zeros)
    with pytest.raises(AssertionError):
        assert_close(zeros, removed, rtol=1e-5)


def test_the_group_changes_rounding_only(tmp_path):
    """Claim: a model is the same up to rounding when models are permuted, in groups of other sizes, or alone."""
    true = trained(members(tmp_path / "all"), Together())
    permuted = trained(members(tmp_path / "permuted", SELECTIONS[::-1], SEEDS[::-1]), Together())[::-1]
    pair = trained(members(tmp_path / "pair", SELECTIONS[2:], SEEDS[2:]), Together())
    alone = trained(members(tmp_path / "alone"), Alone())
    for other in (permuted, [*true[:2], *pair], alone):
        for a, b in zip(true, other, strict=True):
            assert_close(a, b)


class Killed(Exception):
    pass


def until(steps: int):
    """A ``progress`` that stops training after ``steps`` steps."""

    def progress(left: range):
        for step in left:
            if step == steps:
                raise Killed
            yield step

    return progress


def saved(member: Member) -> set[str]:
    return {path.name for path in (member.folder / "progress").iterdir()}


@pytest.mark.usefixtures("a_second_a_step")
@pytest.mark.parametrize("mode", [Together(save_seconds=2), Alone(save_seconds=2)])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, mode, precision):
    """Claim: after kills between, at and after saved steps and during saving, the result is bit-equal; no progress remains."""
    recipe = dataclasses.replace(RECIPE, precision=precision)
    whole = trained(members(tmp_path / "whole"), mode, recipe=recipe)
    of = members(tmp_path / "pieces")
    for steps in (1, 3, 4, 5):
        with pytest.raises(Killed):
            trained(of, mode, recipe=recipe, progress=until(steps))
    assert [path.name for path in of[0].folder.iterdir()] == ["progress"]
    assert saved(of[0]) == {"000000002.json", "000000004.json", "state-000000002.safetensors", "state-000000004.safetensors"}
    # A kill while step 4 was saved: the first model has it, the last one does not, and step 2 still exists.
    again = members(tmp_path / "saving")
    with pytest.raises(Killed):
        trained(again, mode, recipe=recipe, progress=until(2))
    for name in ("state-000000004.safetensors", "000000004.json"):
        (of[0].folder / "progress" / name).rename(again[0].folder / "progress" / name)
    with pytest.raises(Killed):  # the first model lost step 4: all of them start from step 2
        trained(of, mode, recipe=recipe, progress=until(2))
    for pieces in (trained(again, mode, recipe=recipe), trained(of, mode, recipe=recipe)):
        assert all(same(a, b) for a, b in zip(whole, pieces, strict=True))
    assert {path.name for path in of[0].folder.iterdir()} == {PARAMETERS, "progress"}
    states = {f"{step:09d}.json" for step in (4, 6)} | {f"state-{step:09d}.safetensors" for step in (4, 6)}
    assert saved(of[0]) == {"finished.json", *states}  # kept until the parameters are published
    assert all(same(a, b) for a, b in zip(whole, trained(of, mode, recipe=recipe, progress=until(0)), strict=True))


@pytest.mark.usefixtures("a_second_a_step")
@pytest.mark.parametrize(("seconds", "steps"), [(0, [3, 4]), (3, [3]), (60, [])])
def test_progress_is_saved_by_time(tmp_path, seconds, steps):
    """Claim: a save is due ``save_seconds`` after the last one; the last two are kept, and the last step is always saved."""
    of = members(tmp_path)
    with pytest.raises(Killed):
        trained(of, Alone(save_seconds=seconds), progress=until(4))
    assert sorted((of[0].folder / "progress").glob("*.json")) == [of[0].folder / "progress" / f"{step:09d}.json" for step in steps]
    trained(of, Alone(save_seconds=seconds))
    assert {"finished.json", "000000006.json"} <= saved(of[0])


@pytest.mark.usefixtures("a_second_a_step")
def test_resuming_really_starts_from_what_was_saved(tmp_path):
    """Claim: the test above can fail: another saved state gives another result."""
    of, other = members(tmp_path / "a"), members(tmp_path / "b", seeds=[4] * 4)
    for each in (of, other):
        with pytest.raises(Killed):
            trained(each, Together(save_seconds=2), progress=until(4))
    true = trained(members(tmp_path / "whole"), Together(save_seconds=2))
    for name in ("state-000000004.safetensors", "000000004.json"):
        (other[1].folder / "progress" / name).replace(of[1].folder / "progress" / name)
    ended = trained(of, Together(save_seconds=2))
    assert [same(a, b) for a, b in zip(true, ended, strict=True)] == [True, False, True, True]


class Momentumless(torch.optim.SGD):
    """An optimizer that is not elementwise: it divides by the norm of each tensor."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad /= p.grad.norm()
        return super().step()


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        (Together(), {"model": UNET}, "train each alone"),
        (Together(), {"optimizer": functools.partial(Momentumless, lr=0.1)}, "sgd, adam, adamw"),
        (Alone(), {"optimizer": torch.optim.LBFGS}, "sgd, adam, adamw"),
        (Together(), {"recipe": dataclasses.replace(RECIPE, precision="16-mixed")}, r"Recipe\.precision=16-mixed"),
    ],
)
def test_what_a_mode_cannot_train_is_refused_by_name(tmp_path, mode, changes, message):
    with pytest.raises(ValueError, match=message):
        trained(members(tmp_path), mode, **changes)


class _Normalized(Small):
    def __init__(self):
        super().__init__()
        self.batch = nn.BatchNorm2d(1)

    def forward(self, x, t):
        return super().forward(self.batch(x), t)


def test_a_parameter_without_a_gradient_and_a_row_too_many_are_refused(tmp_path):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))

        def forward(self, x, t):
            return x * self.used

    for mode in (Together(), Alone()):
        with pytest.raises(ValueError, match="parameter idle"):
            trained(members(tmp_path), mode, model=Idle)
        with pytest.raises(ValueError, match="changes its buffers"):
            trained(members(tmp_path), mode, model=_Normalized)
    with pytest.raises(ValueError, match=r"row 24 .*only 24 rows"):
        trained([Member(3, Selection(np.array([1, 24])), tmp_path)], Together())
    with pytest.raises(ValueError, match=r"Together\.group=0"):
        Together(group=0)


def test_a_loss_that_explodes_is_named(tmp_path):
    """Claim: an infinite loss stops training, names seed and step, and leaves no parameters."""
    with pytest.raises(FloatingPointError, match=r"seed 3 on 12 examples .* at step 2: lower the learning rate"):
        trained(members(tmp_path), Together(), optimizer=functools.partial(torch.optim.SGD, lr=1e200))
    assert not (tmp_path / "0" / PARAMETERS).exists()


def test_frozen_parameters_and_buffers_are_each_model_s_own(tmp_path):
    """Claim: parameters that are not trained keep their initial values."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.frozen = nn.Parameter(torch.randn(())), nn.Parameter(torch.randn(4), requires_grad=False)
            self.register_buffer("offset", torch.randn(1, 8, 8))

        def forward(self, x, t):
            return x * self.w * self.frozen.sum() + self.offset

    for mode in (Together(), Alone()):
        folder = tmp_path / type(mode).__name__
        ended = trained(members(folder / "m", seeds=[1, 2, 3, 4]), mode, model=Scaled)
        for m, parameters in enumerate(ended):
            assert_close(parameters, by_fit(members(folder / "m", seeds=[1, 2, 3, 4])[m], folder / f"f{m}", Scaled))


def test_a_selection_is_its_content():
    """Claim: the identity depends on rows and weights, not on their order or on how they are given."""
    a = Selection(np.array([4, 1, 3]), np.array([2.0, 1.0, 0.5]))
    assert a.rows.tolist() == [1, 3, 4]
    assert a.weights_of(np.arange(3)).tolist() == [1, 0.5, 2]
    assert describe(a) == describe(Selection([1, 3, 4], [1, 0.5, 2]))  # pyright: ignore[reportArgumentType]
    mask = np.array([False, True, False, True, True])
    plain = Selection.of(mask)
    assert describe(plain) == describe(Selection(np.array([1, 3, 4]), np.ones(3))) == describe(Selection.without([0, 2], 5))
    assert describe(plain) != describe(a) != describe(Selection(a.rows, np.array([1.0, 0.5, 1.99])))
    assert describe(plain) != describe(Selection.weighted(mask.astype(float)))
    for rows, weights, message in (
        ([], None, "at least one row"),
        ([1, 1], None, "row 1 twice"),
        ([-1], None, "from 0"),
        ([0, 1], [1.0], "as many weights"),
        ([0], [np.nan], "finite"),
        ([0], [-1.0], "not negative"),
        ([0, 1], [0.0, 0.0], "one weight above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Selection(np.array(rows, dtype=int), weights if weights is None else np.array(weights))
    for bad in ([0, 1, 1], np.ones((2, 3), bool), [0.0, 1.0]):
        with pytest.raises(ValueError, match="one boolean per row"):
            Selection.of(bad)
    with pytest.raises(ValueError, match="at least one row"):
        Selection.of(np.zeros(4, bool))
    for bad in ([1, 1], [-1], [5], [0.5]):
        with pytest.raises(ValueError, match=r"different whole numbers in 0\.\.4"):
            Selection.without(bad, 5)
