"""Training writes a record from which its steps can be replayed."""

import functools
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attribution.images import Images
from attribution.nodes import InMemory
from attribution.training.checkpoints import AtSteps, EveryEpochs, EverySteps, SteadyDecline, select, steady_decline
from attribution.training.fit import fit
from attribution.training.module import DiffusionModule
from attribution.training.order import batch_rows
from attribution.training.recipe import Hardware, Recipe
from attribution.training.record import TrainingRecord
from attribution.training.replay import replay_gradient
from tests import forked
from tests.worlds import UNET, Blobs, Conditioned, trained


@pytest.fixture(scope="module")
def world():
    """(get, node, record) of one recorded training."""
    get = InMemory()
    node = trained()
    return get, node, get(node)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("step", [1, 2, 6, 11])
def test_a_recorded_step_is_reproduced_bit_for_bit(world, step):
    """Claim: the record gives the parameters after a step from those before it, with rate schedule, clipping, dropout and flips."""
    get, node, record = world
    network = node.network(get, step)
    gradients = replay_gradient(network, node.objective, record, get(node.data), step)
    row = record.step_table[step]
    assert row["clip_factor"] < 1, "the claim is about a step that was clipped"
    optimizer = torch.optim.SGD(network.parameters(), lr=float(row["learning_rate"][0]))
    for name, parameter in network.named_parameters():
        parameter.grad = gradients[name]
    optimizer.step()
    assert same(network.state_dict(), record.parameters(step + 1))


def test_a_step_of_a_conditional_network_is_reproduced():
    """Claim: training gives each image's condition to the network, and so does the replay; other conditions give another step."""
    get, node = InMemory(), trained(model=functools.partial(UNET, num_class_embeds=2), data=Conditioned())
    record, images = get(node), get(node.data)

    def after(step: int, images: Images) -> dict[str, torch.Tensor]:
        network = node.network(get, step)
        gradients = replay_gradient(network, node.objective, record, images, step)
        rate = float(record.step_table[step]["learning_rate"][0])
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter -= rate * gradients[name]
        return network.state_dict()

    for name, parameter in after(3, images).items():
        torch.testing.assert_close(parameter, record.parameters(4)[name], rtol=1e-12, atol=1e-14)
    swapped = after(3, replace(images, condition=1 - images.label))
    assert not torch.allclose(swapped["class_embedding.weight"], record.parameters(4)["class_embedding.weight"], rtol=1e-6)


def test_the_replay_would_notice_another_dropout_seed_or_flip(world):
    """Claim: the test above can fail: with other flips or another dropout seed the gradient differs."""
    get, node, record = world
    step = 5
    true = replay_gradient(node.network(get, step), node.objective, record, get(node.data), step)
    for tampered in ("flip", "dropout"):
        other = TrainingRecord(record.folder)
        if tampered == "flip":
            visits = np.array(record.visits)
            visits["flip"] = ~visits["flip"]
            other.__dict__["visits"] = visits
        else:
            table = np.array(record.step_table)
            table["dropout_seed"] += 1
            other.__dict__["step_table"] = table
        assert not same(true, replay_gradient(node.network(get, step), node.objective, other, get(node.data), step))


def test_learning_rates_are_those_that_were_applied(world):
    """Claim: the recorded rate of step s is warm-up and cosine at s, not at s + 1."""
    _, _, record = world
    warmup, steps, lr = 2, 12, 0.05
    expected = [
        lr * s / warmup if s < warmup else lr * 0.5 * (1 + np.cos(np.pi * (s - warmup) / (steps - warmup))) for s in range(steps)
    ]
    np.testing.assert_allclose(record.step_table["learning_rate"][:, 0], expected, rtol=1e-12)
    assert record.learning_rate(7) == pytest.approx(expected[6])


