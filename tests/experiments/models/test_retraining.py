"""Retrained models in the store: identity, blocks, kills, several workers."""

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attribution.execution import Execution
from attribution.nodes import InMemory
from attribution.retraining.fit_together import fit_together
from attribution.retraining.modes import Alone, Mode, Together
from attribution.retraining.selection import Selection
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.recipe import Hardware, Recipe
from attribution.training.record import TrainingRecord
from experiments.models import retrained as retraining
from experiments.models.retrained import Retrained, in_blocks
from experiments.speed.retraining import retraining_speed
from experiments.store.plan import plan
from experiments.store.store import Store
from tests.attribution.retraining.test_together import Small
from tests.experiments.tasks.test_configs import CONF, options
from tests.worlds import OBJECTIVE, Blobs

RECIPE = Recipe(steps=6, batch_size=5, lr_schedule="cosine", warmup=0.2, clip=0.5)


def retrained(**changes: Any) -> Retrained:
    settings: dict[str, Any] = {
        "model": Small,
        "objective": OBJECTIVE,
        "data": Blobs(),
        "optimizer": functools.partial(torch.optim.AdamW, lr=1e-3),
        "recipe": RECIPE,
        "flips": True,
        "seed": 3,
        "selection": Selection(np.arange(12)),
        "mode": Together(group=2, save_seconds=2),
    }
    return Retrained(**{**settings, **changes})


def five() -> list[Retrained]:
    """Models on five subsets: blocks of 2, 2 and 1."""
    return in_blocks([retrained(selection=Selection(np.arange(i, i + 12))) for i in range(5)])


def parameters(nodes: Iterable[Retrained], get) -> list[dict[str, torch.Tensor]]:
    return [artifact.final_parameters() for artifact in get.many(list(nodes))]


