"""How often the host waits for the device in passes and steps, counted on the stand-in of ``tests/without_float64.py``.

``python -m tests.device_counts`` prints the rows of the table in docs/speed.md; with ``--lines`` also the lines that wait.
"""

import functools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

from attribution import transfers
from attribution.curvature import EKFAC, KFAC
from attribution.curvature.vector_products import GaussNewton
from attribution.estimators import ReTrac, TracIn
from attribution.estimators.base import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.lissa import LiSSA
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from attribution.measurements import SquareNorm
from attribution.nodes import InMemory, Node
from attribution.projection import SJLT
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Together
from attribution.retraining.selection import Selection
from attribution.training.checkpoints import AtSteps
from attribution.training.fit import fit
from attribution.training.recipe import Hardware
from attribution.transfers import to_device
from experiments.models.measured import Measured
from tests import device_checks
from tests.device_checks import CPU, LOSS, PROCESS, QUERIES, RECIPE, SMALL, Accelerator
from tests.without_float64 import CROSSINGS, NAME, registered
from tests.worlds import Blobs

FEW, MANY = 4, 8
"""Steps of two runs."""
BATCH, DRAWS = 4, Uniform(2, seed=1)
MODEL = replace(device_checks.MODEL, data=Blobs(n=24), recipe=replace(RECIPE, steps=8), checkpoints=AtSteps([8]))
EXECUTION = Execution(device=NAME, batch_size=BATCH * DRAWS.count, shard=64)


@dataclass(frozen=True)
class Count:
    """How often the host waits in each unit of work, and the lines of the program where it does."""

    unit: str
    each: float
    lines: Counter


def _crossings(run: Callable[[], Any]) -> Counter:
    CROSSINGS.clear()
    run()
    return Counter(CROSSINGS)


def counted(unit: str, run: Callable[[int], Any], few: int, many: int) -> Count:
    """Compare runs of ``few`` and ``many`` units: what grows with their number is counted for each of them."""
    run(few), run(many)  # what is computed once, and what stays for the next run with the same images
    one, other = _crossings(lambda: run(few)), _crossings(lambda: run(many))
    return Count(unit, (other.total() - one.total()) / (many - few), other - one)


def training(steps: int) -> None:
    recipe = replace(RECIPE, steps=steps)
    hardware = Hardware(accelerator=NAME, strategy=NAME, interval=1000)
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder), CPU(MODEL.data), SMALL, LOSS, MODEL.optimizer, recipe, AtSteps([steps]), 3, True, hardware)


def retraining(mode: Any, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        members = [Member(seed, Selection(np.arange(5)), Path(folder) / str(seed)) for seed in (1, 2)]
        recipe = replace(RECIPE, steps=steps)
        fit_together(members, CPU(MODEL.data), SMALL, LOSS, MODEL.optimizer, recipe, mode, True, NAME)


def recursion(steps: int) -> None:
    """The recursion of LiSSA, without the scores."""
    settings: dict[str, Any] = {
        "damping": 0.05,
        "scale": 100.0,
        "depth": steps,
        "batch_size": 4,
        "draws": DRAWS,
        "execution": EXECUTION,
    }
    estimator = LiSSA(measurement=LOSS, product=GaussNewton(), **settings)
    scores: Any = estimator.scores(MODEL, MODEL.data, QUERIES)
    computed(scores.training_blocks[0].query_blocks()[0])


def gradients(images: int) -> None:
    """The mean gradient of each image, in as many passes as they need."""
    data = CPU(Blobs(n=images))
    x0, ids = (to_device(tensor, NAME) for tensor in (data.x0(), data.ids()))
    network = MODEL.network(CPU).to(NAME)
    PerExampleGradients(network, EXECUTION.batch_size).capture(LOSS, x0, DRAWS.draw("query", ids, PROCESS.T)).mean()


def computed(node: Node) -> None:
    get = InMemory()
    get._artifacts[MODEL.fingerprint] = CPU(MODEL)
    get(node)


def scored(estimator: Estimator, images: int) -> None:
    data = Blobs(n=images)
    computed(estimator.scores(MODEL, data, QUERIES))


KFAC_DRAWS = KFAC(draws=DRAWS, execution=EXECUTION)


def factors(images: int) -> None:
    computed(KFAC_DRAWS.basis(MODEL, Blobs(n=images)).factors)  # pyright: ignore[reportAttributeAccessIssue]


def moments(images: int) -> None:
    computed(EKFAC(draws=DRAWS, execution=EXECUTION).basis(MODEL, Blobs(n=images)))


def measured(images: int) -> None:
    computed(Measured(model=MODEL, images=Blobs(n=images), measure=LOSS, draws=DRAWS, execution=EXECUTION))


SCORES: dict[str, Estimator] = {
    "K-FAC": KFACInfluence(measurement=LOSS, curvature=KFAC_DRAWS, damping=1e-4, draws=DRAWS, execution=EXECUTION),
    "TRAK": TRAK(query_feature=LOSS, train_feature=LOSS, damping=1e-3, projection=SJLT(48), draws=DRAWS, execution=EXECUTION),
    "D-TRAK": TRAK(
        query_feature=SquareNorm(PROCESS), train_feature=SquareNorm(PROCESS), damping=1e-3, projection=SJLT(48), draws=DRAWS,
        execution=EXECUTION,
    ),
    "TracIn": TracIn(measurement=LOSS, checkpoints=[8], draws=DRAWS, execution=EXECUTION),
    "ReTrac": ReTrac(measurement=LOSS, checkpoints=[8], draws=DRAWS, execution=EXECUTION),
}  # fmt: skip


def counts() -> dict[str, Count]:
    """The counts of all kinds of work; a pass has ``BATCH`` images at ``DRAWS``."""
    found = {
        "training": counted("step", training, FEW, MANY),
        "retraining alone, 2 models": counted("step", functools.partial(retraining, Alone()), FEW, MANY),
        "retraining together, 2 models": counted("step", functools.partial(retraining, Together()), FEW, MANY),
    }
    found["recursion of LiSSA"] = counted("step", recursion, 16, 32)
    passes = {"gradients": gradients, "K-FAC factors": factors, "EK-FAC eigenvalues": moments, "measuring": measured}
    passes |= {f"scores of {name}": functools.partial(scored, estimator) for name, estimator in SCORES.items()}
    for name, run in passes.items():
        found[name] = counted("pass", lambda number, run=run: run(BATCH * number), 2, 4)
    return found


def main() -> None:
    AcceleratorRegistry.register(NAME, Accelerator)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=NAME)
    # As a CUDA GPU has it: float64, and copies from pinned memory for which the host does not wait.
    transfers.ASYNCHRONOUS.add(NAME)
    with registered(float64=True):
        for name, count in counts().items():
            print(f"| {name} | {count.each:g} per {count.unit} |")
            if "--lines" in sys.argv:
                for (kind, line), number in count.lines.most_common():
                    print(f"    {number:5} {kind:10} {line}")


if __name__ == "__main__":
    main()
