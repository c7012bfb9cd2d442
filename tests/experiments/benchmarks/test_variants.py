"""Kinds of queries that a benchmark or an estimator leaves out."""

import csv

import pytest
from hydra.utils import instantiate

from experiments.benchmarks.variants import scores_of
from experiments.queries import NoQueries
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.test_cli import FINAL, MAIN, rows, run
from tests.experiments.tasks.test_configs import composed


def benchmark_of(*overrides: str):
    config = composed(*FINAL, *overrides)
    return instantiate(config.benchmark, _convert_="all"), experiment_of(config)


def test_a_kind_without_queries_is_left_out():
    """Claim: queries@benchmark.queries.KIND=none removes the kind, whatever number the benchmark gives it; not the last one."""
    benchmark, _ = benchmark_of("queries@benchmark.queries.validation=none", "benchmark.queries.validation.n=7")
    assert list(benchmark.queries) == ["generated"]
    with pytest.raises(Exception, match="name at least one kind of queries"):
        benchmark_of("queries@benchmark.queries.validation=none", "queries@benchmark.queries.generated=none")
    with pytest.raises(ValueError, match="choose other queries"):
        NoQueries().node(experiment_of(composed()))


def test_an_estimator_is_left_out_for_queries_that_it_cannot_explain():
    """Claim: Journey-TRAK has scores for samples only; if there are no samples, it says why it has none."""
    journey = instantiate(composed("estimator=journey_trak").estimator, _convert_="all")
    raw = instantiate(composed("estimator=raw_cos").estimator, _convert_="all")
    benchmark, experiment = benchmark_of("benchmark.queries.validation.n=4")
    nodes = scores_of(experiment, {"journey_trak": journey, "raw_cos": raw}, benchmark.queries)
    assert nodes.keys() == {("validation", "raw_cos"), ("generated", "journey_trak"), ("generated", "raw_cos")}
    held_out = {"validation": benchmark.queries["validation"]}
    with pytest.raises(ValueError, match="use generated queries only"):
        scores_of(experiment, {"journey_trak": journey, "raw_cos": raw}, held_out)


@pytest.mark.slow
def test_lds_of_scores_with_replicates(tmp_path):
    """Claim: intervals are over draws and trainings as well, of differences too; a table and notes say what draws would buy."""
    draws = ["estimator.draws.n=4", "estimator.draws.replicates=2", "benchmark.trainings=2"]
    arguments = [*MAIN, "estimator=kfac", *draws, "benchmark.compare=[trak,grad_cos]", "diffusion.sampler.steps=3"]
    printed = run(tmp_path, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    found = {
        (row["estimator"], row["queries"]): row for row in rows(tmp_path / "out") if row["metric"] == "lds_%" and "interval" in row
    }
    for kind in ("validation", "generated"):
        assert found["kfac", kind]["interval"].endswith("over queries, subsets, query draws, training draws and trainings")
        assert found["trak", kind]["interval"].endswith("over queries, subsets, query draws and trainings")
        assert found["grad_cos", kind]["interval"].endswith("over queries, subsets and trainings")  # which takes no groups
        assert found["kfac − trak", kind]["interval"].endswith("query draws, training draws and trainings")
        assert found["kfac", kind]["trainings"] == 2
        shares = ("reliability", "noise_of_query_draws", "noise_of_training_draws", "noise_of_both_draws")
        assert sum(found["kfac", kind][share] for share in shares) == pytest.approx(1)
        assert found["kfac", kind]["replicates"] == 2
    with_signal = {subject for subject, row in found.items() if row.get("reliability", 0) > 0}
    assert printed.count("noise of the draws in the variance of predictions") == 2  # a line for each kind of queries
    assert printed.count("only noise, take more draws") == 4 - len(with_signal)
    table = tmp_path / "out" / "expected_lds.csv"
    lines = list(csv.DictReader(table.read_text().splitlines())) if with_signal else []
    taken = [line for line in lines if (line["draws_query"], line["draws_train"]) == ("4", "4")]
    assert {(line["estimator"], line["queries"]) for line in taken} == with_signal
    for line in taken:
        assert float(line["expected_lds_%"]) == pytest.approx(found[line["estimator"], line["queries"]]["value"])


@pytest.mark.slow
def test_lds_with_an_estimator_of_samples(tmp_path):
    """Claim: LDS has its rows for samples, also at tuned dampings, and none for validation images."""
    names = "benchmark.compare=[journey_trak,raw_cos]"
    run(tmp_path, *MAIN, "estimator=trak", names, "diffusion.sampler.steps=3", f"hydra.run.dir={tmp_path / 'out'}")
    found = {(row["queries"], row["metric"]) for row in rows(tmp_path / "out") if row["estimator"] == "journey_trak"}
    assert found == {("generated", metric) for metric in ("lds_%", "lds_%_held_out_damping", "lds_%_best_damping")}
    best = [row for row in rows(tmp_path / "out") if row["metric"] == "lds_%_best_damping" and "−" not in row["estimator"]]
    assert {row["choice"] for row in best} == {"as published: chosen where reported"}
    own = {(row["estimator"], row["queries"]): row["value"] for row in rows(tmp_path / "out") if row["metric"] == "lds_%"}
    assert all(row["value"] >= own[row["estimator"], row["queries"]] - 1e-9 for row in best)
