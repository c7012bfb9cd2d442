"""A bundle: measurements of retrained models, and scores, in a folder that others can cite and judge their scores by.

card.json                     what it is of, how it was made, which array belongs to which estimator
subsets.safetensors           masks [M, N], train_ids [N]
KIND.measurements.safetensors measurements [K, M, Q], query_ids [Q], and `repeated [M', Q]`: the first subsets, trained once more
KIND.scores.safetensors       the scores [Q, N] of each estimator, by its label
train.csv, KIND.csv           ids, names and labels
rows.jsonl                    the LDS of the run that wrote the bundle
SHA256SUMS                    the checksums of all of these
README.md                     for people; its author may change it
"""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.benchmarks.lds_report import LDSInputs, Measurements
from experiments.benchmarks.variants import Variant
from experiments.datasets.errors import DataError
from experiments.judging.readme import readme
from experiments.judging.truth import swapped, without_pixels
from experiments.report.report import write_rows
from experiments.report.row import Effort, Row, Subject, plain
from experiments.report.score_files import write_images

FORMAT = 1
CARD, SUMS, README, SUBSETS = "card.json", "SHA256SUMS", "README.md", "subsets.safetensors"


@dataclass(frozen=True, eq=False)
class Bundle:
    """What a bundle holds: its card, the training images, and what the LDS of each kind of queries is computed from."""

    card: Mapping[str, Any]
    train: Images
    inputs: list[LDSInputs]


def write_bundle(
    folder: Path, inputs: Sequence[LDSInputs], train: Images, rows: Sequence[Row], card: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Write a bundle to ``folder``, which does not exist yet, and return its card. It appears when it is complete.

    ``card`` has the facts of the run: data, seed, resamples, retraining, measurement, estimators, versions, command.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    removed = inputs[0].measurements.removed
    _save({"masks": removed == 0, "train_ids": np.asarray(train.index, np.int64)}, part / SUBSETS)
    write_images(part / "train.csv", train)
    write_rows(part, rows)
    kinds = {one.kind: _write_kind(part, one) for one in inputs}
    fingerprint = hashlib.sha256("".join(_sums(part)).encode()).hexdigest()
    sizes = {"N": removed.shape[1], "M": removed.shape[0], "removed_weight": float(removed.max())}
    whole = plain({"format": FORMAT, "fingerprint": fingerprint, **card, **sizes, "kinds": kinds})
    (part / CARD).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (part / SUMS).write_text("".join(_sums(part)), encoding="utf-8")
    (part / README).write_text(readme(whole), encoding="utf-8")
    part.replace(folder)
    return whole


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle. Raises DataError: it is no bundle, of a later format, incomplete, or a file is not what was written."""
    if not (folder / CARD).is_file() or not (folder / SUMS).is_file():
        raise _error(folder, f"is no bundle: it lacks {CARD} or {SUMS}; name a folder that task=export wrote")
    _check(folder)
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if card.get("format") != FORMAT:
        raise _error(folder, f"has the format {card.get('format')}, and this version reads {FORMAT}: use the version that wrote it")
    subsets = load_file(folder / SUBSETS)
    train = _images(folder / "train.csv", subsets["train_ids"])
    removed = card["removed_weight"] * ~subsets["masks"]
    return Bundle(card, train, [_read_kind(folder, kind, known, train, removed) for kind, known in card["kinds"].items()])


def _write_kind(folder: Path, inputs: LDSInputs) -> dict[str, Any]:
    """Write the files of one kind of queries, and return what the card says of them."""
    measurements, arrays = inputs.measurements, {}
    K, Q, _ = measurements.measured.shape
    truth = {"measurements": swapped(measurements.measured), "query_ids": np.asarray(inputs.queries.index, np.int64)}
    if repeats := len(measurements.replicates) > K:
        truth["repeated"] = swapped(measurements.replicates[-1:])[0]
    _save(truth, folder / f"{inputs.kind}.measurements.safetensors")
    write_images(folder / f"{inputs.kind}.csv", inputs.queries)
    described = {
        "scores": [_described(variant, variant.label, arrays) for variant in inputs.variants],
        "again": {
            label: [_described(variant, f"{label}, training {n}", arrays) for n, variant in enumerate(further, 1)]
            for label, further in inputs.again.items()
        },
        "sweeps": [_described(variant, f"{variant.label}, all values", arrays) for variant in inputs.swept],
    }
    _save(arrays, folder / f"{inputs.kind}.scores.safetensors")
    return {"Q": Q, "K": K, "repeats": truth["repeated"].shape[0] if repeats else 0, **described}


def _described(variant: Variant, array: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    scores = variant.scores
    arrays[array] = np.ascontiguousarray(scores.values)
    if scores.cross is not None:
        arrays[f"{array}, groups of draws"] = np.ascontiguousarray(scores.cross)
    axes = {name: list(values) for name, values in scores.axes.items()}
    return {"array": array, "subject": asdict(variant.subject), "axes": axes}


def _read_kind(folder: Path, kind: str, known: Mapping[str, Any], train: Images, removed: np.ndarray) -> LDSInputs:
    truth, arrays = load_file(folder / f"{kind}.measurements.safetensors"), load_file(folder / f"{kind}.scores.safetensors")
    queries = _images(folder / f"{kind}.csv", truth["query_ids"])
    measured = swapped(truth["measurements"])
    replicates = measured
    if "repeated" in truth:
        replicates = np.concatenate([measured[:, :, : len(truth["repeated"])], swapped(truth["repeated"][None])])

    def variants(described: Sequence[Mapping[str, Any]]) -> Iterator[Variant]:
        for one in described:
            subject, array = one["subject"], one["array"]
            effort = None if subject["effort"] is None else Effort(**subject["effort"])
            cross = arrays.get(f"{array}, groups of draws")
            scores = Scores(arrays[array], queries.index, train.index, one["axes"], None, cross)
            yield Variant(Subject(**{**subject, "effort": effort}), scores)

    measurements = Measurements(measured, replicates, removed)
    again = {label: list(variants(further)) for label, further in known["again"].items()}
    return LDSInputs(kind, queries, list(variants(known["scores"])), list(variants(known["sweeps"])), measurements, again)


def _images(path: Path, index: np.ndarray) -> Images:
    """The images that ``write_images`` lists, without their pixels."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    names = np.array([line["name"] for line in lines], dtype=np.str_)
    labels = np.array([int(line["label"]) for line in lines], dtype=np.int64)
    return without_pixels(index, labels, names)


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    save_file(arrays, path)
    path.chmod(0o644)  # safetensors lets nobody else read


def _sums(folder: Path) -> list[str]:
    """A line with the checksum of each file, as ``sha256sum`` writes and reads them."""
    paths = sorted(path for path in folder.iterdir() if path.name not in (SUMS, README))
    return [f"{_sha256(path)}  {path.name}\n" for path in paths]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path) -> None:
    listed = set()
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        listed.add(name)
        if Path(name).name != name or not name:
            raise _error(folder, f"{SUMS} has a line that is no checksum of a file in the folder: copy the bundle again")
        if not (folder / name).is_file():
            raise _error(folder, f"lacks {name}: copy the bundle again")
        if _sha256(folder / name) != expected:
            raise _error(folder, f"{name} is not what was written (its SHA-256 differs): copy the bundle again")
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".csv", ".safetensors") and path.name not in listed:
            raise _error(folder, f"{SUMS} has no checksum of {path.name}: copy the bundle again")


def _error(folder: Path, message: str) -> DataError:
    return DataError(f"task.bundle={folder}: {message}")
