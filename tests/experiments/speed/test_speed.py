"""The rows of ``task=speed``: counts, ratios and keys. Times are not tested."""

import importlib.util
import itertools
import math

import pytest
import torch
from torch import nn

from attribution.diffusion import denoiser
from attribution.measurements import Loss
from experiments.report.row import Row
from experiments.speed import features, peers, timing
from experiments.speed.curvature import curvature_speed
from experiments.speed.gradients import draws_speed, gradient_speed
from experiments.speed.timing import seconds_per_pass
from tests.attribution.curvature import curvature_worlds as worlds
from tests.worlds import OBJECTIVE, PROCESS, UNET

SHAPE = (1, 8, 8)
PEER = "curvlinops / kfac factors"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return curvature_speed(UNET(), SHAPE, OBJECTIVE, examples=2, draws=[1, 2], repeats=2)


def values(rows: list[Row], draws: int) -> dict[str, float]:
    return {row.metric: row.estimate.value for row in rows if row.about["draws"] == draws}


@pytest.mark.slow
def test_rows_of_curvature(rows):
    """Claim: there are the same rows for every number of draws, positive and finite; those of curvlinops if it is installed."""
    expected = {"kfac factors", "kfac multiplications", "kfac floor", "kfac reduce", "ekfac eigenvalues"}
    installed = {PEER} if importlib.util.find_spec("curvlinops") else set()
    for draws in (1, 2):
        found = values(rows, draws)
        assert found.keys() == {f"{name} / plain" for name in expected} | installed
        assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert {row.about["examples"] for row in rows} == {2}
    assert {row.estimator for row in rows} == {"2 examples × 1 draws", "2 examples × 2 draws"}


def test_fewer_multiplications_than_written_out(rows):
    """Claim: factors need fewer multiplications than a aᵀ at every position, and more than 2/3 of the plain pass."""
    found = values(rows, 2)
    assert 2 / 3 < found["kfac multiplications / plain"] < found["kfac floor / plain"]


def test_counts_of_a_perceptron():
    """Claim: multiplications of Linear 16 → 5 → 16 on 6 inputs are as counted by hand."""
    n, first, second = 6, 16 * 5, 5 * 16
    plain = 2 * n * first + 3 * n * second  # nothing is differentiated by the image
    without = n * first + 2 * n * second
    floor = without + n * (17**2 + 5**2 + 6**2 + 16**2)
    model = worlds.perceptron()
    found = values(curvature_speed(model, (1, 4, 4), OBJECTIVE, examples=2, draws=[3], repeats=1), 3)
    assert found["kfac floor / plain"] == pytest.approx(floor / plain, rel=1e-12)
    ours = without + n * (16**2 + 5**2 + 5**2 + 16**2)  # the bias row of A is a sum
    assert found["kfac multiplications / plain"] == pytest.approx(ours / plain, rel=1e-12)


