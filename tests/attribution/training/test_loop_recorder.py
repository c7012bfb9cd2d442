"""The recorder of training loops of others, and what is read from its record."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution.diffusion import DDPM, NoiseSchedule, Process
from attribution.images import Images
from attribution.measurements import Loss
from attribution.models.weights import WeightsFile
from attribution.nodes import InMemory
from attribution.training.given_record import GivenRecord, RecordFolder, nearest
from attribution.training.loop_callback import LoopCallback
from attribution.training.loop_recorder import LoopRecorder
from attribution.training.record import TrainingRecord
from attribution.training.replay import replay_gradient, replay_loss
from tests.worlds import PROCESSES, SCHEDULE, Blobs

RATE = 0.05
IMAGES: Images = Blobs(n=8).compute(None)  # pyright: ignore[reportArgumentType]


class Net(nn.Module):
    """A denoiser with a layer of each kind."""

    def __init__(self):
        super().__init__()
        self.first, self.time, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(1, 4), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + self.time(t[:, None].to(x.dtype) / 100)[:, :, None, None]))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def loop(recorder: LoopRecorder, model: nn.Module, process: Process, steps: int, noise: bool = True) -> None:
    """A training loop of somebody: SGD in float64, batches of 4 drawn with replacement, every second one mirrored."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(recorder.step, steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(IMAGES), (4,), generator=generator)
        flips = torch.tensor([False, True, False, True])
        x0 = torch.where(flips[:, None, None, None], IMAGES.x0(rows).flip(-1), IMAGES.x0(rows)).double()
        epsilon = recorder.noise_like(x0) if noise else torch.randn_like(x0)
        optimizer.param_groups[0]["lr"] = RATE / (1 + step)
        if isinstance(process, DDPM):
            time = torch.randint(process.T, (4,), generator=generator)
            t, given = time + 1, {"timesteps": time}
        else:
            t = torch.rand(4, generator=generator, dtype=torch.float64)
            given = {"levels": t}
        recorder.before_step(IMAGES.ids(rows), **given, flips=flips, learning_rate=optimizer.param_groups[0]["lr"])
        output = model(process.network_input(process.add_noise(x0, t, epsilon), t), process.network_time(t))
        loss = (process.target(x0, t, epsilon) - output).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.after_step(model, loss)


def read(folder: Path, process: Process) -> tuple[GivenRecord, TrainingRecord, InMemory]:
    """The node of a record, its artifact, and what made it."""
    record = RecordFolder(str(folder))
    record.check(process, IMAGES.index)
    weights = tuple(WeightsFile(str(record.checkpoint(step))).of_network(Net()) for step in record.info["checkpoints"])
    average = None if record.average is None else WeightsFile(str(record.average)).of_network(Net())
    node = GivenRecord(model=network, objective=Loss(process), weights=weights, record=record, average=average)
    get = InMemory()
    return node, get(node), get


