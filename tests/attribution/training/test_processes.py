"""Training by several processes: what they write, and what a kill leaves."""

import functools
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from attribution.nodes.saves import Saves
from attribution.training import recorder
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.recipe import Hardware
from attribution.training.record import TrainingRecord
from tests import forked
from tests.worlds import UNET, Blobs, trained

pytestmark = pytest.mark.slow

NODE = trained(model=functools.partial(UNET, dropout=0.1), recipe=replace(trained().recipe, ema=0.9))


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    forked.fork_spawned(monkeypatch)


def train(folder: Path, *callbacks: L.Callback, devices: int = 2) -> TrainingRecord:
    images = Blobs().compute(None)  # pyright: ignore[reportArgumentType]
    hardware = Hardware(accelerator="cpu", devices=devices, interval=4)
    fit(folder, images, NODE.model, NODE.objective, NODE.optimizer, NODE.recipe, EverySteps(3), 3, True, hardware, callbacks)
    return TrainingRecord(folder)


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("only the first process writes checkpoints and saves")


class FirstProcessWrites(L.Callback):
    """Fails if another process than the first writes anything but the rows of its own visits."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            for owner, name in ((recorder, "_write"), *((Saves, name) for name in ("save", "finish", "discard", "resume"))):
                setattr(owner, name, refuse)  # in this process, which is a child


class Kill(L.Callback):
    """Kills the process ``rank`` after ``step`` steps."""

    def __init__(self, rank: int, step: int):
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Interrupt(L.Callback):
    """Ends training after ``step`` steps."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def test_processes_that_are_killed_end_where_others_do(tmp_path: Path):
    """Claim: after kills of either process, record and parameters (also the average) are bit-equal; only the first writes them."""
    whole = train(tmp_path / "whole", FirstProcessWrites())
    for rank, step in ((1, 2), (0, 6), (1, 8)):  # before any save, between two of them, at one
        with pytest.raises(Exception, match="SIGKILL"):
            train(tmp_path / "pieces", Kill(rank, step))
        assert not (tmp_path / "pieces" / "record.json").exists()
    pieces = train(tmp_path / "pieces", FirstProcessWrites())
    assert np.array_equal(whole.visits, pieces.visits)
    assert np.array_equal(whole.step_table, pieces.step_table)
    assert sorted(set(whole.step_table["rank"].tolist())) == [0, 1]
    for step in (3, 6, 9, 12):
        assert_same(whole.parameters(step), pieces.parameters(step))
    assert_same(whole.final_parameters(), pieces.final_parameters())
    files = sorted(path.relative_to(tmp_path / "whole").as_posix() for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "pieces").as_posix() for p in (tmp_path / "pieces").rglob("*") if p.is_file())
    assert [name for name in files if name.startswith("progress/")] == ["progress/finished.json"]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_that_is_resumed_on_other_devices_records_every_visit(tmp_path: Path, before: int, after: int):
    """Claim: its visits are those of one process, in the order of its batches; its steps have a row for each of their processes."""
    whole = train(tmp_path / "whole", devices=1)
    with pytest.raises((InterruptedError, ProcessRaisedException)):
        train(tmp_path / "pieces", Interrupt(6), devices=before)
    pieces = train(tmp_path / "pieces", devices=after)
    assert np.array_equal(whole.visits, pieces.visits)
    assert np.bincount(pieces.step_table["step"]).tolist() == [before] * 4 + [after] * 8
    assert pieces.info["processes"] == 2


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
