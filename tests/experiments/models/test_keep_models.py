"""Retrained models that are not kept: what is measured on them is the same, and the store deletes them as soon as it can."""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attribution.diffusion.samplers import DDIMSampler
from attribution.images.draws import Even
from attribution.measurements import Loss
from attribution.models.trained import PARAMETERS, Trained, with_parameters
from attribution.nodes import Get, Node
from experiments.models import retrained as retraining
from experiments.models.measured import Measured
from experiments.models.models_on_disk import ModelsOnDisk
from experiments.models.retrained import Retrained, in_blocks
from experiments.models.samples import Samples
from experiments.store import store as store_module
from experiments.store.inventory import listing
from experiments.store.locks import lock_files
from experiments.store.plan import missing, plan
from experiments.store.prune import prune
from experiments.store.rehearsal import Rehearsal
from experiments.store.store import Store
from tests import forked
from tests.experiments.models.test_retraining import five
from tests.experiments.store.nodes_for_store import Child, Draw, Numbers, work
from tests.experiments.tasks.test_cli import FINAL, rows, run, written
from tests.worlds import PROCESS, Blobs

HELD_OUT, OTHERS = Blobs(n=3, first=900), Blobs(n=2, first=500)


def models(keep: bool) -> list[Retrained]:
    """Models on five subsets, in blocks of 2, 2 and 1."""
    return in_blocks([dataclasses.replace(model, block="", keep=keep) for model in five()])


def measured(images: Blobs, keep: bool = False) -> list[Measured]:
    return [Measured(model=model, images=images, measure=Loss(PROCESS), draws=Even(n=4)) for model in models(keep)]


def generated(keep: bool = False) -> list[Samples]:
    return [Samples(trained=model, sampler=DDIMSampler(steps=3), shape=(1, 8, 8), n=2, seed=1) for model in models(keep)]


def wanted(keep: bool = False) -> list[Node]:
    return [*measured(HELD_OUT, keep), *measured(OTHERS, keep), *generated(keep)]


def left(root: Path, kind: str = "Retrained") -> list[Path]:
    return sorted((root / kind).glob("*"))