def all_same(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mode", [Together(), Alone()])
def test_a_retrained_model_is_the_one_that_lightning_trains(tmp_path, mode):
    """Claim: from the store comes the network, in eval mode, that ``fit`` gives on the same images with the same seed."""
    recipe = dataclasses.replace(RECIPE, precision="64-true")
    node = retrained(selection=Selection(np.arange(3, 20, 2)), mode=mode, recipe=recipe)
    network = node.network(Store(tmp_path / "store"))
    images = Blobs().compute(None).take(np.arange(3, 20, 2))  # pyright: ignore[reportArgumentType]
    fit(tmp_path, images, Small, node.objective, node.optimizer, recipe, EverySteps(6), 3, True, Hardware(accelerator="cpu"))
    assert not network.training
    for name, expected in TrainingRecord(tmp_path).final_parameters().items():
        torch.testing.assert_close(network.state_dict()[name], expected, rtol=1e-8, atol=1e-10)


def test_what_defines_a_retrained_model():
    """Claim: rows, weights, seed, recipe and mode do; how many are trained at once, and where, do not."""
    node = retrained()
    for changes in (
        {"selection": Selection(np.arange(13))},
        {"selection": Selection(np.arange(12), np.full(12, 0.5))},
        {"seed": 4},
        {"recipe": dataclasses.replace(RECIPE, steps=7)},
        {"mode": Alone()},
        {"flips": False},
    ):
        assert retrained(**changes).fingerprint != node.fingerprint, changes
    for changes in (
        {"mode": Together(group=7, save_seconds=3)},
        {"block": "other"},
        {"execution": Execution(device="cpu")},
        {"selection": Selection(np.arange(12), np.ones(12))},
    ):
        assert retrained(**changes).fingerprint == node.fingerprint, changes


def test_blocks_are_even_and_of_one_configuration():
    """Claim: blocks follow the list, none is larger than the group, and other configurations are never trained along."""
    nodes = [retrained(seed=seed, mode=Together(group=16)) for seed in range(24)]
    assert list(Counter(node.block for node in in_blocks(nodes)).values()) == [12, 12]
    assert in_blocks([]) == []
    blocks = five()
    assert [node.block for node in blocks] == [blocks[first].fingerprint for first in (0, 0, 2, 2, 4)]
    assert blocks[0].together() == blocks[1].together() != blocks[2].together()
    other = dataclasses.replace(blocks[0], recipe=dataclasses.replace(RECIPE, steps=7))
    assert other.together() != blocks[0].together()


def test_a_group_is_never_larger_than_asked(tmp_path, monkeypatch):
    """Claim: without blocks, what is computed together is still divided by ``mode.group``, with the same results."""
    sizes = []

    def counted(members, *args, **kwargs):
        sizes.append(len(members))
        fit_together(members, *args, **kwargs)

    monkeypatch.setattr(retraining, "fit_together", counted)
    nodes = five()
    in_memory = parameters([dataclasses.replace(node, block="") for node in nodes], InMemory())
    assert sizes == [2, 2, 1]
    assert all_same(in_memory, parameters(nodes, Store(tmp_path)))
    assert sizes == [2, 2, 1] * 2


class Killed(Exception):
    pass


@pytest.mark.usefixtures("a_second_a_step")
def test_killed_in_the_middle_it_goes_on_from_finished_and_saved_ones(tmp_path, monkeypatch):
    """Claim: finished blocks are not trained again, the one under way goes on from its last saved step, the end is bit-equal."""
    done: list[int] = []
    last = [9]

    def counted(steps: Iterable[int], title: str, total: int | None = None) -> Iterator[int]:
        for step in steps:
            if len(done) == last[0]:
                raise Killed
            yield step
            done.append(step)

    monkeypatch.setattr(retraining, "track", counted)
    nodes = five()
    with pytest.raises(Killed):
        Store(tmp_path / "store").many(nodes)
    assert done == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert [Store(tmp_path / "store").has(node) for node in nodes] == [True, True, False, False, False]
    done.clear()
    last[0] = -1
    pieces = parameters(nodes, Store(tmp_path / "store"))
    assert done == [2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert all_same(pieces, parameters(nodes, Store(tmp_path / "other")))
    assert {path.name for path in Store(tmp_path / "store").folder(nodes[2]).iterdir()} == {
        "parameters.safetensors",
        "node.json",
        "manifest.json",
    }


def test_workers_divide_the_blocks(tmp_path, monkeypatch):
    """Claim: while one worker trains the first block, another with the same list trains the rest; nothing is trained twice."""
    trained: list[tuple[str, int]] = []
    nodes = five()
    others_done = threading.Event()
    second = threading.Thread(target=lambda: Store(tmp_path).many(nodes), name="second")

    def watched(members, *args, **kwargs):
        worker = threading.current_thread().name
        if worker != "second" and not trained:
            trained.append(("first", len(members)))
            second.start()
            assert others_done.wait(30)
        else:
            trained.append(("second" if worker == "second" else "first", len(members)))
        fit_together(members, *args, **kwargs)
        if trained.count(("second", 2)) and ("second", 1) in trained:
            others_done.set()

    monkeypatch.setattr(retraining, "fit_together", watched)
    mine = parameters(nodes, Store(tmp_path))
    second.join(30)
    assert not second.is_alive()
    assert trained == [("first", 2), ("second", 2), ("second", 1)]
    assert all_same(mine, parameters(nodes, InMemory()))


def test_progress_says_how_many_models_and_how_many_steps_are_left(tmp_path, monkeypatch):
    """Claim: the store counts models over all of them, and within a block every step is counted."""
    shown: list[tuple[str, int]] = []

    def bar(iterable: Iterable[Any], title: str, total: int | None = None) -> Iterator[Any]:
        shown.append((title, len(iterable) if isinstance(iterable, Sized) else total or 0))
        yield from iterable

    monkeypatch.setattr(retraining, "track", bar)
    Store(tmp_path, bar).many(five(), "retraining")
    assert ("retraining", 5) in shown
    assert [entry for entry in shown if entry[0].startswith("training")] == [("training 2 models", 6)] * 2 + [
        ("training 1 model", 6)
    ]


def test_the_dry_run_knows_the_cost(tmp_path):
    """Claim: a plan counts every missing model with its steps and batch."""
    row, *_ = plan(five(), Store(tmp_path))
    assert (row["class"], row["nodes"], row["passes"]) == ("Retrained", 5, 5 * 6 * 5)


@pytest.mark.parametrize("name", options("mode"))
def test_every_mode_of_the_configuration_trains(name):
    """Claim: each shipped mode trains a model, or chooses the one that does."""
    mode = instantiate(OmegaConf.load(CONF / "mode" / f"{name}.yaml"))
    assert isinstance(mode, Mode)
    assert InMemory()(retrained(mode=mode.choose(Small(), (1, 8, 8), RECIPE))).final_parameters()


def test_speed_compares_every_group_with_fit():
    """Claim: a row for one by one and for each group, ratios of positive times."""
    images = Blobs().compute(None)  # pyright: ignore[reportArgumentType]
    adamw = functools.partial(torch.optim.AdamW, lr=1e-3)
    recipe = Recipe(steps=2, batch_size=4)
    rows = retraining_speed(Small, images, OBJECTIVE, adamw, recipe, groups=[2, 3], repeats=1)
    assert [(row.metric, row.about["group"]) for row in rows] == [("fit / alone", 1), ("fit / together", 2), ("fit / together", 3)]
    for row in rows:
        assert row.about["seconds"] > 0
        assert row.estimate.value == pytest.approx(row.about["seconds"] / row.about["reference_seconds"])
