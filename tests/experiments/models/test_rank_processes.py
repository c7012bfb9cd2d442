"""Training by processes that this one starts, with Lightning's ddp and fsdp: the record, the parameters, and what a kill leaves."""

import functools
import signal
import time
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.training import TrainingRecord
from attribution.training.recipe import Hardware, Recipe
from attribution.training.replay import replay_gradient
from experiments.models.rank_processes import RankError, ranks_of
from experiments.models.trained import TrainedModel
from experiments.store.store import Store
from tests import forked
from tests.attribution.training.fsdp_on_cpu import KILLED, NAME, Deadly
from tests.worlds import OBJECTIVE, Blobs, trained

DDP = Hardware(accelerator="cpu", devices=2, strategy="ddp", interval=4)
ADAMW: Any = functools.partial(torch.optim.AdamW, lr=1e-2)
SGD: Any = functools.partial(torch.optim.SGD, lr=0.05)
ONE = Hardware(accelerator="cpu", interval=4)


@pytest.fixture
def _forked(monkeypatch):
    forked.fork_ranks(monkeypatch)


def node(hardware: Hardware = DDP, **changes: Any) -> TrainedModel:
    return trained(hardware=hardware, model=functools.partial(Deadly, dropout=changes.pop("dropout", 0.0)), **changes)


def assert_close(one: TrainingRecord, other: TrainingRecord, **tolerance: Any) -> None:
    assert one.steps == other.steps
    for step in one.steps:
        for name, tensor in one.parameters(step).items():
            torch.testing.assert_close(other.parameters(step)[name], tensor, **(tolerance or {"rtol": 1e-9, "atol": 1e-12}))


def assert_same(one: TrainingRecord, other: TrainingRecord) -> None:
    assert one.visits.tobytes() == other.visits.tobytes()
    assert one.step_table.tobytes() == other.step_table.tobytes()
    assert_close(one, other, rtol=0, atol=0)


def replayed(record: TrainingRecord, model: TrainedModel, step: int) -> dict[str, torch.Tensor]:
    """The parameters after ``step`` + 1 steps, from those after ``step`` and one replayed step of SGD."""
    network = model.model().double()
    network.load_state_dict(record.parameters(step))
    images = Blobs().compute(None)  # pyright: ignore[reportArgumentType]
    gradient = replay_gradient(network, OBJECTIVE, record, images, step)
    rate = record.learning_rate(step + 1)
    return {name: p.detach() - rate * gradient[name] for name, p in network.named_parameters()}


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(tmp_path):
    """Claim: ddp has the batches, draws and rates of one process, to the bit, and its parameters and losses to rounding."""
    one, two = Store(tmp_path / "one")(node(ONE)), Store(tmp_path / "two")(node())
    assert one.visits.tobytes() == two.visits.tobytes()
    assert two.step_table["rank"].tolist() == [0, 1] * 12
    assert one.step_table["learning_rate"].tolist() == two.step_table["learning_rate"][::2].tolist()
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-9)
    assert_close(one, two)
    assert two.info == {**one.info, "processes": 2}
    assert node(ONE).fingerprint == node().fingerprint


class SigtermHandlers(L.Callback):
    """The handler of SIGTERM after each step."""

    def __init__(self):
        self.seen: list[Any] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.seen.append(signal.getsignal(signal.SIGTERM))


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_sigterm_stays_with_the_caller(tmp_path):
    """Claim: while processes train together, SIGTERM has the handler of the caller: Lightning's waits for the others forever."""
    handler, handlers, model = lambda *_: None, SigtermHandlers(), node()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        images = Blobs().compute(None)  # pyright: ignore[reportArgumentType]
        model.fit(tmp_path, images, DDP, ranks_of(model, tmp_path, images), [handlers])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(handlers.seen) == {handler}


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_again_and_replayed(tmp_path):
    """Claim: with dropout, for which each process has a seed, a second run is bit-equal, and one process replays each step."""
    model = node(dropout=0.3)
    record = Store(tmp_path / "first")(model)
    assert_same(record, Store(tmp_path / "second")(model))
    for step in record.steps[:-1]:
        for name, expected in replayed(record, model, step).items():
            torch.testing.assert_close(expected, record.parameters(step + 1)[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
@pytest.mark.parametrize(
    ("strategy", "optimizer", "kills"), [("ddp", ADAMW, ("1,6", "1,7")), (NAME, ADAMW, ("1,6",)), (NAME, SGD, ("1,6",))]
)
def test_a_killed_process_ends_the_run_and_the_next_continues(tmp_path, monkeypatch, strategy, optimizer, kills):
    """Claim: the run ends soon and says which process ended how; after all kills the record is that of a run without kills."""
    recipe = replace(trained().recipe, precision="32-true")
    model = node(replace(DDP, strategy=strategy), recipe=recipe, optimizer=optimizer)
    whole, store = Store(tmp_path / "whole")(model), Store(tmp_path / "killed")
    for killed in kills:
        monkeypatch.setenv(KILLED, killed)
        start = time.monotonic()
        with pytest.raises(RankError, match="process 1 of a training run on 2 devices was ended by signal 9"):
            store(model)
        assert time.monotonic() - start < 60
        assert not store.has(model)
    monkeypatch.delenv(KILLED)
    assert_same(whole, store(model))


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_processes_with_a_part_of_the_parameters_each(tmp_path):
    """Claim: fsdp, over gloo on CPUs, has the record of one process, clips by the norm of the whole gradient, and is replayed."""
    recipe = Recipe(steps=12, batch_size=10, lr_schedule="cosine", warmup=0.2, clip=0.05)
    one = Store(tmp_path / "one")(node(ONE, recipe=recipe))
    model = node(replace(DDP, strategy=NAME), recipe=recipe)
    two = Store(tmp_path / "two")(model)
    assert one.visits.tobytes() == two.visits.tobytes()
    assert (one.step_table["clip_factor"] < 1).any()
    np.testing.assert_allclose(one.step_table["clip_factor"], two.step_table["clip_factor"][::2], rtol=1e-4)
    assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("_forked")
def test_an_error_in_one_process_is_reported(tmp_path):
    """Claim: a loss that is not finite ends all processes, with the message that one process has."""
    optimizer: Any = functools.partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        Store(tmp_path)(node(optimizer=optimizer, recipe=replace(trained().recipe, clip=None)))


@pytest.mark.parametrize("strategy", ["deepspeed", "deepspeed_stage_3", "xla"])
def test_strategies_without_a_record_are_refused(tmp_path, strategy):
    """Claim: by a sentence about the field, before anything starts."""
    with pytest.raises(FieldError, match="cannot be recorded: choose ddp, ddp_spawn or fsdp") as raised:
        Store(tmp_path)(node(replace(DDP, strategy=strategy)))
    assert raised.value.field == "strategy"


def test_parts_of_parameters_are_not_averaged(tmp_path):
    """Claim: fsdp with an average of parameters is refused by a sentence about the average."""
    with pytest.raises(FieldError, match="takes no average") as raised:
        Store(tmp_path)(node(replace(DDP, strategy=NAME), recipe=replace(trained().recipe, ema=0.9)))
    assert raised.value.field == "ema"