def contents(root: Path, nodes: Iterable[Node]) -> list[dict[str, bytes]]:
    """The files of the artifacts."""
    store = Store(root)
    return [{path.name: path.read_bytes() for path in store.folder(node).glob("*.np[yz]")} for node in nodes]


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A store in which all models are kept."""
    root = tmp_path_factory.mktemp("kept")
    Store(root).many(wanted(keep=True))
    return root


def test_the_results_are_those_of_kept_models_and_only_the_models_are_gone(tmp_path, kept, monkeypatch):
    """Claim: bit-equal artifacts, no model and no lock remains, and never more models are there than one block has."""
    compute, present = Measured.compute_together.__func__, []  # pyright: ignore[reportFunctionMemberAccess]

    def watched(cls, nodes: Sequence[Any], get: Get) -> Any:
        present.append(len([path for path in left(tmp_path) if not path.suffix]))
        return compute(cls, nodes, get)

    monkeypatch.setattr(Measured, "compute_together", classmethod(watched))
    Store(tmp_path).many(wanted())
    expected = contents(kept, wanted())
    assert all(expected)
    assert contents(tmp_path, wanted()) == expected
    assert max(present) == 2
    assert left(tmp_path) == left(tmp_path, "SampleShard") == lock_files(tmp_path) == []
    assert len(left(kept)) == 5
    kinds = {row["class"]: row["state"] for row in listing(tmp_path)}
    assert kinds == {"Measured": "stored", "Samples": "stored"}


def test_the_next_run_computes_nothing(tmp_path, monkeypatch):
    """Claim: with the same settings, and with keep_models=true too, nothing is trained or measured again."""
    Store(tmp_path).many(wanted())
    assert plan(wanted(), Store(tmp_path))[:-1] == []

    def refuse(self, *args):
        raise AssertionError("computed again")

    monkeypatch.setattr(Store, "_compute", refuse)
    Store(tmp_path).many(wanted())
    Store(tmp_path).many(wanted(keep=True))


def test_another_measurement_trains_the_same_models_again(tmp_path, kept):
    """Claim: the plan says so; the models are the same to the bit; and they are deleted again."""
    Store(tmp_path).many(measured(HELD_OUT))
    later = [*measured(HELD_OUT), *measured(OTHERS)]
    assert {row["class"]: row["nodes"] for row in plan(later, Store(tmp_path))} == {"Retrained": 5, "Measured": 5, "total": 10}
    Store(tmp_path).many(later)
    assert contents(tmp_path, later) == contents(kept, later)
    assert left(tmp_path) == []


def test_models_that_another_run_keeps_stay(tmp_path, monkeypatch):
    """Claim: a run deletes only models that were stored to be deleted, whoever reads their measurements."""
    Store(tmp_path).many(measured(HELD_OUT, keep=True))
    Store(tmp_path).many(measured(OTHERS))
    Store(tmp_path).many([*measured(HELD_OUT), *measured(OTHERS)])
    assert len(left(tmp_path)) == 5
    other = tmp_path / "other"
    Store(other).many(measured(HELD_OUT))
    Store(other).many(measured(OTHERS, keep=True))
    Store(other).many(measured(HELD_OUT))
    assert len(left(other)) == 5
    assert [row["state"] for row in listing(other) if row["class"] == "Retrained"] == ["stored"] * 5
    assert prune(Store(other), unfinished=True) == []


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_at_each_stage_it_goes_on_and_ends_the_same(tmp_path, kept, monkeypatch):
    """Claim: after a kill at any step, before and after any node is stored, and at any deletion, the next run continues.

    At the end everything is bit-equal, nothing is left, and no stored measurement was computed twice.
    """
    killed: set[str] = set()
    stored: list[str] = []

    def once(place: str) -> None:
        if place not in killed:
            killed.add(place)
            raise Killed

    def steps(iterable: Iterable[int], title: str, total: int | None = None) -> Iterator[int]:
        for step in iterable:
            once(f"{title} {len(killed_blocks)} {step}")
            yield step

    publish, remove, killed_blocks = store_module.publish, store_module.remove, set()

    def publishing(part: Path, final: Path, *args: Any) -> None:
        once(f"before {final.name}")
        publish(part, final, *args)
        stored.append(f"{final.parent.name} {final.name}")
        killed_blocks.add(final.name)
        once(f"after {final.name}")

    def removing(root: Path, folder: Path) -> bool:
        if folder.exists():
            once(f"remove {folder.name}")
        done = remove(root, folder)
        if done:
            once(f"removed {folder.name}")
        return done

    monkeypatch.setattr(retraining, "track", steps)
    monkeypatch.setattr(store_module, "publish", publishing)
    monkeypatch.setattr(store_module, "remove", removing)
    for _ in range(1000):
        try:
            Store(tmp_path).many(wanted())
            break
        except Killed:
            pass
    assert len(killed) == 3 * 6 + 2 * 25 + 2 * 10  # steps; before and after each node; at and after each deletion
    assert len(stored) == len(set(stored))
    assert sum(name.startswith("Retrained") for name in stored) == 5
    assert contents(tmp_path, wanted()) == contents(kept, wanted())
    assert left(tmp_path) == left(tmp_path, "SampleShard") == []


def test_a_model_that_a_kill_left_is_deleted_by_the_next_run(tmp_path, monkeypatch):
    """Claim: it is listed as a leftover, prune finds it, and the same run deletes it although it computes nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "remove", lambda root, folder: False)
        Store(tmp_path).many(wanted())
    assert len(left(tmp_path)) == 5
    assert [row["state"] for row in listing(tmp_path) if row["class"] == "Retrained"] == ["leftover"] * 5
    assert len([row for row in prune(Store(tmp_path), unfinished=True) if row["class"] == "Retrained"]) == 5
    Store(tmp_path).many(wanted())
    assert left(tmp_path) == left(tmp_path, "SampleShard") == []