def test_every_epoch_visits_every_example_once(world):
    """Claim: visits follow the batch order, and an epoch is a permutation of the training set."""
    get, node, record = world
    ids = get(node.data).index
    per_epoch = record.info["steps_per_epoch"]
    for epoch in range(12 // per_epoch):
        of_epoch = record.visits[(record.visits["step"] >= epoch * per_epoch) & (record.visits["step"] < (epoch + 1) * per_epoch)]
        assert Counter(of_epoch["example"].tolist()) == Counter(ids.tolist())
    for step in (0, 7):
        assert record.visits_of_step(step)["example"].tolist() == ids[batch_rows(3, step, len(ids), 10)].tolist()


def test_latest_draws_are_the_latest_visits(world):
    """Claim: an example's draw at a checkpoint is its last visit before it, found by searching all visits."""
    get, node, record = world
    ids = get(node.data).index
    for step in (3, 4, 8, 12):
        draws = record.latest_draws(step, ids)
        for row, example in enumerate(ids):
            mine = record.visits[(record.visits["example"] == example) & (record.visits["step"] < step)][-1]
            assert (int(mine["timestep"]), int(mine["noise_seed"]), bool(mine["flip"])) == (
                int(draws.timestep[row, 0]),
                int(draws.noise_seed[row, 0]),
                bool(draws.flip[row, 0]),
            )


def test_an_example_that_was_not_trained_on_yet_is_an_error(world):
    """Claim: no draw is invented for an example without a visit."""
    get, node, record = world
    with pytest.raises(ValueError, match="not yet trained on at checkpoint 1"):
        record.latest_draws(1, get(node.data).index)
    with pytest.raises(ValueError, match="1 of the examples"):
        record.latest_draws(12, np.array([get(node.data).index[0], 10**6]))


class _Stop(L.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.slow
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, precision):
    """Claim: after stops between and at saved steps, record and parameters (also the average) are bit-equal."""
    images = Blobs().compute(None)
    node = trained()
    recipe = replace(node.recipe, precision=precision, ema=0.9)

    def run(folder, *callbacks):
        fit(folder, images, UNET, node.objective, functools.partial(torch.optim.Adam, lr=1e-3), recipe, EverySteps(3), 3, True,
            Hardware(accelerator="cpu", interval=4), callbacks)  # fmt: skip

    run(tmp_path / "whole")
    for stop in (2, 6, 8, 11, 12):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "pieces", _Stop(stop))
    run(tmp_path / "pieces")
    whole, pieces = TrainingRecord(tmp_path / "whole"), TrainingRecord(tmp_path / "pieces")
    assert np.array_equal(whole.visits, pieces.visits)
    assert np.array_equal(whole.step_table, pieces.step_table)
    assert whole.steps == pieces.steps == [3, 6, 9, 12]
    for step in whole.steps:
        assert same(whole.parameters(step), pieces.parameters(step))
    assert same(whole.final_parameters(), pieces.final_parameters())
    assert [path.name for path in (tmp_path / "pieces" / "progress").iterdir()] == ["finished.json"]


def test_the_average_is_torch_s_exponential_moving_average():
    """Claim: without warm-up final_parameters are torch's EMA after every step, and without EMA the last checkpoint."""
    get = InMemory()
    node = trained(recipe=replace(trained().recipe, ema=0.8, ema_warmup=False))
    record = get(node)
    network = UNET().double()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for step in record.steps:
        network.load_state_dict(record.parameters(step))
        average.update_parameters(network)
    expected = average.module.state_dict()
    for name, tensor in record.final_parameters().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-14)
    plain = trained()
    assert same(get(plain).final_parameters(), get(plain).parameters(12))


def test_saves_with_an_averaged_model_of_torch_are_resumed_from():
    """Claim: the average in a save of an earlier version, an ``AveragedModel``, becomes the module's average."""
    node = trained()
    network = node.model()
    module = DiffusionModule(network, node.objective, node.optimizer, 0, False, "constant", ema_decay=lambda step: 0.9)
    earlier = AveragedModel(node.model())
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {f"average.{name}": tensor for name, tensor in earlier.state_dict().items()}
    with pytest.raises(RuntimeError, match="n_averaged"):
        module.load_state_dict(dict(state))
    module.on_load_checkpoint({"state_dict": state})
    module.load_state_dict(state)
    assert module.average is not None
    assert same(module.average.state_dict(), earlier.module.state_dict())


