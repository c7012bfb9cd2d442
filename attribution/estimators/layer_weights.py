"""Learned weights of groups of layers (Li, Le, Xu, Salzmann, "Learning to Weight Parameters for Training Data Attribution", 2025).

A score that is a sum over layers is cut into its parts by groups g of layers, and the groups get weights w_g ≥ 0:

    τ̃[q, z; w] = Σ_g w_g τ_g[q, z]
    w = argmin_{w ≥ 0}  -1/Q Σ_q (1/k Σ_{z ∈ top-k(q; w)} τ̃[q, z; w]) / ‖τ̃[q, ·; w]‖₂  +  λ ‖w‖²

The training images that rank first now stand in for those that matter, so no truth is needed: their mean score is the signal, and
the norm over all N images the noise. The first k are determined anew at every step. The quotient does not depend on the length of
w, and weights are w = softmax(a), as in the paper, where λ is on these; they are then multiplied by the number of groups, so that
equal weights are 1 and give back the estimator. λ → ∞ makes them equal.

Weights are on one side of the inner products, as in the paper; over a curvature that is block diagonal, both sides would be the
same. Ours are the queries of the mean, which are those that are explained (the paper takes a set of its own), so that a score
depends on the other queries through w; the groups, blocks of the network, where the paper has layers or tensors; and L-BFGS, from
equal weights and from weights with which the scores of all groups have the same mean square: the smaller of both minima counts.

The parts of all groups come from the same passes, and each is stored, so that other k and λ take no further pass.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal, TypeVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from attribution.checks import FieldError, listed, number, whole
from attribution.estimators.layers import AllLayers, Layers, OnlyLayers, check_layers
from attribution.estimators.replicated import with_replicates
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node, class_identity

SHARED = ("attribution.estimators.layers", "attribution.estimators.replicated", "attribution.estimators.sharded")

V = TypeVar("V")

STEPS = 200
"""The largest number of steps of L-BFGS."""
LEAST_SIZE = 1e-6
"""The smallest size of the scores of a group, relative to the largest, at which its first weight makes up for it."""


@dataclass(frozen=True)
class LayerWeights(Layers):
    """Learned weights of groups of layers, for the field ``layers`` of an estimator.

    ``groups``: "block" (the modules of the network, and each entry of its lists of modules), "layer" (one per layer), or a list of
    regular expressions: a layer belongs to the first of which a part of its name matches. ``top``: k, the number of training images
    that stand in for those that matter. ``decay``: λ.
    """

    NAME = "LayerWeights"
    VERSION = 1

    groups: Literal["block", "layer"] | Sequence[str] = "block"
    top: int = 10
    decay: float = 0.1

    def __post_init__(self):
        if isinstance(self.groups, str) and self.groups not in ("block", "layer"):
            raise FieldError(self, "groups", "choose block, layer, or a list of regular expressions")
        if not isinstance(self.groups, str):
            listed(self, "groups", _check_pattern)
        whole(self, "top", least=1)
        number(self, "decay", least=0)

    def part(self, of_layers: Mapping[str, V]) -> dict[str, V]:
        return dict(of_layers)

    def groups_of(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Divide the layers ``names`` into groups: the name of each group → its layers, none of them empty.

        Raises:
            FieldError: a layer belongs to no group, a group has no layer, or there is one group only.
        """
        found: dict[str, list[str]] = {} if isinstance(self.groups, str) else {pattern: [] for pattern in self.groups}
        outer = _modules_around([name.split(".")[:-1] for name in names])
        for name in names:
            found.setdefault(self._group_of(name, outer), []).append(name)
        if empty := [group for group, members in found.items() if not members]:
            raise FieldError(self, "groups", f"no layer belongs to {empty[0]!r} first: {_shown(names)}")
        if len(found) == 1:
            raise FieldError(self, "groups", f"all {len(names)} layers are in one group, which has nothing to weigh: choose layer")
        return found

    def _group_of(self, name: str, outer: int) -> str:
        """The group of a layer; ``outer`` modules contain all layers."""
        if self.groups == "layer":
            return name
        if self.groups == "block":
            parts = name.split(".")
            numbered = len(parts) > outer + 1 and parts[outer + 1].isdigit()
            return ".".join(parts[: outer + 1 + numbered])
        for pattern in self.groups:
            if re.search(pattern, name):
                return pattern
        raise FieldError(self, "groups", f'the layer {name} matches none of them: add ".*" for all others')


def _modules_around(paths: Sequence[Sequence[str]]) -> int:
    """The number of modules that contain all layers, whose ``paths`` of modules are given."""
    same = (len(set(modules)) == 1 for modules in zip(*paths, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _check_pattern(owner: Any, field: str) -> None:
    """Raise FieldError unless an element of ``groups`` is a regular expression."""
    try:
        re.compile(owner.groups[int(field.split("[")[1].removesuffix("]"))])
    except (re.error, TypeError) as error:
        raise FieldError(owner, field, f"is not a regular expression ({error})") from error


def _shown(names: Sequence[str]) -> str:
    return ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])])


def with_layers(estimator: Any, node: ShardedScores, names: Sequence[str]) -> Node[Scores]:
    """The scores ``node`` of ``estimator``, which covers the layers ``names``, with the weights or the replicates that it asks for.

    Raises:
        FieldError: there is no such layer, or weights cannot be learned for this training set, these layers or these draws.
    """
    check_layers(estimator, names)
    layers = estimator.layers
    if not isinstance(layers, LayerWeights):
        return with_replicates(estimator, node)
    layers.groups_of(names)
    if layers.top >= node.train.count:
        raise FieldError(layers, "top", f"there are {node.train.count} training images: stand-ins must be fewer")
    if estimator.draws.bins > 1:
        raise FieldError(estimator.draws, "bins", "learned weights of layers are for all timesteps together: set 1")
    stored, trained = node.estimator, node.trained  # pyright: ignore[reportAttributeAccessIssue]
    return LayerWeightScores(
        stored, node.train, node.queries, LearnedWeights(stored, trained, node.train, node.queries, tuple(names))
    )


