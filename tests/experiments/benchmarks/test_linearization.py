"""The benchmark that splits errors: its truth, its predictions, its rows and what it refuses."""

from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from scipy.stats import pearsonr, spearmanr

from attribution.checks import FieldError
from attribution.nodes import InMemory
from attribution.retraining.selection import Selection
from attribution.training.order import batch_rows
from experiments.benchmarks.linearization import Linearization
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.report.report import Report
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.test_cli import FINAL
from tests.experiments.tasks.test_configs import composed

SMALL = [*FINAL, "benchmark=linearization", "optimizer=sgd", "trainer.steps=6", "trainer.precision=64-true", "trainer.clip=null",
         "benchmark.count=4", "benchmark.sizes=[1,6]", "benchmark.exact.draws.n=3", "benchmark.queries.validation.n=2",
         "benchmark.resamples=60", "queries@benchmark.queries.generated=none"]  # fmt: skip


CORRELATIONS: Any = (("spearman", spearmanr), ("pearson", pearsonr))


def built(*overrides: str) -> tuple[Any, Linearization, dict[str, Any]]:
    """Experiment, benchmark and estimators of a small configuration."""
    config = composed(*SMALL, *overrides)
    estimators = {"raw_cos": instantiate(composed(*SMALL, "estimator=raw_cos").estimator, _convert_="all")}
    return experiment_of(config), instantiate(config.benchmark, _convert_="all"), estimators


@pytest.mark.slow
def test_rows_are_comparisons_of_three_changes(tmp_path):
    """Claim: the truth is training with weights 0 and the seed of the model, predictions are Στ/N; each pair is compared."""
    experiment, benchmark, estimators = built()
    get, report = InMemory(), Report(tmp_path, data="digits", seed=0)
    models = [node.model for node in benchmark.nodes(experiment, estimators) if isinstance(node, Measured)]
    get.many([model for model in models if isinstance(model, Retrained)])  # together
    benchmark.evaluate(experiment, estimators, get, report)
    found = {(row.metric, row.subject.name, row.settings.get("removed")): row.estimate.value for row in report.rows}
    train, queries = experiment.train, benchmark.queries["validation"].node(experiment)
    N, trained, mode = (
        train.count,
        experiment.training,
        benchmark.mode.choose(experiment.training.outline, experiment.shape, experiment.trainer),
    )
    assert len({tuple(mask) for masks in benchmark._masks(N).values() for mask in masks}) == 8

    def costs(weights: np.ndarray) -> np.ndarray:
        model = Retrained.of(trained, Selection.weighted(weights), trained.seed, 6, mode, experiment.execution)
        scheme = benchmark.exact.draws
        node = Measured(
            model=model,
            images=queries,
            measure=benchmark.exact.measurement,
            draws=scheme,
            role="query",
            execution=experiment.execution,
        )
        return get(node).values

    for size, masks in benchmark._masks(N).items():
        assert ((~masks).sum(1) == size).all()
        true = np.stack([costs(mask.astype(float)) - costs(np.ones(N)) for mask in masks], 1)
        changes = {
            name: np.asarray(get(each.scores(experiment.trained, train, queries)).values, np.float64) @ (~masks).T / N
            for name, each in {"metagradient": benchmark.exact, **estimators}.items()
        }
        for against, target in (("retraining", true), ("metagradient", changes["metagradient"])):
            for name, predicted in changes.items():
                if name == against:
                    continue
                for quantity, correlation in CORRELATIONS:
                    of_queries = [correlation(a, b)[0] for a, b in zip(predicted, target, strict=True)]
                    expected = 100 * sum(of_queries) / len(of_queries)
                    assert found[f"{quantity}_with_{against}_%", name, size] == pytest.approx(expected, abs=1e-6)
                error = 100 * np.mean(np.linalg.norm(predicted - target, axis=1) / np.linalg.norm(target, axis=1))
                assert found[f"error_with_{against}_%", name, size] == pytest.approx(error)
    assert found["pearson_with_retraining_%", "metagradient", 1] > 95  # six steps without clipping are nearly linear
    assert found["error_with_retraining_%", "metagradient", 1] < found["error_with_retraining_%", "metagradient", 6]
    assert found["error_with_retraining_%", "rounding", 1] < 1e-3
    assert [path.name for path in report.figures] == ["linearization.png"]


def test_batches_stay_those_of_the_whole_training_set():
    """Claim: the models that are trained without images have all of them, with weights, so each step has the same images."""
    experiment, benchmark, _ = built()
    first, *others = benchmark._truth(experiment).models()
    assert first.selection.weights is None
    N = experiment.train.count
    for model in others:
        assert model.seed == experiment.seed
        assert model.recipe == experiment.training.recipe
        assert (model.selection.rows[batch_rows(model.seed, 3, len(model.selection), 8)] == batch_rows(model.seed, 3, N, 8)).all()
        assert model.selection.weights is not None
        assert set(model.selection.weights.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("benchmark.sizes=[1,0]", r"'sizes\[1\]', 'must be a whole number, at least 1'"),
        ("benchmark.count=2", "'count', 'must be a whole number, at least 3'"),
        ("benchmark.precision=half", "'precision', "),
    ],
)
def test_bad_settings_are_refused_by_name(override, said):
    """Claim: sets have images and are enough for a correlation; models are measured in a known precision."""
    with pytest.raises(InstantiationException, match=said):
        built(override)


def test_what_cannot_be_compared_is_refused():
    """Claim: sets leave some training images, and metagradients, which the benchmark itself has, are not chosen again."""
    experiment, benchmark, estimators = built("benchmark.sizes=[40]")
    with pytest.raises(FieldError, match=r"Linearization.sizes=.*remove fewer"):
        benchmark.nodes(experiment, estimators)
    experiment, benchmark, _ = built()
    with pytest.raises(FieldError, match="choose other estimators"):
        benchmark.nodes(experiment, {"metagradient": benchmark.exact})


def test_sizes_are_powers_of_four_and_a_half_by_default():
    """Claim: for 40 images 1, 4, 16 and 20; fewer sets of a size are the first ones of more."""
    _, benchmark, _ = built("benchmark.sizes=null")
    assert list(benchmark._masks(40)) == [1, 4, 16, 20]
    _, fewer, _ = built("benchmark.sizes=[16]", "benchmark.count=3")
    assert (fewer._masks(40)[16] == benchmark._masks(40)[16][:3]).all()
