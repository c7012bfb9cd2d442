"""Kronecker factors against loops over inputs and positions, in float64, also after the work is divided or interrupted."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC, KroneckerBasis
from attribution.curvature.factors import AllFactors
from attribution.curvature.pseudo_gradients import OutputProbe, PseudoGradients
from attribution.execution import Execution
from attribution.gradients import hooks
from attribution.images import ImageSet
from attribution.measurements import Loss
from attribution.nodes import Get, InMemory
from experiments.store.store import Store
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import blobs, curvature, draws_of, factor_terms, given, inputs
from tests.worlds import PROCESS

MEASURES = {"mc": OutputProbe(PROCESS), "empirical": Loss(PROCESS)}


NAMES = ["convolutions", "shared", "perceptron", "unet"]


@pytest.mark.parametrize(
    ("name", "sharing"), [*itertools.product(NAMES, ["expand", "reduce"]), ("embedded", "expand")], ids=lambda value: value
)
@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_factors_are_their_definition(name, fisher, sharing):
    """Claim: A and B are those of docs/methods.md, summed input by input and position by position: same draws, flips and v."""
    get, record, train = InMemory(), given(getattr(worlds, name)), blobs(name)
    how = curvature(fisher=fisher, sharing=sharing)
    factors = get(AllFactors(how.pseudo_gradients(record, train, flips=True), sharing))
    A, B, count, positions = {}, {}, 0, {}
    model = record.network(get)
    for row in inputs(MEASURES[fisher], train, draws_of(train, get), get):
        count += 1
        for layer, (a, b) in factor_terms(model, MEASURES[fisher], row).items():
            if sharing == "reduce":
                a, b = a.mean(0, keepdim=True), b.sum(0, keepdim=True)
            A[layer] = A.get(layer, 0) + sum(torch.outer(x, x) for x in a)
            B[layer] = B.get(layer, 0) + sum(torch.outer(x, x) for x in b)
            positions[layer] = positions.get(layer, 0) + len(a)
    assert count == 6
    assert factors.A.keys() == A.keys()
    largest = max(float(b.abs().max()) for b in B.values())  # attention's key bias has a gradient of 0 up to rounding
    for layer in A:
        found = factors.means(layer)
        torch.testing.assert_close(found[0], A[layer] / positions[layer], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1], B[layer] / count, rtol=1e-9, atol=1e-14 * largest)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_reduce_is_refused_for_an_embedding(kind):
    """Claim: sharing=reduce raises an error with the name of the Embedding before anything is computed; without one it does not."""
    with pytest.raises(FieldError, match=r"embedding \(Embedding\) has Kronecker factors with sharing=expand only"):
        curvature(kind, sharing="reduce").basis(given(worlds.embedded), blobs("embedded"))
    curvature(kind, sharing="reduce").basis(given(worlds.perceptron), blobs("perceptron"))


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_execution_changes_no_basis(kind):
    """Claim: batches and shards change nothing beyond rounding, and no fingerprint."""
    record, train = given(worlds.convolutions), blobs("convolutions", 5)
    whole = curvature(kind, execution=Execution(device="cpu"))
    node = whole.basis(record, train, flips=True)
    expected = InMemory()(node)
    for execution in (Execution(device="cpu", batch_size=1), Execution(device="cpu", batch_size=3, shard=2)):
        divided = replace(whole, execution=execution).basis(record, train, flips=True)
        assert divided.fingerprint == node.fingerprint
        assert_same_matrices(InMemory()(divided), expected)


def matrix(basis: KroneckerBasis, layer: str) -> torch.Tensor:
    """H of a layer, ``[out · in, out · in]``."""
    Q = torch.kron(basis.QB[layer], basis.QA[layer]).double()
    return (Q * basis.values[layer].flatten()) @ Q.T


def assert_same_matrices(found: KroneckerBasis, expected: KroneckerBasis) -> None:
    """Eigenvectors may change sign: the matrices on the diagonal blocks must not."""
    assert found.layers == expected.layers
    for layer in expected.layers:
        one, other = (matrix(basis, layer) for basis in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@dataclass(frozen=True)
class Reversed(ImageSet):
    """The images of another set in the opposite order."""

    images: ImageSet

    @property
    def count(self):
        return self.images.count

    def compute(self, get):
        return get(self.images).take(np.arange(self.count)[::-1])


def test_order_changes_no_factor():
    """Claim: draws and v depend on an example's id, not on its position."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions", 5)
    one, other = (
        get(AllFactors(curvature().pseudo_gradients(record, images, True), "expand")) for images in (train, Reversed(train))
    )
    for layer in one.A:
        torch.testing.assert_close(one.means(layer), other.means(layer), rtol=1e-9, atol=1e-12)


class Killed(Exception):
    """An exception that interrupts a computation."""


@pytest.mark.parametrize(("kind", "done"), [(KFAC, 0), (KFAC, 2), (EKFAC, 4)])
def test_factors_resume_bit_for_bit(kind, done, tmp_path, monkeypatch):
    """Claim: after a kill during a shard, with ``done`` others complete, another process computes the rest with the same bits."""
    record, train, run = given(worlds.convolutions), blobs("convolutions", 5), PseudoGradients.run
    node = curvature(kind, execution=Execution(device="cpu", batch_size=3, shard=2)).basis(record, train, flips=True)
    expected = Store(tmp_path / "whole")(node)
    started: list[tuple[int, int]] = []

    def dies(self: PseudoGradients, get: Get, rows: tuple[int, int], on_layer: hooks.OnLayer) -> None:
        calls = 0
        started.append(rows)

        def some(name: str, layer_calls: list[hooks.Call]) -> None:
            nonlocal calls
            calls += 1
            if len(started) > done and calls > 2:
                raise Killed
            on_layer(name, layer_calls)

        run(self, get, rows, some)

    def counts(self: PseudoGradients, get: Get, rows: tuple[int, int], on_layer: hooks.OnLayer) -> None:
        started.append(rows)
        run(self, get, rows, on_layer)

    monkeypatch.setattr(PseudoGradients, "run", dies)
    with pytest.raises(Killed):
        Store(tmp_path / "killed")(node)
    assert len(started) == done + 1
    monkeypatch.setattr(PseudoGradients, "run", counts)
    found = Store(tmp_path / "killed")(node)
    shards = 3 if kind is KFAC else 6
    assert len(started) == shards + 1  # only the interrupted shard was computed twice
    for layer in expected.layers:
        for matrix in ("QA", "QB", "values"):
            assert torch.equal(getattr(found, matrix)[layer], getattr(expected, matrix)[layer]), (layer, matrix)