@pytest.mark.parametrize("name", ["epsilon", "v, zero terminal SNR", "rectified flow"])
def test_a_step_of_a_recorded_loop_is_reproduced(name, tmp_path):
    """Claim: from the parameters before a step its record gives its loss and those after it; continuous levels are exact."""
    process = PROCESSES[name] if name != "v, zero terminal SNR" else DDPM(SCHEDULE, "v")
    model = network()
    recorder = LoopRecorder(tmp_path / "record", every=1)
    loop(recorder, model, process, 24)
    recorder.save(model)
    node, record, get = read(tmp_path / "record", process)
    assert record.steps == list(range(1, 25))
    for step in (1, 23):
        before = node.network(get, step)
        assert replay_loss(before, node.objective, record, IMAGES, step) == pytest.approx(record.losses[step], rel=1e-6)
        for parameter, gradient in zip(
            before.parameters(), replay_gradient(before, node.objective, record, IMAGES, step).values(), strict=True
        ):
            parameter.data -= RATE / (1 + step) * gradient
        for found, expected in zip(before.parameters(), node.network(get, step + 1).parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert record.learning_rate(24) == RATE / 24
    latest = record.latest_draws(24, IMAGES.index)
    for row, example in enumerate(IMAGES.index):
        visit = record.visits[record.visits["example"] == example][-1]
        exact = visit["level"] if "level" in record.visits.dtype.names else visit["timestep"]
        assert float(latest.timestep[row, 0]) == exact
        assert int(latest.noise_seed[row, 0]) == visit["noise_seed"]
        assert record.latest_timesteps(24, IMAGES.index)[row] == visit["timestep"]


def test_the_nearest_timestep_of_a_level():
    """Claim: it is the t whose level differs the least."""
    process = PROCESSES["EDM"]
    levels = np.random.default_rng(0).lognormal(-1, 1.5, 50)
    expected = [1 + np.abs(process.levels[1:] - level).argmin() for level in levels]
    np.testing.assert_array_equal(nearest(process, levels), expected)


def test_a_resumed_loop_has_the_same_record(tmp_path):
    """Claim: killed after step 7 and resumed at the save of step 5, the record and the checkpoints are those of a whole loop."""
    process = PROCESSES["epsilon"]
    model = network()
    whole = LoopRecorder(tmp_path / "whole", every=3)
    loop(whole, model, process, 10)
    whole.save(model)
    model = network()
    first = LoopRecorder(tmp_path / "pieces", every=3)
    loop(first, model, process, 5)
    first.save(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loop(first, model, process, 7)  # lost
    model.load_state_dict(state)
    second = LoopRecorder(tmp_path / "pieces", every=3, start=5)
    loop(second, model, process, 10)
    averaged = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    second.save(model, average=averaged)
    a, b = RecordFolder(str(tmp_path / "whole")), RecordFolder(str(tmp_path / "pieces"))
    np.testing.assert_array_equal(a.visits, b.visits)
    np.testing.assert_array_equal(a.steps, b.steps)
    assert a.info["checkpoints"] == [3, 6, 9, 10]
    assert b.info["checkpoints"] == [3, 5, 6, 9, 10]
    assert (a.average, b.average) == (None, tmp_path / "pieces" / "average.safetensors")
    assert a.checkpoint(10).read_bytes() == b.checkpoint(10).read_bytes()
    _, record, _get = read(tmp_path / "pieces", process)
    assert torch.equal(record.final_parameters()["time.bias"], averaged["time.bias"])
    with pytest.raises(ValueError, match="ends at step 10"):
        LoopRecorder(tmp_path / "pieces", start=11)
    with pytest.raises(ValueError, match="has a record"):
        LoopRecorder(tmp_path / "pieces")


def test_files_of_another_training_run_are_not_in_the_record(tmp_path):
    """Claim: checkpoints of a run that was killed before its first save, half-written files and an earlier average are ignored."""
    killed = LoopRecorder(tmp_path, every=1)
    loop(killed, network(), PROCESSES["epsilon"], 5)
    (tmp_path / "checkpoints" / "new-6.safetensors").write_bytes(b"half")
    model, recorder = network(), LoopRecorder(tmp_path, every=2)
    loop(recorder, model, PROCESSES["epsilon"], 3)
    recorder.save(model, average=model)
    assert RecordFolder(str(tmp_path)).average is not None
    recorder.save(model)
    record = RecordFolder(str(tmp_path))
    assert record.info["checkpoints"] == [2, 3]
    assert record.average is None
    resumed = LoopRecorder(tmp_path, start=2)
    loop(resumed, model, PROCESSES["epsilon"], 4)
    resumed.save(model)
    assert RecordFolder(str(tmp_path)).info["checkpoints"] == [2, 4]


def test_arrays_and_lists_are_recorded_like_tensors(tmp_path):
    """Claim: ids, timesteps, levels and flips may be arrays and lists; levels remain float64."""
    for i, kind in enumerate((torch.tensor, np.array, list)):
        for name, values in (("timesteps", [3, 5]), ("levels", [0.1, 0.7])):
            recorder = LoopRecorder(tmp_path / f"{name}{i}")
            given: Any = {name: torch.from_numpy(np.array(values)) if kind is torch.tensor else kind(values)}
            recorder.before_step(kind([0, 1]), **given, flips=kind([True, False]), learning_rate=1.0)
            recorder.after_step(Net(), 1.0)
            recorder.save(Net())
    for name in ("timesteps", "levels"):
        tables = [RecordFolder(str(tmp_path / f"{name}{i}")).visits for i in range(3)]
        assert all((table == tables[0]).all() for table in tables)


def test_noise_that_is_not_the_recorder_s_is_unknown(tmp_path):
    """Claim: the record says so, and the notes of the model."""
    model, recorder = network(), LoopRecorder(tmp_path)
    loop(recorder, model, PROCESSES["epsilon"], 24, noise=False)
    recorder.save(model)
    node, record, _ = read(tmp_path, PROCESSES["epsilon"])
    assert any("noise drawn anew" in note for note in node.notes(replayed=True))
    assert len(np.unique(record.visits["noise_seed"])) > 20


def test_wrong_calls_and_records(tmp_path):
    """Claim: what a record cannot have is refused when it is recorded, and a record that does not fit when it is read."""
    recorder, ids = LoopRecorder(tmp_path), torch.arange(4)
    with pytest.raises(ValueError, match="either timesteps"):
        recorder.before_step(ids)
    with pytest.raises(ValueError, match="give continuous noise levels as levels"):
        recorder.before_step(ids, torch.rand(4))
    with pytest.raises(ValueError, match="ids are whole numbers"):
        recorder.before_step(torch.rand(4), ids)
    with pytest.raises(ValueError, match="ids must be numbers"):
        recorder.before_step(["a.png"], [1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"ids have the shape \[4, 1\]: give one number for each image"):
        recorder.before_step(ids[:, None], ids)
    recorder.noise_like(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="4 ids and 2 noise_seeds: of several processes, gather"):
        recorder.before_step(ids, ids)
    with pytest.raises(ValueError, match="call before_step"):
        recorder.after_step(Net(), 1.0)
    with pytest.raises(ValueError, match="no step was recorded"):
        recorder.save(Net())
    recorder.noise_seeds = None
    recorder.before_step(ids, 99 - ids)
    with pytest.raises(ValueError, match="give learning_rate"):
        recorder.after_step(Net(), 1.0)
    with pytest.raises(ValueError, match=r"the loss has the shape \[4\]: give the mean"):
        recorder.after_step(Net(), torch.ones(4), learning_rate=0.0)
    recorder.after_step(Net(), 1.0, learning_rate=0.0)
    recorder.save(nn.DataParallel(Net()))
    record = RecordFolder(str(tmp_path))
    for process, wanted, message in (
        (PROCESSES["EDM"], ids, "has timesteps, but the process is EDM"),
        (DDPM(NoiseSchedule(T=50)), ids, "timesteps up to 100 of 1..T, but the process has T=50"),
        (PROCESSES["epsilon"], ids + 1, "no visit of 1 of the 4 training images"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            record.check(process, wanted.numpy())
    with pytest.raises(ValueError, match="is no folder with a record"):
        RecordFolder(str(tmp_path / "nowhere")).check(PROCESSES["epsilon"], ids.numpy())


@pytest.mark.parametrize(
    ("process", "given", "message"),
    [
        ("epsilon", {"timesteps": [0, -1]}, "has the timestep -1"),
        ("rectified flow", {"levels": [0.5, 500.0]}, "has the noise level 500: record s, in 0..1"),
        ("rectified flow", {"levels": [0.5, float("nan")]}, "has the noise level nan"),
        ("EDM", {"levels": [0.5, 0.0]}, "has the noise level 0: record σ"),
    ],
)
def test_levels_that_the_process_cannot_have(tmp_path, process, given, message):
    """Claim: they are refused before anything is computed."""
    recorder = LoopRecorder(tmp_path)
    recorder.before_step([0, 1], **given, learning_rate=1.0)
    recorder.after_step(Net(), 1.0)
    recorder.save(Net())
    with pytest.raises(ValueError, match=message):
        RecordFolder(str(tmp_path)).check(PROCESSES[process], np.arange(2))


class Module(L.LightningModule):
    """A LightningModule of somebody."""

    def __init__(self, recorder: LoopRecorder):
        super().__init__()
        self.net, self.recorder = Net(), recorder

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, x0 = batch
        noise, t = self.recorder.noise_like(x0), torch.randint(100, (len(ids),))
        self.recorder.before_step(ids, t)
        return (self.net(PROCESSES["epsilon"].add_noise(x0, t + 1, noise), t) - noise).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=RATE)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}]


def fit(recorder: LoopRecorder, network: str) -> None:
    """Four steps of ``Module``, with two batches for each."""
    data = torch.utils.data.TensorDataset(IMAGES.ids(), IMAGES.x0())
    trainer = L.Trainer(
        max_steps=4,
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=[LoopCallback(recorder, network)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=recorder.folder.parent,
    )
    trainer.fit(Module(recorder), torch.utils.data.DataLoader(data, batch_size=2))


@pytest.mark.filterwarnings("ignore")
def test_a_callback_that_does_not_fit_is_refused(tmp_path):
    """Claim: an attribute that is no network, and a recorder of another step or process, are refused before training."""
    with pytest.raises(ValueError, match="Module has no network 'unet'; choose from net"):
        fit(LoopRecorder(tmp_path / "record"), "unet")
    with pytest.raises(ValueError, match=r"process=1, but training is at 0: make LoopRecorder\(folder, process=0\)"):
        fit(LoopRecorder(tmp_path / "record", process=1), "net")
    recorder = LoopRecorder(tmp_path / "record")
    recorder.step = 3
    with pytest.raises(ValueError, match=r"start=3, but training is at 0: make LoopRecorder\(folder, start=0\)"):
        fit(recorder, "net")


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_is_recorded(tmp_path):
    """Claim: the callback records rates before the scheduler, losses of accumulated batches, and checkpoints that replay."""
    recorder = LoopRecorder(tmp_path / "record", every=1)
    fit(recorder, "net")
    node, record, get = read(tmp_path / "record", PROCESSES["epsilon"])
    np.testing.assert_allclose(record.step_table["learning_rate"][:, 0], RATE * 0.5 ** np.arange(4))
    assert np.bincount(record.visits["step"]).tolist() == [4, 4, 4, 4]
    assert record.steps == [1, 2, 3, 4]
    for step in (1, 3):
        found = replay_loss(node.network(get, step).float(), node.objective, record, IMAGES, step)
        assert found == pytest.approx(record.losses[step], rel=1e-4)