def test_multiplications():
    """Claim: a matrix product of [2, 3] and [3, 5] takes 30 multiplications."""
    assert timing.multiplications(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 30


def test_without_the_peer(monkeypatch, capsys):
    """Claim: without curvlinops its row is left out, and a line is printed."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = curvature_speed(worlds.perceptron(), (1, 4, 4), OBJECTIVE, examples=1, draws=[1], repeats=1)
    assert PEER not in {row.metric for row in found}
    assert "curvlinops is not installed" in capsys.readouterr().out


def test_the_model_is_left_as_it_was(rows):
    """Claim: training mode, requires_grad and hooks are unchanged."""
    model = UNET().train()
    model.conv_in.requires_grad_(False)
    curvature_speed(model, SHAPE, OBJECTIVE, examples=1, draws=[1], repeats=1)
    assert model.training
    assert all(p.requires_grad != name.startswith("conv_in") for name, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_ratio_takes_turns_and_medians(monkeypatch):
    """Claim: the first round is a warm-up; value and quartiles are those of the ratios of each round."""
    turns = []
    times = itertools.chain([100, 1], [2, 1], [9, 3], [8, 2])
    monkeypatch.setattr(timing, "seconds_of", lambda run: (run(), float(next(times)))[1])
    result = timing.ratio(lambda: turns.append("ours"), lambda: turns.append("other"), repeats=3)
    assert turns == ["ours", "other"] * 4
    assert (result.estimate.value, result.estimate.low, result.estimate.high, result.estimate.level) == (3, 2.5, 3.5, 0.5)
    assert result.about == {"seconds": 8, "reference_seconds": 2, "repeats": 3}


def test_rows_of_gradients_and_draws():
    """Claim: there is a row for each metric and number of draws; ``vmap`` per draw only for several draws."""
    model, measure = UNET(), Loss(PROCESS)
    found = gradient_speed(model, SHAPE, measure, examples=2, draws=[1, 2], repeats=1)
    found += draws_speed(model, SHAPE, measure, examples=2, draws=[1, 2], repeats=1)
    metrics = ["gradients / plain", "normalized gradients / plain", "vmap / gradients"]
    both = {"vmap per draw / gradients", "draws / plain", *metrics}
    assert values(found, 1).keys() == both - {"vmap per draw / gradients"}
    assert values(found, 2).keys() == both
    assert seconds_per_pass(nn.Module.eval(model), SHAPE, measure) > 0


SHARED_PASSES = {"both features / loss", "both features / apart"}


def test_rows_of_features():
    """Claim: there are rows for each projection, each installed library and each error; all are positive and finite."""
    found = features.feature_speed(worlds.perceptron(), (1, 4, 4), OBJECTIVE, examples=3, draws=[2], repeats=2)
    kinds, sized = {"sjlt", "rademacher", "gaussian", "kronecker"}, {"sjlt", "rademacher", "gaussian"}
    others = {name for name, module in (("traker", "trak"), ("dattri", "dattri")) if importlib.util.find_spec(module)}
    expected = {f"features, {kind} / plain" for kind in {"none", *kinds}} | {f"error of cosines, {kind}" for kind in kinds}
    expected |= SHARED_PASSES
    expected |= {f"{other}{how} / features, {kind}" for other in others for how in ("", ", P kept") for kind in sized}
    assert values(found, 2).keys() == expected
    assert all(math.isfinite(row.estimate.value) and row.estimate.value > 0 for row in found)


def test_error_of_cosines():
    """Claim: the error of three rows is as computed by hand; lengths do not matter, and each pair counts once."""
    gradients = torch.tensor([[1.0, 0], [2, 0], [0, 3]])  # cosines 1, 0, 0
    angles = torch.tensor([0, math.pi / 3, math.pi / 2])
    found = 5 * torch.stack([angles.cos(), angles.sin()], 1)  # cosines 1/2, 0, cos 30°
    assert features.error_of_cosines(found, gradients) == pytest.approx(math.sqrt((1 / 4 + 0 + 3 / 4) / 3))


def test_rounds_take_turns(monkeypatch):
    """Claim: every run is called once per round; the first round is left out; ratios are within a round."""
    turns = []
    times = itertools.chain([100, 100], [2, 1], [9, 3], [8, 2])
    monkeypatch.setattr(timing, "seconds_of", lambda run: (run(), float(next(times)))[1])
    seconds = timing.in_turns({"ours": lambda: turns.append("ours"), "other": lambda: turns.append("other")}, repeats=3)
    assert turns == ["ours", "other"] * 4
    result = timing.quotient(seconds["ours"], seconds["other"])
    assert (result.estimate.value, result.estimate.low, result.estimate.high, result.estimate.level) == (3, 2.5, 3.5, 0.5)
    assert result.about == {"seconds": 8, "reference_seconds": 2, "repeats": 3}


@pytest.mark.parametrize(("peer", "module"), [("traker", "trak.projectors"), ("dattri", "dattri.func.projection")])
def test_other_libraries_project_the_same_gradients(peer, module):
    """Claim: the timed runs project the gradient of each example's mean loss over draws; P is kept if memory allows."""
    pytest.importorskip(module)
    model, measure, k = UNET().eval(), Loss(PROCESS), 8
    x0, draws = timing.inputs(model, SHAPE, 2, 3, PROCESS.T)
    make = getattr(peers, f"{peer}_features")
    assert make(model, measure, x0, draws, k, memory=0).keys() == {peer}
    parameters = list(model.parameters())
    costs = measure(denoiser(model), *measure.inputs(x0, draws)).view(2, 3).mean(1)
    truth = [torch.cat([g.flatten() for g in torch.autograd.grad(c, parameters, retain_graph=True)]) for c in costs]
    truth = torch.stack(truth) / math.sqrt(sum(p.numel() for p in parameters))
    projector = importlib.import_module(module).BasicProjector(truth.shape[1], k, 0, "normal", torch.device("cpu"), block_size=k)
    torch.testing.assert_close(make(model, measure, x0, draws, k, memory=1e9)[f"{peer}, P kept"](), projector.project(truth, 0))


def test_without_other_libraries(monkeypatch, capsys):
    """Claim: without traker and dattri their rows are left out, and lines are printed."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = features.feature_speed(worlds.perceptron(), (1, 4, 4), OBJECTIVE, examples=1, draws=[1], repeats=1)
    assert {row.metric for row in found} == SHARED_PASSES | {f"features, {kind} / plain" for kind in features.KINDS}
    said = capsys.readouterr().out
    assert "traker is not installed" in said
    assert "dattri is not installed" in said
