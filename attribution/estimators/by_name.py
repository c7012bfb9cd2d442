"""Estimators by the names that they have on the command line, with the same default settings."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

import numpy as np

from attribution.curvature import EKFAC, KFAC
from attribution.estimators.astra import ASTRA
from attribution.estimators.base import Estimator
from attribution.estimators.das import DAS
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.guided import Guided
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.layer_weights import LayerWeights
from attribution.estimators.lissa import LiSSA
from attribution.estimators.mirrored_unlearning import MirroredUnlearning
from attribution.estimators.nda import NDA
from attribution.estimators.relative_if import RelativeIF
from attribution.estimators.renorm_if import RenormIF
from attribution.estimators.rescaled_kfac import RescaledKFAC
from attribution.estimators.retrac import ReTrac
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.source import Source
from attribution.estimators.tracin import TracIn
from attribution.estimators.trak import TRAK
from attribution.estimators.unlearning import Unlearning
from attribution.execution import Execution
from attribution.images.draws import Even, Uniform
from attribution.measurements import Measure, SquareNorm
from attribution.projection import Automatic

_DRAWS, _CURVATURE_DRAWS = 64, 32


@dataclass(frozen=True)
class Choice:
    """A class with settings of its own: values, or the names of ``_defaults``."""

    kind: type[Estimator]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Default:
    """The default of this name (``_defaults``)."""

    name: str


_EVEN, _EKFAC, _SQUARE, _TENTH = _Default("even"), _Default("ekfac"), _Default("square"), _Default("tenth")

ESTIMATORS: Mapping[str, Choice] = {
    "kfac": Choice(KFACInfluence),
    "ekfac": Choice(KFACInfluence, {"curvature": _EKFAC}),
    "trak": Choice(TRAK),
    "dtrak": Choice(TRAK, {"measurement": None, "query_feature": _SQUARE, "train_feature": _SQUARE}),
    "relative_if": Choice(RelativeIF),
    "renorm_if": Choice(RenormIF),
    "das": Choice(DAS, {"measurement": None, "query_feature": _SQUARE, "train_feature": _SQUARE}),
    "grad_dot": Choice(GradientSimilarity, {"cosine": False}),
    "grad_cos": Choice(GradientSimilarity, {"cosine": True}),
    "tracincp": Choice(GradientSimilarity, {"cosine": False, "checkpoints": "all"}),
    "gas": Choice(GradientSimilarity, {"cosine": True, "checkpoints": "all"}),
    "tracin": Choice(TracIn, {"draws": _EVEN, "checkpoints": "all"}),
    "retrac": Choice(ReTrac, {"draws": _EVEN, "checkpoints": "all"}),
    "guided": Choice(Guided, {"draws": _EVEN, "checkpoints": "all"}),
    "lissa": Choice(LiSSA),
    "astra": Choice(ASTRA, {"curvature": _EKFAC}),
    "unlearning": Choice(Unlearning, {"curvature": _EKFAC}),
    "rescaled_kfac": Choice(RescaledKFAC),
    "layer_weights": Choice(KFACInfluence, {"layers": LayerWeights()}),
    "source": Choice(Source, {"curvature": _EKFAC}),
    "mirrored_unlearning": Choice(MirroredUnlearning, {"curvature": _EKFAC}),
    "raw_dot": Choice(EmbeddingSimilarity, {"embedding": Pixels(), "cosine": False}),
    "raw_cos": Choice(EmbeddingSimilarity, {"embedding": Pixels(), "cosine": True}),
    "nda": Choice(NDA, {"timestep": _TENTH}),
    "random": Choice(Random),
}
"""The choices by name. Those over checkpoints take all of them; ``conf/estimator`` takes four."""


def estimator_by_name(
    name: str, objective: Measure, *, seed: int = 0, flips: bool = False, execution: Execution | None = None, **settings: Any
) -> Estimator:
    """The estimator ``name`` of ``ESTIMATORS``.

    Args:
        objective: the training loss, which is measured as well unless ``measurement`` is given.
        seed: of draws and projections.
        flips: whether training mirrored images at random.
        settings: fields of the class in place of their defaults. ``draws`` may be a number of draws; numbers may be NumPy's.

    Raises:
        ValueError: there is no such estimator, or it has no such setting, or a setting cannot have this value.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator={name!r}: there is no such estimator{_nearest(name, ESTIMATORS)}")
    choice, known = ESTIMATORS[name], _defaults(objective, seed, flips, execution or Execution())
    names = [one.name for one in fields(choice.kind)]
    if unknown := [setting for setting in settings if setting not in names]:
        raise ValueError(f"{unknown[0]}={settings[unknown[0]]!r}: {name} has no such setting{_nearest(unknown[0], names)}")
    own = {key: known[value.name] if isinstance(value, _Default) else value for key, value in choice.settings.items()}
    found = {**{key: value for key, value in known.items() if key in names}, **own}
    settings = {key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for key, value in settings.items()}
    if isinstance(settings.get("draws"), int) and not isinstance(settings["draws"], bool):
        settings["draws"] = replace(found["draws"], n=settings["draws"])
    hints = get_type_hints(choice.kind)
    for key, value in settings.items():
        _check_kind(key, value, hints[key], found.get(key))
    return choice.kind(**{**found, **settings})


def _defaults(objective: Measure, seed: int, flips: bool, execution: Execution) -> dict[str, Any]:
    """The values of fields by their names, as in ``conf``, and those that choices name."""
    of_curvature = {"draws": Uniform(_CURVATURE_DRAWS, seed), "execution": execution}
    return {
        "measurement": objective,
        "draws": Uniform(_DRAWS, seed),
        "projection": Automatic(2e6, 16384, seed),
        "curvature": KFAC(**of_curvature),
        "flips": flips,
        "seed": seed,
        "execution": execution,
        _EVEN.name: Even(_DRAWS, seed=seed),
        _EKFAC.name: EKFAC(**of_curvature),
        _SQUARE.name: SquareNorm(objective.process),
        _TENTH.name: max(1, objective.process.T // 10),
    }


def _check_kind(setting: str, value: Any, hint: Any, default: Any) -> None:
    """Check that a setting whose type ``hint`` is a class of this package is not a name, a number or a class."""
    kinds = get_args(hint) or (hint,)
    objects = [kind for kind in kinds if isinstance(kind, type) and kind.__module__.startswith("attribution.")]
    plain = isinstance(value, str | int | float | Sequence | type) or (value is None and type(None) not in kinds)
    if objects and plain:
        example = "" if default is None else f", such as {type(default).__module__}.{type(default).__name__}"
        number = "a number of draws, or " if setting == "draws" else ""
        raise ValueError(f"{setting}={value!r}: give {number}an object of the class {objects[0].__name__}{example}")


def _nearest(name: str, names: Any) -> str:
    """A hint: the nearest of ``names`` if one is near, and all of them."""
    near = difflib.get_close_matches(name, names, 1)
    return f"{f'; did you mean {near[0]}' if near else ''}; choose from {', '.join(names)}"
