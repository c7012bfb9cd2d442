"""What a benchmark compares: each estimator at each of its swept values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images.bins import ALL
from attribution.nodes import Node
from experiments.models.experiment import Experiment
from experiments.queries.choices import Queries


@dataclass(frozen=True)
class Variant:
    """An estimator at one value of each of its swept settings, with its scores ``[Q, N]`` and their fingerprint."""

    estimator: str
    settings: Mapping[str, Any]
    scores: Scores
    origin: str

    @property
    def label(self) -> str:
        told = (f"{name.removeprefix('estimator.')}={value}" for name, value in self.settings.items() if value != ALL)
        return " ".join([self.estimator, *told])

    @property
    def whole(self) -> bool:
        """Not the scores of some timesteps only."""
        return is_whole(self.settings)

    @property
    def row(self) -> dict[str, Any]:
        """What rows about it share."""
        return {"estimator": self.estimator, "scores": self.origin, **({"swept": self.settings} if self.settings else {})}


def scores_of(
    experiment: Experiment, estimators: Mapping[str, Estimator], queries: Mapping[str, Queries]
) -> dict[tuple[str, str], Node[Scores]]:
    """The scores that a benchmark asks for, by (kind of queries, estimator)."""
    return {
        (kind, name): estimator.scores(experiment.record, experiment.train, chosen.node(experiment))
        for kind, chosen in queries.items()
        for name, estimator in estimators.items()
    }


def is_whole(settings: Mapping[str, Any]) -> bool:
    """Whether settings ask for the scores of all timesteps."""
    return all(settings.get(name, ALL) == ALL for name in ("query_bin", "train_bin"))


def pairs(variants: Sequence[Variant]) -> list[tuple[int, int]]:
    """Whose difference is reported, by position: each of another estimator against the first estimator's at the same settings.

    Against its first where it has none at these settings, as an estimator that takes no damping.
    """
    first = variants[0].estimator
    found = []
    for b, other in enumerate(variants):
        if other.estimator != first and other.whole:
            like = (a for a, v in enumerate(variants) if v.estimator == first and v.settings == other.settings)
            found.append((next(like, 0), b))
    return found


def variants_of(name: str, estimator: Estimator, node: Node[Scores], scores: Scores) -> list[Variant]:
    """The variants that one estimator's scores hold."""
    return [Variant(name, settings, variant, node.fingerprint) for settings, variant in estimator.variants(scores)]
