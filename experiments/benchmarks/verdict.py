"""Can an estimator be trusted? LDS, deletion, insertion and controls with known answers, for the same estimators and queries."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from attribution.checks import FieldError, listed, number, positive, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import verdict_parts
from experiments.benchmarks.disagreement import disagreements
from experiments.benchmarks.lds import APART
from experiments.benchmarks.removals import Ranking, Removals
from experiments.benchmarks.subset_benchmark import SubsetBenchmark
from experiments.benchmarks.variants import Variant, computed, scores_of, scores_under, variants_for
from experiments.benchmarks.verdict_table import figure_titles, verdict_table
from experiments.datasets import Split
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.models.planted import PlantedImages
from experiments.models.retrained import Retrained
from experiments.models.subsets import VariedSubsets
from experiments.models.trained import TrainedModel
from experiments.report.attributions import Attributions
from experiments.report.report import Report

LDS, DELETION, INSERTION, SIZES, PLANTED, CONSISTENCY = "lds", "deletion", "insertion", "sizes", "planted", "consistency"
PARTS = (LDS, DELETION, INSERTION, SIZES, PLANTED, CONSISTENCY)
SECOND = APART
"""The seed of the second training minus that of the explained model: the second one of ``benchmark=lds`` with ``trainings``."""
REMOVED_SHARE, KEPT_SHARE = 1 / 20, 1 / 4
"""The default shares of the training images that deletion removes and that insertion trains on."""

AllScores = Mapping[tuple[str, str], Node[Scores]]


@dataclass(frozen=True, kw_only=True)
class Verdict(SubsetBenchmark):
    """What is known about the scores of each estimator, in the ``parts`` that are named.

    - lds: the LDS, that of ``benchmark=lds`` at these settings, also in per cent of the noise ceiling
    - deletion: the change of a query's measurement by training without its top ``k``, with each of ``retrainings`` seeds
    - insertion: how much better than ``random`` sets its top ``kept`` train a model alone
    - sizes: the LDS on ``varied`` subsets, beside that of counting the images, and what is left without the effect of size
    - planted: whether ``copies`` near-copies of each query are found that replace random training images, with ``noise`` and a
      ``brightness`` in standard deviations of values
    - consistency: the rank correlation of the scores under two training runs

    A warning names estimators that LDS and deletion put into different orders. All training together takes at most ``budget`` times
    the steps of the LDS.
    """

    varied: VariedSubsets
    parts: Sequence[str] = PARTS
    k: Sequence[int] | None = None
    kept: int | None = None
    random: int = 3
    retrainings: int = 2
    copies: int = 2
    noise: float = 0.1
    brightness: float = 0.3
    budget: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        listed(self, "parts", _known_part)
        for name in ("random", "retrainings", "copies"):
            whole(self, name, least=1)
        for name in ("noise", "brightness"):
            number(self, name, least=0)
        positive(self, "budget")

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        self._check(experiment)
        scores = scores_of(experiment, estimators, self.queries)
        retrained, others = self._subsets(experiment), self._others(experiment, estimators)
        removals = self._removals(experiment, estimators, scores)
        self._check_budget(experiment, estimators, scores, list(removals.values()))
        measured = [node for of_kind in retrained.values() for nodes in of_kind.values() for node in nodes]
        return [*scores.values(), *measured, *(node for nodes in others.values() for node in nodes.values()), *removals.values()]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = scores_of(experiment, estimators, self.queries)
        scores = computed(nodes, get)
        rows, table = [], []
        for kind, choice in self.queries.items():
            queries = get(choice.node(experiment))
            variants = _all_timesteps(variants_for(kind, estimators, nodes, scores, get))
            of_queries: dict[str, Sequence[np.ndarray]] = {}
            for findings in self._findings(kind, variants, nodes, experiment, estimators, get):
                rows += report.add(findings.rows)
                of_queries |= findings.of_queries
            table += verdict_parts.lines_of_queries(kind, queries, variants, of_queries)
            shown = {variant.label: variant.scores.values for variant in variants}
            report.attribute(Attributions(kind, queries, get(experiment.train), shown))
        warnings, within_noise = disagreements(rows, self.removed(experiment))
        for warning in warnings:
            report.warn(warning)
        for note in (*within_noise, self._note_on_steps(experiment, estimators, nodes, get)):
            report.note(note)
        report.table("verdict_of_queries", table)
        report.replace_table(verdict_parts.BENCHMARK, verdict_table(rows, warnings))
        report.figure("verdict", figures.panels(rows, figure_titles(rows)))

    def removed(self, experiment: Experiment) -> list[int]:
        """The numbers of top images that deletion removes."""
        return list(self.k) if self.k is not None else [max(1, round(REMOVED_SHARE * experiment.train.count))]

    def trained_on(self, experiment: Experiment) -> int:
        """The number of top images that insertion trains on."""
        return max(1, round(KEPT_SHARE * experiment.train.count)) if self.kept is None else self.kept

    def _findings(
        self,
        kind: str,
        variants: Sequence[Variant],
        nodes: AllScores,
        experiment: Experiment,
        estimators: Mapping[str, Estimator],
        get: Get,
    ) -> Iterator[verdict_parts.Findings]:
        """The findings of each part for one kind of queries, from the scores of all kinds."""
        retrained, others = self._subsets(experiment), self._others(experiment, estimators)
        if LDS in retrained:
            truth, measured = self.truth(experiment), retrained[LDS][kind]
            removed, replicates = self.subsets.removed(get(experiment.train)), truth.replicates(measured, get)
            target = truth.measured(measured, get).mean(0)
            ceiling = self.ceiling(replicates, len(removed))
            yield verdict_parts.lds(kind, variants, target, removed, ceiling, self.bootstrap, self.seeds)
        for name, removals in self._removals(experiment, estimators, nodes).items():
            sets, place = removals.sets(get), removals.place(self.queries[kind].node(experiment))
            of_kind = [
                array for (key, _), arrays in zip(nodes, sets.top, strict=True) if key == kind for array in arrays
            ]  # [variant] of [F, Q]
            measured = get(removals).measured[:, place]
            if name == DELETION:
                yield verdict_parts.deletion(
                    kind, variants, measured, of_kind, sets.random, self.removed(experiment), self.bootstrap
                )
            else:
                top, random = [array[0] for array in of_kind], sets.random[0]
                yield verdict_parts.insertion(kind, variants, measured, top, random, self.trained_on(experiment), self.bootstrap)
        if SIZES in retrained:
            truth, measured = self._of_varied.truth(experiment), retrained[SIZES][kind]
            target = truth.measured(measured, get).mean(0)
            yield verdict_parts.sizes(kind, variants, target, self.varied.removed(get(experiment.train)), self.bootstrap)
        for name, other in others.items():
            of_other = _all_timesteps(variants_for(kind, estimators, other, computed(other, get), get))
            if name == PLANTED:
                rows = self._planted(experiment).rows[self._place(kind, experiment)]
                yield verdict_parts.planted(kind, variants, of_other, rows, max(self.removed(experiment)), self.bootstrap)
            else:
                yield verdict_parts.consistency(kind, variants, of_other, self.bootstrap)

    def _subsets(self, experiment: Experiment) -> dict[str, dict[str, list[Measured]]]:
        """The measurements under models of subsets, by part and kind of queries."""
        found = {}
        for name, benchmark in ((LDS, self), (SIZES, self._of_varied)):
            if name in self.parts:
                truth = benchmark.truth(experiment)
                found[name] = {
                    kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()
                }
        return found

    @property
    def _of_varied(self) -> "Verdict":
        return replace(self, subsets=self.varied, seeds=1, repeats=0)

    def _removals(self, experiment: Experiment, estimators: Mapping[str, Estimator], scores: AllScores) -> dict[str, Removals]:
        """The models without the top images of each estimator, and those of these images only, by part."""
        N, steps = experiment.train.count, experiment.trainer.steps
        kept = self.trained_on(experiment)
        sizes = {DELETION: (self.removed(experiment), steps), INSERTION: ([kept], max(1, round(kept / N * steps)))}
        return {
            name: Removals(
                trained=experiment.training,
                rankings=[
                    Ranking(self.queries[kind].node(experiment), estimators[of], node) for (kind, of), node in scores.items()
                ],
                fractions=[k / N for k in counts],
                random=self.random,
                random_seed=self.seed,
                seeds=[experiment.seed + 1 + i for i in range(self.retrainings)],
                steps=steps,
                measurement=self.measurement,
                draws=self.draws,
                mode=self.mode.choose(experiment.training.outline, experiment.shape, experiment.trainer),
                precision=self.precision,
                only=name == INSERTION,
                regenerate=False,
                keep_models=self.keep_models,
                execution=experiment.execution,
            )
            for name, (counts, steps) in sizes.items()
            if name in self.parts
        }

    def _others(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, AllScores]:
        """The scores under the model of the planted images and under a second training run, by part."""
        found: dict[str, AllScores] = {}
        if PLANTED in self.parts:
            trained = self._further(experiment)[PLANTED]
            attributed = experiment.parameters.of(trained)
            found[PLANTED] = scores_under(attributed, trained.data, experiment, estimators, self.queries)
        if CONSISTENCY in self.parts:
            try:
                found[CONSISTENCY] = scores_of(experiment, estimators, self.queries, SECOND)
            except ValueError as error:
                if isinstance(experiment.trained, TrainedModel):
                    raise
                message = "consistency trains the explained model once more, but it is given: leave this part out"
                raise FieldError(self, "parts", message) from error
        return found

    def _further(self, experiment: Experiment) -> dict[str, TrainedModel]:
        """The models that are trained like the explained one, by part."""
        training, found = experiment.training, {}
        if PLANTED in self.parts:
            found[PLANTED] = replace(training, data=self._planted(experiment))
        if CONSISTENCY in self.parts:
            found[CONSISTENCY] = training.member(SECOND)
        return found

    def _planted(self, experiment: Experiment) -> PlantedImages:
        return PlantedImages(
            train=experiment.train,
            queries=tuple(queries.node(experiment) for queries in self.queries.values()),
            copies=self.copies,
            noise=self.noise,
            brightness=self.brightness,
            seed=self.seed,
        )

    def _place(self, kind: str, experiment: Experiment) -> slice:
        """The position of a kind of queries among all queries."""
        counts = {name: queries.node(experiment).count for name, queries in self.queries.items()}
        start = sum(list(counts.values())[: list(counts).index(kind)])
        return slice(start, start + counts[kind])

    def _check(self, experiment: Experiment) -> None:
        """Check the settings that depend on the training images."""
        N = experiment.train.count
        if self.k is not None:
            listed(self, "k", partial(whole, least=1, most=N - 1))
        if self.kept is not None:
            whole(self, "kept", least=1, most=N - 1)
        for queries in self.queries.values():
            self.measurement.subject(node := queries.node(experiment))
            if PLANTED in self.parts and isinstance(node, Split) and node.name == "train":
                raise FieldError(self, "parts", "copies of training images are no test: choose other queries, or leave out planted")
        planted = self.copies * sum(queries.node(experiment).count for queries in self.queries.values())
        if PLANTED in self.parts and planted > N // 2:
            message = f"{planted} copies would replace more than half of {N} training images: plant fewer, or take fewer queries"
            raise FieldError(self, "copies", message)

    def _check_budget(
        self,
        experiment: Experiment,
        estimators: Mapping[str, Estimator],
        scores: AllScores,
        removals: Sequence[Removals],
    ) -> None:
        lds = _steps(self.truth(experiment).models())
        each = [math.prod(map(len, estimators[name].requested().values())) for _, name in scores]  # variants
        total = lds * (LDS in self.parts) + sum(model.recipe.steps for model in self._further(experiment).values())
        total += _steps(self._of_varied.truth(experiment).models()) * (SIZES in self.parts)
        for node in removals:
            sets = (not node.only) + len(node.fractions) * self.random
            sets += len(node.fractions) * sum(n * ranking.queries.count for n, ranking in zip(each, node.rankings, strict=True))
            total += sets * len(node.seeds) * node.steps
        if total > self.budget * lds:
            message = (
                f"training takes up to {total:,} steps, {total / lds:.1f} times the {lds:,} of the LDS: compare fewer estimators, "
                f"take fewer queries (benchmark.queries.*.n), k, retrainings or parts, or raise the budget"
            )
            raise FieldError(self, "budget", message)

    def _note_on_steps(self, experiment: Experiment, estimators: Mapping[str, Estimator], nodes: AllScores, get: Get) -> str:
        """How many steps all training took, without models that are trained for several parts."""
        models = self.truth(experiment).models() if LDS in self.parts else []
        models += self._of_varied.truth(experiment).models() if SIZES in self.parts else []
        for removals in self._removals(experiment, estimators, nodes).values():
            models += removals.truth(removals.sets(get)).models()
        steps = _steps(models) + sum(model.recipe.steps for model in self._further(experiment).values())
        lds = _steps(self.truth(experiment).models())
        return f"training: {steps:,} steps, {steps / lds:.1f} times the {lds:,} of the LDS (at most {self.budget:g} times)"


def _known_part(owner: Verdict, field: str) -> None:
    index = int(field.partition("[")[2].removesuffix("]"))
    if owner.parts[index] not in PARTS:
        raise FieldError(owner, field, f"choose from {', '.join(PARTS)}")


def _all_timesteps(variants: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.all_timesteps]


def _steps(models: Sequence[Retrained]) -> int:
    """The training steps of different models."""
    return sum({model.fingerprint: model.recipe.steps for model in models}.values())