def test_several_workers(tmp_path, kept, monkeypatch):
    """Claim: processes with the same list end with the same artifacts and no model, and each model is trained once."""
    context = forked.context(monkeypatch)
    barrier = context.Barrier(3)
    workers = [context.Process(target=work, args=(str(tmp_path), wanted(), barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert contents(tmp_path, wanted()) == contents(kept, wanted())
    assert left(tmp_path) == left(tmp_path, "SampleShard") == lock_files(tmp_path) == []


def test_a_model_that_another_run_deletes_is_trained_again(tmp_path, monkeypatch):
    """Claim: if a run with other measurements deletes a model just before its use, it is trained again."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "remove", lambda root, folder: False)
        Store(tmp_path / "store").many(measured(OTHERS))
    network, deleted = Trained.network, []

    def without(self: Any, get: Any, step: int | None = None) -> Any:
        if isinstance(self, Retrained) and not deleted:
            artifact = get(self)
            shutil.rmtree(get.folder(self))
            deleted.append(self.fingerprint)
            return with_parameters(self.model(), artifact.final_parameters())
        return network(self, get, step)

    monkeypatch.setattr(Trained, "network", without)
    Store(tmp_path / "store").many(measured(HELD_OUT))
    assert len(deleted) == 1
    assert left(tmp_path / "store") == []
    assert len(left(tmp_path / "store", "Measured")) == 10


def bytes_of(paths: Iterable[Path]) -> int:
    """The bytes of tensors: files without their headers."""
    return sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in paths)


@pytest.mark.usefixtures("a_second_a_step")
def test_the_plan_s_figures_are_what_is_on_disk(tmp_path, kept, monkeypatch):
    """Claim: bytes of all models, of those of a block, of the progress of its training, and of what is measured."""
    store, fresh = Store(tmp_path), wanted()
    figures = ModelsOnDisk.of(missing(fresh, store))
    one, peak = models(False)[0].cost().disk, Rehearsal(fresh, store).peaks["Retrained"]
    progress: list[int] = []
    saving = retraining.fit_together.__globals__["_save"]

    def save(*args: Any) -> None:
        saving(*args)
        progress.append(bytes_of(tmp_path.rglob("progress/*.safetensors")))

    monkeypatch.setitem(retraining.fit_together.__globals__, "_save", save)
    store.many(fresh)
    assert bytes_of(kept.rglob(PARAMETERS)) == figures.kept == 5 * one
    assert figures.number == 5
    assert peak == 2 * one
    files = [path for node in fresh for path in store.folder(node).glob("*.np[yz]")]
    values = [path for path in files if path.name in ("values.npy", "pixels.npy")]
    assert sum(path.stat().st_size - 128 for path in values) == figures.measured
    each = max(progress) // 4 - 4  # two saves of each of two models; without the number of steps that Adam keeps
    assert figures.at_a_time == 2 * one + 5 * each  # one more while it is written


@dataclass(frozen=True, kw_only=True)
class Passing(Draw):
    """Not kept."""

    @property
    def temporary(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Pair(Node[Numbers]):
    """Made from a temporary node, and from something that takes two steps."""

    ARTIFACT = Numbers

    one: Passing
    other: Child

    def compute(self, get: Get) -> Numbers:
        present.append(len([path for path in get.folder(self.one).parent.iterdir() if not path.suffix]))  # pyright: ignore
        return Numbers(get(self.one).values + get(self.other).values)


present: list[int] = []


def test_a_temporary_node_waits_for_what_else_its_users_need(tmp_path):
    """Claim: they are not made before their users can be computed, so that one is there at a time."""
    other = Child(parent=Child(parent=Draw(number=100)))
    present.clear()
    Store(tmp_path).many([Pair(one=Passing(number=i), other=other) for i in range(6)])
    assert present == [1] * 6
    assert left(tmp_path, "Passing") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["estimator=retraining", "benchmark.subsets.count=4", "benchmark.repeats=3", "benchmark.draws.n=4"],
        ["estimator=raw_cos", "benchmark=counterfactual", "benchmark.fractions=[0.1]", "benchmark.random=1", "benchmark.draws.n=4"],
    ],
    ids=["lds", "counterfactual"],
)
def test_a_benchmark_without_its_models(tmp_path, settings):
    """Claim: on the command line, with workers, rows are the same, only kept models are on disk, a second run trains nothing."""
    common = [*FINAL, *settings, "benchmark.compare=[random]", "benchmark.mode.group=2"]
    common += ["benchmark.queries.validation.n=2", "benchmark.queries.generated.n=2", "diffusion.sampler.steps=5"]
    found = {}
    for keep in ("true", "false"):
        folder = tmp_path / keep
        folder.mkdir()
        workers = {"true": 1, "false": 2}[keep]
        run(folder, *common, f"workers={workers}", f"benchmark.keep_models={keep}", f"hydra.run.dir={folder}")
        found[keep] = rows(folder)
        for row in found[keep]:
            del row["command"]
    assert found["false"] == found["true"]
    store = tmp_path / "false" / "store"
    assert left(store) == []
    assert len(left(tmp_path / "true" / "store")) >= 7
    before = written(store)
    assert "to compute" not in run(tmp_path / "false", *common, "benchmark.keep_models=false", "hydra.run.dir=again")
    assert written(store) == before
