"""``task=attribute``: scores of all training images for the chosen ``queries``, written to files."""

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.final_self_influence import self_influence as node_of_self_influence
from attribution.estimators.replicated import in_groups
from attribution.estimators.self_influence import Influence
from attribution.images import Images
from attribution.nodes import Node
from experiments import figures
from experiments.benchmarks.draw_noise import noise_bands
from experiments.benchmarks.variants import subject_of, variants_of
from experiments.datasets.groups import GroupError, groups_of, summary
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap
from experiments.metrics.correlation import split_half_spearman
from experiments.metrics.duplicates import SAME
from experiments.models.experiment import Experiment
from experiments.report.attributions import Attributions
from experiments.report.group_files import write_groups, write_members
from experiments.report.row import Row
from experiments.report.score_files import write_images, write_proponents, write_self_influence
from experiments.tasks.before_training import check_before_training
from experiments.tasks.composition import chosen_estimator
from experiments.tasks.model_quality import report_models
from experiments.tasks.run_context import announce, print_notes, run_context
from experiments.tasks.settings import SettingError, build

_SHOWN = 8
"""The largest number of queries in the figure."""
_RESAMPLES = 1000
"""The number of resamples of the draws that give the probability that an image is among the listed ones."""


def attribute(config: DictConfig, top: int, self_influence: bool, groups: str | None = None, distance: float = SAME) -> None:
    """Score all training images and write the files of :mod:`experiments.report.score_files`.

    Args:
        top: Number of proponents and of opponents per CSV file.
        self_influence: Also write the self-influence of every training image.
        groups: Also write the scores of groups of training images: "label", "folder", "duplicates" or a CSV file.
        distance: Of neighbors in a cluster of near-duplicates, within 0..1.

    Raises:
        SettingError: If ``top`` is below 1, or ``distance`` not within 0..1, or ``self_influence`` is true and the estimator has
            none, or there are no such groups.
    """
    name, estimator = chosen_estimator(config)
    if top < 1:
        raise SettingError(f"task.top={top}: must be at least 1 (proponents and opponents per CSV)")
    if not 0 <= distance <= 1:
        raise SettingError(f"task.distance={distance}: must be within 0..1, a share of the range of pixels")
    with run_context(config) as run:
        experiment, get = run.experiment, run.store
        queries = build(config, "queries").node(experiment)
        estimator = in_groups(estimator, experiment.attributed, queries.count, experiment.train.count)
        check_before_training(run, estimator)
        grouped = None if groups is None else _groups(experiment.data.load().train, groups, distance)
        node = estimator.scores(experiment.attributed, experiment.train, queries)
        of_itself = _self_influence(name, estimator, experiment) if self_influence else None
        print_notes(estimator.notes())
        wanted: list[Node] = [node, *([] if of_itself is None else [of_itself])]
        announce([experiment.trained, *wanted], get)
        get.many(wanted)  # together: they share passes
        scores, train, explained = get(node), get(experiment.train), get(queries)
        variants = [variant for variant in variants_of(name, estimator, node, scores, get) if variant.all_timesteps]
        folder = run.folder / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        scores.save(folder)
        write_images(folder / "queries.csv", explained)
        write_images(folder / "train.csv", train)
        if grouped is not None:
            write_members(folder, train, grouped)
        for variant in variants:
            path = folder if len(variants) == 1 else folder / variant.label
            path.mkdir(parents=True, exist_ok=True)
            if grouped is not None:
                write_groups(path, variant.scores, explained, grouped)
            write_proponents(path, variant.scores, explained, train, top, Bootstrap(_RESAMPLES, config.seed))
        print(f"scores and a CSV for each query: {folder}")
        if scores.halves is not None:
            reliability = Bootstrap(seed=config.seed).mean(split_half_spearman(scores.halves), limits=CORRELATION_LIMITS).estimate()
            subject = subject_of(name, estimator, node, get)
            run.report.add([Row(benchmark="attribute", metric="split_half_spearman", subject=subject, estimate=reliability)])
        shown, values = range(min(_SHOWN, len(scores.query_index))), {v.label: v.scores.values for v in variants}
        noise = noise_bands(variants)
        run.report.attribute(Attributions(HydraConfig.get().runtime.choices["queries"], explained, train, values, noise))
        run.report.figure("proponents", figures.proponents(explained, train, values, shown, noise=noise))
        report_models(run, estimator)
        if of_itself is not None:
            influence = get(of_itself)
            path = run.folder / "self_influence.csv"
            write_self_influence(path, influence.values, train)
            print(f"self-influence of every training image: {path}")


def _groups(train: Images, by: str, distance: float) -> dict[str, np.ndarray]:
    """The rows of each group of training images; print how many groups there are.

    Raises:
        SettingError: there are no such groups.
    """
    try:
        groups = groups_of(train, by, distance)
    except GroupError as error:
        setting = f"task.distance={distance}" if error.distance else f"task.groups={by}"
        raise SettingError(f"{setting}: {error}") from error
    print(summary(groups, by, distance, len(train)))
    return groups


def _self_influence(name: str, estimator: Estimator, experiment: Experiment) -> Node[Influence]:
    """The self-influence of the training images.

    Raises:
        SettingError: the estimator has none.
    """
    try:
        return node_of_self_influence(estimator, experiment.attributed, experiment.train)
    except FieldError:
        raise
    except ValueError as error:
        raise SettingError(f"task.self_influence=true: estimator={name}: {error}") from error
