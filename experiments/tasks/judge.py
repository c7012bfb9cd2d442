"""``task=judge``: the LDS of scores in files, by measurements in files or in a bundle. It loads no data and no model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf

from attribution.images import Images
from experiments.benchmarks.lds_report import LDSInputs, LDSReport
from experiments.benchmarks.subset_benchmark import RETRAINING
from experiments.judging.bundle import read_bundle
from experiments.judging.given import Given
from experiments.judging.scores import label_of, outline, read_scores
from experiments.judging.truth import GIVEN, data_name, read_truth
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.metrics.ranking import both_ends
from experiments.report.report import Report
from experiments.report.row import Row
from experiments.tasks.run_context import report_context
from experiments.tasks.settings import SettingError, build

CONVENTION = "positive scores say that training on an image lowers the query's cost, and measurements are costs (larger is worse)"


def judge(
    config: DictConfig,
    scores: str | Sequence[str] | Mapping[str, str] | None,
    masks: str | None,
    measurements: str | Sequence[str] | None,
    bundle: str | None,
    queries: str | None,
    measure: Literal["cost", "utility"],
    flip: Sequence[str],
    data: str | None,
    top: int,
    resamples: int | None,
) -> None:
    """Report the LDS of all scores as ``benchmark=lds`` does.

    Args:
        scores: files of scores ``[Q, N]``, by the names of their estimators; the first is compared with the others.
        masks: a file of masks ``[M, N]``, true where a subset keeps a training image.
        measurements: a file of measurements ``[M, Q]`` or ``[K, M, Q]``, or K files of ``[M, Q]``.
        bundle: the folder of a bundle, in place of ``masks`` and ``measurements``. Its own scores are judged beside ``scores``.
        queries: the kind of a bundle's queries to judge; None: all.
        measure: whether larger measurements are worse (``cost``) or better (``utility``, such as a log-likelihood).
        flip: names of scores with the opposite sign.
        data: what rows and the page call the data; None: the name in the bundle, or that of the file of measurements.
        top: proponents and opponents of each query in the table ``proponents``; 0: no table.
        resamples: of the bootstrap; None: as many as the bundle's run, or 5000.

    Raises:
        SettingError: a setting is missing, or contradicts another.
        DataError: a file cannot be read or does not fit.
    """
    named = _named(scores)
    if unknown := sorted(set(flip) - named.keys()):
        raise SettingError(
            f"task.flip={list(flip)}: {unknown[0]} is none of task.scores ({', '.join(named) or 'none'}): name those"
        )
    if top < 0:
        raise SettingError(f"task.top={top}: must be at least 0 (proponents and opponents of each query)")
    if resamples is not None and resamples < 1:
        raise SettingError(f"task.resamples={resamples}: must be at least 1")
    if bundle is not None:
        if masks is not None or measurements is not None:
            raise SettingError("task.bundle: has masks and measurements of its own; leave out task.masks and task.measurements")
        if measure != "cost":
            raise SettingError(f"task.measure={measure}: the measurements of a bundle are costs; leave this out")
        found = read_bundle(Path(bundle))
        card, train, inputs = found.card, found.train, _of_kind(found.inputs, queries)
        if taken := named.keys() & {variant.subject.name for one in inputs for variant in one.variants}:
            raise SettingError(f"task.scores.{min(taken)}: the bundle has an estimator of this name; give yours another one")
    else:
        files = [measurements] if isinstance(measurements, str) else list(measurements or ())
        if not files:
            raise SettingError("task.measurements is missing: name a file of measurements [M, Q], or a bundle by task.bundle=DIR")
        if not named:
            raise SettingError("task.scores is missing: name a file of scores [Q, N]")
        if queries is not None:
            raise SettingError(f"task.queries={queries}: chooses a kind of queries of task.bundle; leave it out")
        truth = read_truth(files, masks, measure == "utility", lambda count: outline(named.values(), GIVEN, count))
        card, train = {"data": data_name(files), "seed": config.seed}, truth.train
        inputs = [LDSInputs(truth.kind, truth.queries, [], [], truth.measurements)]
    judged, notes = [], [f"Sign: {CONVENTION}."]
    for one in inputs:
        own = []
        for name, given in named.items():
            variants, said = read_scores(name, given, one, train, name in flip, alone=len(inputs) == 1)
            own += variants
            notes += said
        judged.append(replace(one, variants=[*own, *one.variants]))
    used, tracker = OmegaConf.masked_copy(config, ["task", "seed", "report"]), build(config, "tracker")
    with report_context(config, tracker, data=data or card["data"], seed=card["seed"], used=used) as report:
        result = LDSReport(report, Bootstrap(resamples or card.get("resamples") or RESAMPLES, card["seed"]))
        rows = [row for one in judged for row in result.add(one)]
        result.close()
        if top:
            report.table("proponents", [line for one in judged for line in _proponents(one, train, top)])
        for note in notes:
            report.note(note)
        warn_of_sign(report, rows)


def warn_of_sign(report: Report, rows: Sequence[Row]) -> None:
    """Add a warning if the LDS of scores is clearly below 0: then the scores or the measurements probably have the opposite sign.

    ``rows`` are all rows of the LDS, with exact retraining and differences.
    """
    own = [row for row in rows if row.minus is None and row.subject.name != RETRAINING]
    negative = [row for row in own if row.estimate.high < 0]
    if not negative:
        return
    names = ", ".join(dict.fromkeys(row.subject.label for row in negative))
    flip = "task.flip=[" + ",".join(dict.fromkeys(row.subject.name for row in negative)) + "]"
    opposite = f"{flip} if these positive scores say that training on an image raises the cost"
    if any(row.estimate.low > 0 for row in own):
        remedy = f"{opposite} (others are clearly positive, so the measurements are right)"
    else:
        remedy = f"task.measure=utility if larger measurements are better, or {opposite}"
    said = f"the LDS of {names} is clearly negative, so a sign is probably reversed"
    report.warn(f"{said}. Here {CONVENTION}. Nothing was changed; set {remedy}")


def _named(scores: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, Given]:
    """The files of scores by the names of their estimators.

    Raises:
        SettingError: two files have the same name.
    """
    if isinstance(scores, Mapping):
        return {str(name): Given(f"task.scores.{name}", file) for name, file in scores.items()}
    files = [scores] if isinstance(scores, str) else list(scores or ())
    labels = [label_of(file) for file in files]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise SettingError(
            f"task.scores={files}: two are called {repeated[0]}; name them: 'task.scores={{mine: FILE, theirs: FILE}}'"
        )
    return {label: Given("task.scores", file) for label, file in zip(labels, files, strict=True)}


def _of_kind(inputs: Sequence[LDSInputs], kind: str | None) -> list[LDSInputs]:
    found = [one for one in inputs if kind in (None, one.kind)]
    if not found:
        raise SettingError(
            f"task.queries={kind}: the bundle has the kinds {', '.join(one.kind for one in inputs)}; choose one of these"
        )
    return found


def _proponents(inputs: LDSInputs, train: Images, top: int) -> Iterator[dict[str, object]]:
    """The lines of the table of proponents (largest scores first) and opponents (smallest first) of each query."""
    for variant in inputs.variants:
        values = np.asarray(variant.scores.values)
        for side, of_queries in both_ends(values, min(top, len(train))).items():
            for row, places in enumerate(of_queries.tolist()):
                for rank, place in enumerate(places, 1):
                    yield {
                        "queries": inputs.kind,
                        "query": int(inputs.queries.index[row]),
                        "query_name": inputs.queries.name(row),
                        "estimator": variant.label,
                        "side": side,
                        "rank": rank,
                        "position": place,
                        "id": int(train.index[place]),
                        "name": train.name(place),
                        "score": f"{values[row, place]:.8g}",
                    }
