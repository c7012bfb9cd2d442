"""Saves of a long computation. Only files that are still what was saved are resumed from or published.

A save is a manifest ``progress/<step>.json`` with the size and SHA-256 of files of the workspace. It gets its name after all of
them have been flushed to disk, so a crash during a save leaves the saves before it, of which the latest is kept. The files of
``progress/`` serve to resume and are deleted when the result is published; other files are part of the result.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from attribution.nodes.files import Digest, read_json, sync_folder, write_json

FOLDER = "progress"
_FINISHED = "finished"
KEPT = 2
"""Saves that are kept: the last one and the one before it."""


@dataclass(frozen=True)
class Intact:
    """The saves whose files are all unchanged."""

    steps: list[int]
    """Steps to resume from, ascending."""
    finished: bool
    """Whether the result is complete."""
    problem: str
    """A file that is not what was saved, and what is wrong with it; empty if there is none."""

    @property
    def last(self) -> int:
        return max(self.steps, default=0)

    def warning(self, step: int) -> str:
        """One line that says what is wrong and from which ``step`` the computation goes on."""
        return f"{self.problem}: {f'continuing from step {step}' if step else 'starting again from the beginning'}"


@dataclass(frozen=True)
class _Save:
    path: Path
    files: dict[str, Digest]

    @property
    def finished(self) -> bool:
        return self.path.stem == _FINISHED

    @property
    def step(self) -> int:
        return int(self.path.stem)


class Saves:
    """The saves in ``folder``, the workspace of a node. ``owner``, its fingerprint, tells them from those of another node.

    A file does not change once a save lists it: give the files of each step names of their own.
    """

    def __init__(self, folder: Path, owner: str):
        self.folder, self.owner = folder, owner
        self._listed: dict[str, Digest] = {}

    def path(self, name: str) -> Path:
        """The path of a file that only serves to resume."""
        place = self.folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        return place / name

    def save(self, step: int, files: Iterable[Path]) -> None:
        """Make a save of ``step``, from which the computation can be resumed with ``files``, and keep the save before it."""
        self._write(f"{step:09d}", files)
        saves = [save for save in self._readable()[0] if not save.finished]
        self._sweep(sorted(saves, key=lambda save: save.step)[-KEPT:])

    def finish(self, files: Iterable[Path]) -> None:
        """Declare ``files`` the complete result. The saves stay until ``discard``, or until the result is published."""
        self._write(_FINISHED, files)

    def discard(self) -> None:
        """Delete all saves, and everything that only they list, except the complete result."""
        self._sweep([save for save in self._readable()[0] if save.finished])

    @property
    def finished(self) -> bool:
        """Whether the result has been declared complete."""
        return any(save.finished for save in self._readable()[0])

    def intact(self, *results: Path) -> Intact:
        """Read all files that saves list, and find the saves that can be used. ``results`` are files of a finished computation."""
        saves, problems = self._readable()
        digests: dict[str, str] = {}
        intact = [save for save in saves if not (problem := self._problem(save, digests)) or problems.append(problem)]
        steps = sorted(save.step for save in intact if not save.finished)
        finished = any(save.finished for save in intact)
        problems += self._strays(saves, results, steps[-1] if steps else -1)
        return Intact(steps, finished, "" if finished or not problems else problems[0])

    def resume(self, step: int) -> None:
        """Go on from an intact save, or from the beginning (step 0): delete everything that was saved after it."""
        saves = [save for save in self._readable()[0] if not save.finished and save.step <= step]
        self._listed = next((dict(save.files) for save in saves if save.step == step), {})
        self._sweep(saves)

    def verify(self, files: Iterable[Path]) -> None:
        """Check files against the saves that list them.

        Raises:
            OSError: a file is not what was saved.
        """
        for path in files:
            digest = self._listed.get(self._name(path))
            if digest is not None and (problem := _difference(path, digest)):
                raise OSError(f"{path} {problem} since it was saved: run again to continue from what is intact")

    def published(self) -> dict[str, Digest]:
        """The files of the latest save that are part of the result, by name; empty if there is no save."""
        saves = self._readable()[0]
        latest = max(saves, key=lambda save: (save.finished, save.path.stem), default=None)
        return {name: digest for name, digest in latest.files.items() if not in_progress(name)} if latest else {}

    def _write(self, name: str, files: Iterable[Path]) -> None:
        digests = {}
        for path in files:
            key = self._name(path)
            digests[key] = self._listed.get(key) or Digest.of(path, sync=True)
        for folder in {(self.folder / key).parent for key in digests}:
            sync_folder(folder)
        content = {"owner": self.owner, "save": name, "files": {key: asdict(digest) for key, digest in digests.items()}}
        write_json(self.path(f"{name}.json"), content | {"sha256": _seal(content)})
        self._listed |= digests

    def _sweep(self, kept: Sequence[_Save]) -> None:
        """Delete all saves except ``kept``, the files that only they list, and files of ``progress/`` without a save."""
        remaining = {name for save in kept for name in save.files} | {self._name(save.path) for save in kept}
        others = [save for save in self._readable()[0] if save.path not in {save.path for save in kept}]
        # Manifests go first: a save never lists files that were deleted.
        unwanted = [save.path for save in others] + [self.folder / name for save in others for name in save.files]
        for path in [*unwanted, *self._entries()]:
            if self._name(path) not in remaining:
                _remove(path)

    def _readable(self) -> tuple[list[_Save], list[str]]:
        """The saves with a readable manifest of this owner, and what is wrong with the others."""
        saves, problems = [], []
        for path in self._files():
            if path.suffix == ".json":
                try:
                    saves.append(_Save(path, self._parse(path)))
                except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                    problems.append(f"{path} {error}")
        return saves, problems

    def _parse(self, path: Path) -> dict[str, Digest]:
        content = read_json(path)
        if content.pop("sha256") != _seal(content):
            raise ValueError("has changed since it was saved")
        if content["owner"] != self.owner:
            raise ValueError("belongs to another computation")
        if content["save"] != path.stem:
            raise ValueError(f"is the save {content['save']}")
        return {name: Digest(**digest) for name, digest in content["files"].items()}

    def _problem(self, save: _Save, digests: dict[str, str]) -> str:
        """What is wrong with the files of a save; the empty string if they are intact. ``digests`` avoids reading a file twice."""
        for name, digest in save.files.items():
            known = f"{name} {digest}"
            if known not in digests:
                digests[known] = _difference(self.folder / name, digest)
            if digests[known]:
                return f"{self.folder / name} {digests[known]}"
        return ""

    def _strays(self, saves: Sequence[_Save], results: Sequence[Path], last: int) -> list[str]:
        """Results, and files of ``progress/`` from steps after ``last``, that no save lists: a crash during a save leaves them."""
        listed = {name for save in saves for name in save.files}
        later = [path for path in self._files() if path.suffix != ".json" and _step_in(path) > last]
        strays = [path for path in (*later, *results) if path.exists() and self._name(path) not in listed]
        return [f"{path} belongs to no complete save" for path in strays]

    def _files(self) -> list[Path]:
        return [path for path in self._entries() if path.is_file()]

    def _entries(self) -> list[Path]:
        place = self.folder / FOLDER
        return sorted(place.iterdir()) if place.is_dir() else []

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _seal(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _difference(path: Path, digest: Digest) -> str:
    """What distinguishes a file from its digest; the empty string if nothing does."""
    try:
        if path.stat().st_size != digest.bytes:
            return f"has {path.stat().st_size} bytes instead of {digest.bytes}"
        return "" if Digest.of(path) == digest else "has changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_progress(name: str) -> bool:
    """Return whether the file ``name`` of a workspace only serves to resume."""
    return name.startswith(f"{FOLDER}/")


def _step_in(path: Path) -> int:
    """The number at the end of a file's name, as in ``resume-000000200.ckpt``."""
    match = re.search(r"(\d+)$", path.stem)
    return int(match.group(1)) if match else 0
