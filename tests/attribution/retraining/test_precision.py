"""Precision, memory format and compilation: training and retraining apply them alike."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from attribution.models.trained import with_parameters
from attribution.nodes import describe
from attribution.precision import tf32_products
from attribution.retraining.modes import Alone, Mode, Together, _leaves
from attribution.training.recipe import Recipe
from tests.attribution.retraining.test_together import (
    RECIPE,
    Killed,
    Parameters,
    Small,
    assert_close,
    by_fit,
    members,
    same,
    trained,
    until,
)  # fmt: skip

SGD: Any = functools.partial(torch.optim.SGD, lr=0.05)
ADAM: Any = functools.partial(torch.optim.Adam, lr=1e-3)
MODES = [Together(save_seconds=0), Alone(save_seconds=0)]


def changed(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **{"precision": "32-true", **changes})


def flat(parameters: Parameters) -> torch.Tensor:
    return torch.cat([parameters[name].flatten().double() for name in sorted(parameters)])


def moved(parameters: Parameters, seed: int, model: Any) -> torch.Tensor:
    """How far training moved the parameters."""
    torch.manual_seed(seed)
    return flat(parameters) - flat(model().state_dict())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("mode", "near"), [(MODES[0], 0.05), (MODES[1], 1e-5)], ids=["together", "alone"])
def test_autocast_is_that_of_fit(tmp_path: Path, mode: Mode, near: float):
    """Claim: models retrained in bf16-mixed move as ``fit`` moves them under Lightning's autocast, and not as in float32."""
    recipe, of = changed(precision="bf16-mixed"), members(tmp_path / "together")[:2]
    single = trained(members(tmp_path / "float32")[:2], mode, Small, SGD, changed())
    for m, parameters in enumerate(trained(of, mode, Small, SGD, recipe)):
        assert all(tensor.dtype == torch.float32 for tensor in parameters.values())
        move = moved(parameters, of[m].seed, Small)
        assert distance(move, moved(by_fit(of[m], tmp_path / f"fit{m}", Small, SGD, recipe), of[m].seed, Small)) < near
        assert distance(move, moved(single[m], of[m].seed, Small)) > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_killed_training_under_autocast_ends_where_an_uninterrupted_one_does(tmp_path: Path, mode: Mode):
    """Claim: bit-equal after an interruption, in bf16-mixed and in the memory format channels_last."""
    recipe = changed(precision="bf16-mixed", channels_last=True)
    whole, of = trained(members(tmp_path / "whole"), mode, recipe=recipe), members(tmp_path / "pieces")
    with pytest.raises(Killed):
        trained(of, mode, recipe=recipe, progress=until(3))
    assert all(same(a, b) for a, b in zip(whole, trained(of, mode, recipe=recipe), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_channels_last_changes_rounding_only(tmp_path: Path, mode: Mode):
    """Claim: retraining and ``fit`` with channels_last agree with each other and with the other format, in float64."""
    recipe, of = changed(precision="64-true", channels_last=True), members(tmp_path / "channels_last")[:2]
    plain = trained(members(tmp_path / "plain")[:2], mode, Small, ADAM, changed(precision="64-true"))
    for m, parameters in enumerate(trained(of, mode, Small, ADAM, recipe)):
        assert all(tensor.is_contiguous() for tensor in parameters.values())
        assert_close(parameters, by_fit(of[m], tmp_path / f"fit{m}", Small, ADAM, recipe))
        assert_close(parameters, plain[m])


def test_channels_last_is_applied(tmp_path: Path):
    """Claim: the convolutions of ``fit``, and of one and of several models, have their weights in this format."""
    seen: list[bool] = []

    class Watched(Small):
        def forward(self, x, t):
            seen.append(self.last.weight.is_contiguous(memory_format=torch.channels_last) and not self.last.weight.is_contiguous())
            return super().forward(x, t)

    for recipe in (changed(), changed(channels_last=True)):
        for name in ("fit", "alone"):
            seen.clear()
            member = members(tmp_path / f"{name}{recipe.channels_last}")[0]
            if name == "fit":
                by_fit(member, member.folder, Watched, SGD, recipe)
            else:
                trained([member], Alone(), Watched, SGD, recipe)
            assert set(seen) == {recipe.channels_last}
    weights = {"conv": torch.randn(3, 4, 5, 2, 2), "linear": torch.randn(3, 4, 5)}
    leaves = _leaves(weights, changed(channels_last=True))
    assert all(torch.equal(leaves[name], tensor) for name, tensor in weights.items())
    assert leaves["conv"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert leaves["conv"][1].is_contiguous(memory_format=torch.channels_last)


class Telling(Small):
    """A network that computes something else where it is compiled."""

    def forward(self, x, t):
        return super().forward(x * 2 if torch.compiler.is_compiling() else x, t)


class Doubled(Small):
    def forward(self, x, t):
        return super().forward(x * 2, t)


@pytest.mark.slow
def test_the_network_is_compiled(tmp_path: Path):
    """Claim: ``fit`` and retraining alone run the compiled network, in few compilations, and end where uncompiled code does."""
    recipe, of = changed(precision="64-true", compiler="eager"), members(tmp_path / "alone")[:2]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trained(of, Alone(), Telling, ADAM, recipe)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # one for each size of a batch
    for m, parameters in enumerate(compiled):
        expected = by_fit(of[m], tmp_path / f"doubled{m}", Doubled, ADAM, changed(precision="64-true"))
        assert_close(parameters, expected)
        assert_close(by_fit(of[m], tmp_path / f"fit{m}", Telling, ADAM, recipe), expected)
        assert_close(with_parameters(Telling(), parameters).state_dict(), parameters)  # under the names of the network


def test_tf32_is_set_for_training_and_restored(tmp_path: Path):
    """Claim: the flags of CUDA are those of the recipe during training, and afterwards those from before."""
    seen: list[tuple[bool, bool]] = []

    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Watched(Small):
        def forward(self, x, t):
            seen.append(flags())
            return super().forward(x, t)

    before = flags()
    for precision, allowed in (("32-true", False), ("tf32", True)):
        results = []
        for name in ("fit", "alone"):
            seen.clear()
            member = members(tmp_path / f"{name}{precision}")[0]
            if name == "fit":
                results.append(by_fit(member, member.folder, Watched, ADAM, changed(precision=precision)))
            else:
                results += trained([member], Alone(), Watched, ADAM, changed(precision=precision))
            assert set(seen) == {(allowed, allowed)}
            assert flags() == before
        assert_close(*results, rtol=1e-4, atol=1e-6)
    with tf32_products(True):
        assert flags() == (True, True)
    assert flags() == before


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        (Together(), {"precision": "16-mixed"}, r"Recipe\.precision=16-mixed: models are retrained in one of"),
        (Alone(), {"precision": "bf16-true"}, r"Recipe\.precision=bf16-true: models are retrained in one of"),
        (Together(), {"compiler": "eager"}, r"Recipe\.compiler=eager: models cannot be compiled together"),
    ],
)
def test_what_cannot_be_retrained_is_refused_by_name(tmp_path: Path, mode: Mode, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        trained(members(tmp_path), mode, recipe=changed(**changes))


def test_settings_are_part_of_the_identity_and_their_defaults_are_not():
    """Claim: each is another model, because training amplifies rounding; recipes without them are described as they were."""
    plain = describe(changed())
    assert not {"channels_last", "compiler"} & plain.keys()
    others = [changed(precision="tf32"), changed(precision="bf16-mixed"), changed(channels_last=True), changed(compiler="eager")]
    descriptions = [plain, *map(describe, others)]
    assert all(a != b for i, a in enumerate(descriptions) for b in descriptions[:i])
    with pytest.raises(ValueError, match=r"Recipe\.compiler=gcc: must be null or one of inductor"):
        changed(compiler="gcc")


def test_compilation_renames_no_parameter():
    """Claim: compiling a network adds no module, so parameters keep their names."""
    network = Small()
    names = list(network.state_dict())
    network.compile(backend="eager")
    assert list(network.state_dict()) == names
