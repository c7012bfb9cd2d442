"""What a computation is said to take in memory."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.nodes import Arrays, Node
from experiments.store.held_bytes import held_bytes
from experiments.store.peak_memory import PeakMemory, peak_memory
from experiments.store.store import Store

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much a process held")
MB = 1e6


@dataclass(frozen=True, eq=False)
class Numbers(Arrays):
    values: np.ndarray


@dataclass(frozen=True)
class Large(Node[Numbers]):
    NAME = "Large"
    ARTIFACT = Numbers

    megabytes: int

    def compute(self, get) -> Numbers:
        passing = torch.ones(self.megabytes * 250_000)
        return Numbers(passing[: 250_000 * self.megabytes // 10].numpy().copy())


def in_a_process_of_its_own(function, *arguments):
    """Return what the function returns there. In this process, tensors may reuse what it kept after earlier tests."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peaks_of_contexts() -> tuple[PeakMemory, PeakMemory, PeakMemory]:
    """The peaks of a context and of two within it, of which the first takes 200 MB."""
    torch.ones(100_000_000)
    with peak_memory() as outer:
        with peak_memory() as first:
            torch.ones(50_000_000)
        with peak_memory() as second:
            torch.ones(1000)
    return outer, first, second


@linux
@pytest.mark.slow
def test_the_peak_is_that_of_the_context():
    """Claim: memory that was freed before a context began does not count; what an inner context takes counts in the outer one."""
    outer, first, second = in_a_process_of_its_own(peaks_of_contexts)
    assert first.host == outer.host
    assert first.host
    assert second.host
    assert 150 * MB < first.host - second.host < 250 * MB
    assert outer.device is None or torch.cuda.is_available()


def peaks_of_nodes(folder: Path) -> list[float]:
    """The peaks that the store records of two nodes, of which the second takes 290 MB more."""
    store = Store(folder)
    nodes = Large(10), Large(300)
    for node in nodes:
        store(node)
    return [json.loads((store.folder(node) / "node.json").read_text())["peak_memory"]["host"] for node in nodes]


@linux
@pytest.mark.slow
def test_stored_nodes_record_their_peak(tmp_path):
    """Claim: node.json has the peak of the attempt that computed the node."""
    small, large = in_a_process_of_its_own(peaks_of_nodes, tmp_path)
    assert 200 * MB < large - small < 400 * MB


def test_large_artifacts_are_not_kept(tmp_path, monkeypatch):
    """Claim: of the artifacts that were used last, a store holds at most so many bytes."""
    monkeypatch.setattr("experiments.store.store._BYTES_KEPT", 3 * MB)
    store = Store(tmp_path)
    for megabytes in (10, 20, 15, 50):  # a tenth of each is kept
        store(Large(megabytes))
        assert sum(held_bytes(artifact) for artifact, _ in store._recent.values()) <= 3 * MB
    assert Large(50).fingerprint not in store._recent
    store(Large(10)), store(Large(15))
    assert {Large(10).fingerprint, Large(15).fingerprint} <= store._recent.keys()


def test_bytes_of_artifacts():
    assert held_bytes({"a": torch.zeros(3), "b": [np.zeros(2), (np.zeros(1, np.int8),)], "c": "text"}) == 12 + 16 + 1
    assert held_bytes(Numbers(np.zeros(5))) == 40
