"""Damage interrupted trainings and retrainings at random, resume them, and compare what is published, bit for bit.

    python -m tests.damage [number of damages] [seed]

prints how many resumed computations ended with the same result, with another result, or with an error. Each damage hits one file,
two files or all saves of an interrupted computation: a bit flips, the file is cut, deleted, filled with zeros or replaced by a
folder, two files are swapped, or files of another model take their place.
"""

import functools
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.measurements import Loss
from attribution.nodes import Node, saves
from attribution.retraining.modes import Together
from attribution.retraining.selection import Selection
from attribution.training.checkpoints import EverySteps
from attribution.training.module import DiffusionModule
from attribution.training.recipe import Hardware, Recipe
from experiments.models import retrained
from experiments.models.retrained import Retrained, in_blocks
from experiments.models.trained import TrainedModel
from experiments.store import store as store_module
from experiments.store.errors import StoreError
from experiments.store.store import Store
from tests.worlds import Blobs

RECIPE = Recipe(steps=10, batch_size=6, lr_schedule="cosine", warmup=0.2, clip=0.5, ema=0.9)


class Tiny(nn.Module):
    """Two convolutions and a timestep."""

    def __init__(self):
        super().__init__()
        self.first, self.time, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(1, 4), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x_t) + self.time(t[:, None].to(x_t.dtype) / 100)[:, :, None, None]))


class Killed(Exception):
    """The interruption of a computation."""


def training(seed: int) -> list[Node]:
    """One recorded training, saved every 3 of 10 steps."""
    return [
        TrainedModel(
            model=Tiny,
            objective=Loss(DDPM(NoiseSchedule(T=100, beta_end=0.1))),
            data=Blobs(n=18),
            optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
            recipe=RECIPE,
            checkpoints=EverySteps(2),
            seed=seed,
            flips=True,
            hardware=Hardware(accelerator="cpu", interval=3),
        )
    ]


def retraining(seed: int) -> list[Node]:
    """A block of three models on subsets, saved every 3 of 10 steps."""
    rows = [np.arange(0, 14), np.arange(4, 18), np.arange(0, 18, 2)]
    return list(
        in_blocks(
            [
                Retrained(
                    model=Tiny,
                    objective=Loss(DDPM(NoiseSchedule(T=100, beta_end=0.1))),
                    data=Blobs(n=18),
                    optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
                    recipe=RECIPE,
                    flips=True,
                    seed=seed + number,
                    selection=Selection(selected),
                    mode=Together(save_seconds=0),
                )
                for number, selected in enumerate(rows)
            ]
        )
    )


@contextmanager
def killed_at_step(step: int) -> Iterator[None]:
    """Kill trainings and retrainings before ``step``."""
    train = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch, batch_idx):
        if self.global_step == step:
            raise Killed
        return train(self, batch, batch_idx)

    def steps(left: Sequence[int], title: str) -> Iterator[int]:
        for each in left:
            if each == step:
                raise Killed
            yield each

    with patch.object(DiffusionModule, "training_step", training_step), patch.object(retrained, "track", steps):
        yield


@contextmanager
def killed_after(module: object, name: str, calls: int) -> Iterator[None]:
    """Kill the computation instead of call number ``calls`` (from 0) of a function."""
    original, made = getattr(module, name), [0]

    def counted(*args, **kwargs):
        made[0] += 1
        if made[0] > calls:
            raise Killed
        return original(*args, **kwargs)

    with patch.object(module, name, counted):
        yield


KILLS: dict[str, Callable] = {
    "before the first save": lambda: killed_at_step(2),
    "after the first save": lambda: killed_at_step(4),
    "after the second save": lambda: killed_at_step(8),
    "after the last save": lambda: killed_after(saves.Saves, "finish", 0),
    "during the first save": lambda: killed_after(saves, "write_json", 0),
    "during the second save": lambda: killed_after(saves, "write_json", 1),
    "between the saves of a block": lambda: killed_after(saves, "write_json", 4),
    "before publishing": lambda: killed_after(store_module, "publish", 0),
    "while publishing": lambda: killed_after(store_module, "publish", 1),
}


@dataclass(frozen=True)
class Case:
    """An interrupted computation in the store ``root``, the one of ``other`` models, and the right files of each node."""

    kind: str
    nodes: list[Node]
    root: Path
    other: Path
    right: dict[str, bytes]


