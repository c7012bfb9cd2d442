"""Averages of ranks on the command line: their parts are composed by name, as compared estimators are."""

import pytest

from attribution.curvature import EKFAC
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.rank_average import RankAverage
from tests.experiments.tasks.test_equal_draws import compared, estimators


@pytest.mark.slow
def test_parts_are_the_compared_estimators():
    """Claim: each part equals the estimator of its name, with the draws and settings of the command line, chosen or compared."""
    found = estimators("estimator=balanced_kfac", "estimator.draws.n=12", "estimator.models=2", compared("standard_average"))
    average, balanced = found["standard_average"], found["balanced_kfac"]
    assert isinstance(average, RankAverage)
    assert (list(average.parts), average.scale) == (["astra", "balanced_kfac", "nda"], "standard")
    assert average.parts["balanced_kfac"] == balanced
    assert (balanced.draws.count, balanced.models) == (12, 2)
    average = estimators("estimator=rank_average", "estimator.of=[ekfac,raw_cos]", compared())["rank_average"]
    assert isinstance(average, RankAverage)
    ekfac = average.parts["ekfac"]
    assert isinstance(ekfac, KFACInfluence)
    assert isinstance(ekfac.curvature, EKFAC)  # of its own file