@dataclass(frozen=True, eq=False)
class Weights(Arrays):
    """``values [.., G]`` float64: the weights of the groups, at each point of the scores' axes. Their mean over groups is 1."""

    values: np.ndarray


@dataclass(frozen=True)
class LearnedWeights(Node[Weights]):
    """The weights of the groups of layers of an ``estimator`` that covers the layers ``names``."""

    NAME = "LearnedWeights"
    VERSION = 2
    TITLE = "weights of layers"
    ARTIFACT = Weights

    estimator: Any
    trained: Trained
    train: ImageSet
    queries: ImageSet
    names: tuple[str, ...]

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The name of each group → its layers."""
        return self.estimator.layers.groups_of(self.names)

    @cached_property
    def members(self) -> list[Node[Scores]]:
        """The part of the scores of each group."""
        parts = [replace(self.estimator, layers=OnlyLayers(tuple(names))) for names in self.groups.values()]
        return [part.scores(self.trained, self.train, self.queries) for part in parts]

    def description(self) -> dict[str, Any]:
        """With the version of the parts."""
        return {**super().description(), "member": class_identity(type(self.members[0]))}

    def parents(self) -> list[Node]:
        return [*super().parents(), *self.members]

    def cost(self) -> Cost:
        size = len(self.groups) * self.queries.count * self.train.count
        return Cost(memory=(FLOAT32_BYTES + FLOAT64_BYTES) * size)

    def compute(self, get: Get) -> Weights:
        members, layers = [part.values for part in get.many(self.members)], self.estimator.layers
        points = members[0].shape[:-2]
        values = np.empty((*points, len(members)))
        for point in np.ndindex(points):
            values[point] = learned(np.stack([part[point] for part in members]).astype(np.float64), layers.top, layers.decay)
        return Weights(values)


@dataclass(frozen=True)
class LayerWeightScores(ShardedScores):
    """``Σ_g w_g τ_g``, at each point of the axes of the estimator's scores."""

    NAME = "LayerWeightScores"
    VERSION = 1
    TITLE = "scores with weights of layers"

    estimator: Any
    weights: LearnedWeights

    def parts(self, get: Get) -> list[Node[Scores]]:
        return self.weights.members

    def cost(self) -> Cost:
        member, count = self.weights.members[0].cost(), len(self.weights.groups)
        return Cost(memory=5 * member.disk + count * FLOAT32_BYTES * self.pairs, disk=member.disk)

    def passes(self, get: Get) -> float:
        """Those of the scores without weights: all groups share them."""
        return self.unweighted.passes(get)

    def compute(self, get: Get) -> Scores:
        weights, members = get(self.weights).values, get.many(self.weights.members)
        first = members[0]

        def total(name: str, spread: int) -> np.ndarray | None:
            """Σ_g w_g of an array whose last axes, ``spread`` of them, have one weight."""
            parts = [getattr(member, name) for member in members]
            if parts[0] is None:
                return None
            shape = (*weights.shape[:-1], *([1] * spread))
            whole = np.zeros(parts[0].shape)
            for g, part in enumerate(parts):
                whole += weights[..., g].reshape(shape) * part
            return whole.astype(np.float32)

        values = total("values", 2)
        assert values is not None
        return replace(first, values=values, halves=total("halves", 3), cross=total("cross", 4))

    @property
    def unweighted(self) -> Node[Scores]:
        """The scores of the same estimator with equal weights."""
        weights = self.weights
        return replace(weights.estimator, layers=AllLayers()).scores(weights.trained, self.train, self.queries)


def learned(parts: np.ndarray, top: int, decay: float) -> np.ndarray:
    """Return the weights ``[G]`` of ``parts [G, Q, N]``, float64, by the objective of this module. Their mean is 1.

    Raises:
        FloatingPointError: a score is not finite.
    """
    if not np.isfinite(parts).all():
        raise FloatingPointError("scores of a group of layers are not finite, so that no weights can be learned: raise the damping")

    def objective(a: np.ndarray) -> tuple[float, np.ndarray]:
        w = softmax(a)
        scores = np.einsum("g,gqn->qn", w, parts)
        norms = np.linalg.norm(scores, axis=1)
        scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)  # a query whose scores are all 0 counts for nothing
        first = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        means = np.take_along_axis(parts, first[None], 2).mean(2)  # [G, Q]
        ratios = (w @ means) * scale
        slopes = means * scale - ratios * scale**2 * np.einsum("gqn,qn->gq", parts, scores)
        slope = -slopes.mean(1) + 2 * decay * w
        return float(decay * w @ w - ratios.mean()), w * (slope - w @ slope)

    # The objective has several minima where the scores of some groups are much larger than those of others.
    sizes = np.sqrt(np.einsum("gqn,gqn->g", parts, parts) / parts[0].size)
    alike = -np.log(np.maximum(sizes, LEAST_SIZE * sizes.max())) if sizes.any() else np.zeros(len(parts))
    starts = (np.zeros(len(parts)), alike - alike.mean())
    found = [minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}) for start in starts]
    return len(parts) * softmax(min(found, key=lambda result: result.fun).x)
