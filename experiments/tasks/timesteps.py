"""``task=timesteps``: the window of timesteps to draw from, chosen without retraining."""

from collections.abc import Sequence
from dataclasses import replace

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from attribution.estimators import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.layers import refuse_layers
from attribution.images.bins import labels
from attribution.images.draws import MOST_REPLICATES, Uniform
from experiments import figures
from experiments.estimators.timestep_groups import TimestepGroups
from experiments.metrics import windows
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.models.subsets import RandomSubsets
from experiments.report.row import Row, Subject
from experiments.tasks.before_training import check_before_training
from experiments.tasks.composition import chosen_estimator
from experiments.tasks.model_quality import report_models
from experiments.tasks.run_context import announce, run_context
from experiments.tasks.settings import SettingError, build

BENCHMARK = "timesteps"
METRIC = "agreement_%"


def timesteps(config: DictConfig, draws: Sequence[int], bins: int, groups: int, halves: int) -> None:
    """Report, for each number of ``draws``, the window with the largest agreement, and say how to set it.

    Args:
        draws: Numbers of draws of either side, for each of which a window is chosen.
        bins: Number of equal stretches of the timesteps, at whose ends windows begin and end.
        groups: Number of groups that the draws of either side are cut into.
        halves: Number of random halves of the training images for which scores predict.

    Raises:
        SettingError: If a setting is invalid, or the draws say nothing about any window.
    """
    name, estimator = chosen_estimator(config)
    _check(name, estimator, draws, bins, groups, halves)
    assert isinstance(estimator, KFACInfluence)
    assert isinstance(estimator.draws, Uniform)
    kind = HydraConfig.get().runtime.choices["queries"]
    with run_context(config) as run:
        experiment, get = run.experiment, run.store
        queries = build(config, "queries").node(experiment)
        binned = replace(estimator, draws=replace(estimator.draws, bins=bins))
        check_before_training(run, binned)
        estimator.measurement.subject(queries)  # raises if it measures none of them
        T = experiment.attributed.process.T
        subsets = RandomSubsets(count=halves, seed=config.seed)
        node = TimestepGroups(binned, experiment.attributed, experiment.train, queries, groups, subsets)
        announce([experiment.trained, node], get)
        predictions = get(node).values
        query, train = estimator.draws.pairs[0]
        edges = [tuple(map(int, label.split("-"))) for label in labels(bins, T)[1:]]
        for n in draws:
            found = windows.agreement(predictions, n / query, n / train)
            try:
                first, last = windows.best(found)
            except ValueError as error:
                raise SettingError(f"estimator.draws.n={query}: {error}; draw more, or take more queries") from error
            low, high = edges[first][0], edges[last][1]
            whole, chosen = (_row(name, kind, n, *ends) for ends in ((1, T, found[0, -1]), (low, high, found[first, last])))
            run.report.add([chosen, whole] if (low, high) != (1, T) else [whole])
            title = f"Expected agreement with endless draws of all timesteps, {n} draws of either side, {kind} queries"
            starts, ends = ([f"from {low}" for low, _ in edges], [f"to {high}" for _, high in edges])
            figure = figures.matrix(PERCENT * found, starts, ends, title, "%", symmetric=False)
            run.report.figure(f"agreement_{n}", figure)
            run.report.note(
                f"{n} draws of either side: draws@estimator.draws=window estimator.draws.low={low} estimator.draws.high={high}"
            )
        report_models(run, estimator)


def _row(name: str, kind: str, n: int, low: int, high: int, agreement: float) -> Row:
    """The agreement of the window low..high with n draws of either side."""
    value = Estimate(float(PERCENT * agreement))
    return Row(
        benchmark=BENCHMARK,
        metric=METRIC,
        subject=Subject(name),
        estimate=value,
        queries=kind,
        swept={"draws": n, "window": f"{low}-{high}"},
    )


def _check(name: str, estimator: Estimator, draws: Sequence[int], bins: int, groups: int, halves: int) -> None:
    """Raise SettingError for settings from which no window can be chosen."""
    if not isinstance(estimator, KFACInfluence):
        message = "a window is chosen from scores of K-FAC influence: choose estimator=kfac, and set the window for this one"
        raise SettingError(f"estimator={name}: {message}")
    refuse_layers(estimator, "a window")
    scheme = estimator.draws
    if not isinstance(scheme, Uniform) or scheme.replicates != 1 or scheme.bins > 1 or len(scheme.pairs) > 1 or scheme.shared:
        needed = "draws@estimator.draws=uniform with one number n, replicates=1, bins=1 and shared=false"
        raise SettingError(f"estimator.draws: task=timesteps needs {needed}")
    if estimator.models != 1:
        raise SettingError(f"estimator.models={estimator.models}: a window is chosen for one model: set 1")
    if len(estimator.dampings) != 1:
        raise SettingError(f"estimator.damping={list(estimator.dampings)}: a window is chosen at one damping")
    for setting, value, least, most in (
        ("bins", bins, 2, 100),
        ("groups", groups, 2, MOST_REPLICATES),
        ("halves", halves, 8, 10_000),
    ):
        if not least <= value <= most:
            raise SettingError(f"task.{setting}={value}: must be within {least}..{most}")
    if not draws or min(draws) < 1:
        raise SettingError(f"task.draws={list(draws)}: give numbers of draws of at least 1")
    query, train = scheme.pairs[0]
    for setting, count in (("n", query), ("train", train)):
        if count % groups:
            raise SettingError(f"task.groups={groups}: estimator.draws.{setting}={count} cannot be cut into as many equal groups")
