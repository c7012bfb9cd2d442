"""Averages of ranks on the command line: their parts are composed by name, as compared estimators are."""

from dataclasses import replace

import pytest

from attribution.curvature import EKFAC
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.rank_average import RankAverage
from experiments.tasks.settings import SettingError
from tests.experiments.tasks.test_equal_draws import compared, estimators


@pytest.mark.slow
def test_parts_are_the_compared_estimators():
    """Claim: each part equals the estimator of its name, with the draws and settings of the command line, chosen or compared."""
    found = estimators("estimator=balanced_kfac", "estimator.draws.n=12", "estimator.models=2", compared("standard_average"))
    average, balanced = found["standard_average"], found["balanced_kfac"]
    assert isinstance(average, RankAverage)
    assert (list(average.parts), average.normalize) == (["balanced_kfac", "shared_kfac"], "standard")
    assert average.parts["balanced_kfac"] == balanced
    assert (balanced.draws.count, balanced.models) == (12, 2)
    assert average.parts["shared_kfac"].draws_of({}) == (12, 12)
    average = estimators("estimator=rank_average", "estimator.of=[ekfac,raw_cos]", compared())["rank_average"]
    assert isinstance(average, RankAverage)
    ekfac = average.parts["ekfac"]
    assert isinstance(ekfac, KFACInfluence)
    assert isinstance(ekfac.curvature, EKFAC)  # of its own file


@pytest.mark.slow
def test_lists_and_bins_of_the_command_line():
    """Claim: parts take the largest number of draws, no bins, and every damping of a list; the estimators beside them the lists."""
    draws = ["estimator.draws.n=[4,8]", "estimator.draws.train=[2,6]", "estimator.draws.bins=2"]
    found = estimators(*draws, "estimator.damping=[1e-8,0.1]", compared("standard_average", "shared_kfac"))
    average, kfac = found["standard_average"], found["kfac"]
    assert isinstance(average, RankAverage)
    assert isinstance(kfac, KFACInfluence)
    assert (kfac.draws.prefixes, kfac.draws.bins) == ([4, 8], 2)
    assert {part.draws_of({}) for part in average.parts.values()} == {(8, 6)}
    assert {part.draws.bins for part in average.parts.values() if isinstance(part, KFACInfluence)} == {1}
    assert average.requested() == {"damping": [1e-8, 0.1]}
    chosen = estimators("estimator=balanced_kfac", *draws, compared("standard_average"))
    assert isinstance(average := chosen["standard_average"], RankAverage)
    assert average.parts["balanced_kfac"].draws_of({}) == (8, 6)
    assert chosen["balanced_kfac"].draws_of({"estimator.draws.n": 4}) == (4, 2)


@pytest.mark.slow
def test_settings_that_only_some_parts_take():
    """Claim: the scale of ASTRA's recursion is none of an average, and shared draws take no groups of the command line."""
    found = estimators("estimator=astra", "estimator.scale=32", "estimator.draws.replicates=1", compared("standard_average"))
    assert isinstance(average := found["standard_average"], RankAverage)
    assert average.normalize == "standard"
    arguments = ("estimator.of=[balanced_kfac,astra]", "estimator.normalize=standard", compared("astra"))
    assert estimators("estimator=rank_average", *arguments)["rank_average"] == replace(
        average, of={"balanced_kfac": average.parts["balanced_kfac"], "astra": replace(found["astra"], scale=64)}
    )
    found = estimators("estimator=balanced_kfac", "estimator.draws.replicates=4", compared("standard_average", "shared_kfac"))
    assert isinstance(average := found["standard_average"], RankAverage)
    assert found["balanced_kfac"].draws.replicates == 4
    assert found["balanced_kfac"] == average.parts["balanced_kfac"]
    assert found["shared_kfac"] == average.parts["shared_kfac"]


def test_a_compared_estimator_that_refuses_a_setting_is_named():
    """Claim: a list of dampings is not for ASTRA, and the sentence names it."""
    with pytest.raises(SettingError, match=r"benchmark.compare=\[astra\]: estimator.damping=\[1e-08,0.0001\]"):
        estimators("estimator.damping=[1e-8,1e-4]", compared("astra"))
