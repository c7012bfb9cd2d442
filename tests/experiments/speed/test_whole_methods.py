"""Whole methods: the usual loop agrees with this program, rows are complete, and other libraries solve the same problem."""

import functools

import pytest
import torch

from attribution.diffusion.samplers import DDIMSampler
from attribution.execution import Execution
from attribution.projection import SJLT
from attribution.training.recipe import Recipe
from experiments.datasets.digits import Digits
from experiments.models.experiment import Diffusion, Experiment
from experiments.speed import peers, whole_methods
from experiments.speed.influence_peers import curvlinops_scores, kronfluence_scores
from experiments.speed.problem import Problem, agreement
from experiments.speed.trak_peers import dattri_scores, traker_scores
from experiments.speed.usual_loop import usual_loop
from tests import worlds


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    model = worlds.trained()
    return Experiment(
        data=Digits(channels=1, size=8, flips=False, levels=16),
        model=functools.partial(worlds.UNET, dropout=0.0),
        diffusion=Diffusion(worlds.PROCESS, DDIMSampler(steps=5)),
        objective=worlds.OBJECTIVE,
        optimizer=model.optimizer,
        trainer=Recipe(steps=3, batch_size=4),
        checkpoints=model.checkpoints,
        seed=0,
        hardware=model.hardware,
        execution=Execution(device="cpu"),
    )


@pytest.fixture(scope="module")
def problem(experiment, tmp_path_factory) -> Problem:
    return Problem(experiment, train=6, queries=2, draws=4, steps=3, batch=4, folder=tmp_path_factory.mktemp("store"))


def test_the_usual_loop_has_the_same_scores(problem):
    """Claim: the written-out equations give the scores of this program to rounding."""
    torch.testing.assert_close(usual_loop(problem), problem.kfac(), rtol=1e-3, atol=1e-6)


def test_kronfluence_agrees_once_B_is_summed_over_positions(problem):
    """Claim: its K-FAC divides B by the number of positions; undone, the scores are ours."""
    pytest.importorskip("kronfluence")
    run = kronfluence_scores(problem, positions_summed=True)
    assert run is not None
    torch.testing.assert_close(run(), problem.kfac(), rtol=1e-3, atol=1e-6)
    other = kronfluence_scores(problem)
    assert other is not None
    assert agreement(other(), problem.kfac()) < 0.999


def test_curvlinops_solves_the_same_problem(problem):
    """Claim: its scores agree up to its own draws of pseudo-gradients."""
    pytest.importorskip("curvlinops")
    run = curvlinops_scores(problem)
    assert run is not None
    assert agreement(run(), problem.kfac()) > 0.99


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("peer", "scores"), [("trak", traker_scores), ("dattri", dattri_scores)])
def test_other_trak_agrees_as_another_projection_does(problem, peer, scores):
    """Claim: with as many features as there are, the scores agree up to the choice of P."""
    pytest.importorskip(peer)
    run = scores(problem, 2048)
    assert run is not None
    ours = problem.trak(SJLT(2048))
    assert agreement(run(), ours) > agreement(problem.trak(SJLT(2048, seed=1)), ours) - 0.1


def test_agreement_is_the_correlation_per_query():
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    assert agreement(scores, 5 * scores + 7) == pytest.approx(1)
    assert agreement(scores, torch.stack([scores[0], -scores[1]])) == pytest.approx(0)


@pytest.mark.slow
def test_rows_without_other_libraries(experiment, monkeypatch):
    """Claim: ours and the loop are measured where no other library is installed."""
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    rows = whole_methods.method_speed(experiment, train=4, queries=2, draws=2, steps=2, batch=4, repeats=1)
    values = {row.metric: row.estimate.value for row in rows}
    assert values.keys() == {"usual loop / K-FAC", "agreement, usual loop", "agreement, TRAK with another P"}
    assert values["agreement, usual loop"] == pytest.approx(1, abs=1e-4)
    assert all(row.about["examples"] == 4 and row.about["draws"] == 2 for row in rows)