@pytest.mark.parametrize("ema", [0.3, 0.8, 0.9999])
def test_the_decay_of_the_average_warms_up(ema):
    """Claim: step t mixes the average with weight min(ema, (1 + t) / (10 + t)), and step 0 sets it to the parameters."""
    get = InMemory()
    node = trained(recipe=replace(trained().recipe, ema=ema))
    record = get(node)
    assert record.steps == list(range(1, 13))
    expected = record.parameters(1)
    for t in range(1, 12):
        decay = min(ema, (1 + t) / (10 + t))
        expected = {name: decay * expected[name] + (1 - decay) * tensor for name, tensor in record.parameters(t + 1).items()}
    for name, tensor in record.final_parameters().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-14)


def test_the_warm_up_is_that_of_diffusers():
    """Claim: decays agree with the ``EMAModel`` of diffusers, and the first step's weight in the average with their product."""
    recipe = Recipe(steps=500, batch_size=8, ema=0.999)
    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.999)
    assert [recipe.ema_decay(t) for t in range(500)] == [theirs.get_decay(t + 1) for t in range(500)]
    assert recipe.ema_first_weight < 1e-15
    assert replace(recipe, ema_warmup=False).ema_first_weight == pytest.approx(0.999**499)
    assert replace(recipe, ema=None).ema_first_weight == 0


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do():
    """Claim: training stops at NaN and writes no record."""
    get = InMemory()
    recipe = replace(trained().recipe, clip=None, warmup=0.0)
    diverging = trained(optimizer=functools.partial(torch.optim.SGD, lr=1e30), recipe=recipe)
    with pytest.raises(FloatingPointError, match=r"step \d+: lower the learning rate"):
        get(diverging)
    assert not (get.workspace(diverging) / "record.json").exists()


def test_hardware_is_no_identity_but_the_recipe_is():
    """Claim: hardware does not change a fingerprint; batch size, seed and precision do."""
    base = trained().fingerprint
    assert trained(hardware=Hardware(accelerator="auto", interval=77)).fingerprint == base
    for change in ({"batch_size": 11}, {"precision": "32-true"}, {"ema": 0.5}):
        assert trained(recipe=replace(trained().recipe, **change)).fingerprint != base
    assert trained(seed=4).fingerprint != base
    assert trained(model=functools.partial(UNET, dropout=0.2)).fingerprint != base


def test_checkpoint_rules():
    """Claim: each rule gives its steps and always the last step."""
    assert EverySteps(4).candidates(10, 3) == [4, 8, 10]
    assert EveryEpochs(2).candidates(10, 3) == [6, 10]
    assert AtSteps([7, 2]).candidates(10, 3) == [2, 7, 10]
    with pytest.raises(ValueError, match=r"AtSteps.steps=.*without \[11\]"):
        AtSteps([11]).candidates(10, 3)


def test_steady_decline_leaves_out_the_fall_and_the_plateau():
    """Claim: for a loss that drops, declines and stays constant, the steady decline is found."""
    falls, declines, stays = np.geomspace(1, 0.3, 50), np.geomspace(0.3, 0.05, 500), np.full(450, 0.05)
    first, last = steady_decline(np.concatenate([falls, declines, stays]))
    assert 50 <= first < last <= 560
    assert last - first > 200


def test_steady_checkpoints_are_kept_and_the_others_removed():
    """Claim: training keeps ``count`` candidates in the decline and the last one."""
    get = InMemory()
    node = trained(checkpoints=SteadyDecline(count=3, every=1))
    record = get(node)
    assert 3 <= len(record.steps) <= 4
    assert record.steps[-1] == 12
    assert sorted(int(path.stem) for path in (record.folder / "checkpoints").iterdir()) == record.steps


def test_selecting_checkpoints():
    """Claim: words, numbers and lists select recorded steps; anything else is an error that names the setting."""
    recorded, losses = [10, 20, 30, 40], np.geomspace(1, 0.1, 40)
    assert select("all", recorded, losses) == recorded
    assert select("last", recorded, losses) == [40]
    assert select([30, 10], recorded, losses) == [10, 30]
    assert len(select(2, recorded, losses)) == 2
    assert select(4, recorded, losses) == recorded
    for wanted, message in (("first", "choose all"), ([15], r"no checkpoint at step \[15\]"), (5, "recorded 4"), (0, "at least 1")):
        with pytest.raises(ValueError, match=message):
            select(wanted, recorded, losses)