def published(root: Path, nodes: Sequence[Node]) -> dict[str, bytes]:
    """The files of the artifacts, by fingerprint and name. node.json and manifest.json hold times."""
    files = {}
    for node in nodes:
        folder = Store(root).folder(node)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.name not in ("node.json", "manifest.json"):
                files[f"{node.fingerprint}/{path.relative_to(folder)}"] = path.read_bytes()
    return files


def cases(folder: Path) -> list[Case]:
    """Trainings and retrainings, killed at every kind of moment."""
    made = []
    for build in (training, retraining):
        nodes, whole = build(3), folder / build.__name__ / "whole"
        Store(whole).many(nodes)
        for number, (moment, kill) in enumerate(KILLS.items()):
            places = [folder / build.__name__ / f"{number}-{which}" for which in ("this", "other")]
            for place, interrupted in zip(places, (nodes, build(30)), strict=True):
                try:
                    with kill():
                        Store(place).many(interrupted)
                except Killed:
                    pass
            made.append(Case(f"{build.__name__} killed {moment}", nodes, *places, published(whole, nodes)))
    return [case for case in made if parts(case.root)]


def parts(root: Path) -> list[Path]:
    """The files of all unfinished nodes."""
    return sorted(path for path in root.glob("*/*.part/**/*") if path.is_file())


def damage(root: Path, other: Path, chance: random.Random) -> str:
    """Damage the unfinished nodes of a store, and return how."""
    files = parts(root)
    path = chance.choice(files)
    mine, others = (sorted(place.glob("*/*.part/progress")) for place in (root, other))
    whole = ["other model's saves"] if mine and others else []
    how = chance.choice(["bit", "cut", "deletion", "folder", "zeros", "swap", "other model's file", "manifest", *whole])
    if how == "manifest":
        path = chance.choice([each for each in files if each.suffix == ".json"])
        _change(path, chance.choice(["bit", "cut", "deletion", "zeros"]), chance)
    elif how == "swap":
        _swap(path, chance.choice([each for each in files if each.suffix == path.suffix]))
    elif how == "other model's file":
        shutil.copy(chance.choice([each for each in parts(other) if each.suffix == path.suffix]), path)
    elif how == "other model's saves":
        target = chance.choice(mine)
        shutil.rmtree(target)
        shutil.copytree(chance.choice(others), target)
    else:
        _change(path, how, chance)
    return how


def _change(path: Path, how: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how in ("deletion", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    if how == "bit" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[chance.randrange(max(1, len(data))) :]
    elif how == "zeros" and data:
        start = chance.randrange(len(data))
        data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def _swap(a: Path, b: Path) -> None:
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])


def outcome(case: Case, root: Path) -> str:
    """Resume the computation in ``root``; what came out of it."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("attribution")
    logger.addHandler(handler)
    try:
        Store(root).many(case.nodes)
    except StoreError as error:
        return f"error in {len(str(error).splitlines())} line(s)"
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}: {error}"
    finally:
        logger.removeHandler(handler)
    said = {0: "no line", 1: "one line"}.get(len(lines), "SEVERAL LINES")
    return f"{'same' if published(root, case.nodes) == case.right else 'DIFFERENT'}, {said}"


def run(number: int, seed: int = 0) -> Counter[tuple[str, str, str]]:
    """Count (computation and moment of its interruption, damage, outcome) over ``number`` random damages."""
    chance, counts = random.Random(seed), Counter()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        everything = cases(Path(folder))
        for trial in range(number):
            case, root = everything[trial % len(everything)], Path(folder) / "damaged"
            shutil.copytree(case.root, root)
            how = damage(root, case.other, chance)
            counts[case.kind, how, outcome(case, root)] += 1
            shutil.rmtree(root)
    return counts


def main() -> None:
    number, seed = [int(text) for text in sys.argv[1:]] + [300, 0][len(sys.argv) - 1 :]
    counts = run(number, seed)
    for index, title in ((0, "interrupted"), (1, "damage")):
        print(f"\nby {title}:")
        for name in sorted({key[index] for key in counts}):
            print(f"  {name}: {totals({key: count for key, count in counts.items() if key[index] == name})}")
    print(f"\n{number} damages: {totals(counts)}")


def totals(counts: Mapping[tuple[str, str, str], int]) -> dict[str, int]:
    """Counts by outcome."""
    added: Counter[str] = Counter()
    for (_, _, result), count in counts.items():
        added[result] += count
    return dict(added)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