@pytest.mark.slow
def test_several_processes_visit_what_one_does(tmp_path, monkeypatch):
    """Claim: under DDP the record has the same visits, and with them (no dropout) the same parameters and average to rounding."""
    forked.fork_spawned(monkeypatch)
    images = Blobs().compute(None)
    node = trained(model=functools.partial(UNET, dropout=0.0), recipe=replace(trained().recipe, ema=0.9))
    records = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        hardware = Hardware(accelerator="cpu", devices=devices, interval=4)
        fit(folder, images, node.model, node.objective, node.optimizer, node.recipe, EverySteps(3), 3, True, hardware)
        records.append(TrainingRecord(folder))
    one, two = records
    order = ["step", "example"]
    assert np.array_equal(np.sort(one.visits, order=order), np.sort(two.visits, order=order))
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-9)
    for name, tensor in one.parameters(12).items():
        torch.testing.assert_close(two.parameters(12)[name], tensor, rtol=1e-9, atol=1e-12)
    for name, tensor in one.final_parameters().items():
        torch.testing.assert_close(two.final_parameters()[name], tensor, rtol=1e-9, atol=1e-12)


def test_processes_that_cannot_share_a_batch_are_refused(tmp_path):
    """Claim: processes that would weight examples unequally, or wait forever, are an error before training."""
    node = trained()
    images = Blobs().compute(None)
    for hardware, message in (
        (Hardware(accelerator="cpu", devices=3), "3 processes cannot share batches of 10 and 4"),
        (
            Hardware(accelerator="cpu", devices=2, strategy="ddp"),
            "needs a process per device: give each its rank, or choose ddp_spawn",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tmp_path, images, UNET, node.objective, node.optimizer, node.recipe, EverySteps(3), 3, True, hardware)


class _AtStep(L.Callback):
    def __init__(self, step: int, act: Callable[[L.Trainer], None]):
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.act(trainer)


def _fit(folder, *callbacks):
    node = trained()
    hardware = Hardware(accelerator="cpu", interval=4)
    images = Blobs().compute(None)
    fit(folder, images, UNET, node.objective, node.optimizer, node.recipe, EverySteps(3), 3, True, hardware, callbacks)


def test_sigterm_ends_a_training_with_143(tmp_path):
    """Claim: SIGTERM is no success (Lightning exits with 0), also without a handler of the program; the next call continues."""
    with pytest.raises(SystemExit) as ended:
        _fit(tmp_path, _AtStep(6, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended.value.code == 143
    assert list((tmp_path / "progress").glob("*.ckpt"))
    _fit(tmp_path)
    assert (tmp_path / "record.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_of_slurm_is_a_process_of_its_own(tmp_path, monkeypatch, rank):
    """Claim: under srun -n 2 each task trains, saves and records by itself, and SIGUSR1 does not requeue the job."""
    _srun(tmp_path / "bin", monkeypatch)
    variables = {"NTASKS": 2, "JOB_NAME": "job", "JOB_ID": 7, "PROCID": rank, "LOCALID": rank, "NODEID": 0}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(rank_zero_only, "rank", rank)  # as Lightning sets it from SLURM_PROCID when it is imported
    seen = []

    def look(trainer):
        assert trainer.world_size == 1
        assert rank_zero_only.rank == 0
        seen.append((signal.getsignal(signal.SIGUSR1), bool(list((tmp_path / "node" / "progress").glob("*.ckpt")))))

    _fit(tmp_path / "node", _AtStep(6, look))
    assert seen == [(signal.SIG_DFL, True)]
    assert (tmp_path / "node" / "record.json").exists()


def test_nothing_is_said_where_srun_is_merely_installed(tmp_path, monkeypatch, recwarn):
    """Claim: on a login node of Slurm, Lightning's warning about srun does not appear."""
    _srun(tmp_path / "bin", monkeypatch)
    _fit(tmp_path / "node")
    assert not [warning for warning in recwarn if "srun" in str(warning.message)]


def _srun(folder, monkeypatch):
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
