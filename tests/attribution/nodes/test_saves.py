"""Saves: what is resumed from is what was saved, and the save before the last is kept."""

import json
from pathlib import Path

import pytest

from attribution.nodes import files, saves
from attribution.nodes.files import Digest, read_json, write_json
from attribution.nodes.saves import Saves


def made(folder: Path, steps: int = 3, owner: str = "mine") -> Saves:
    """Saves of steps 1..``steps``: a state of each step, and a file that stays from each."""
    saved = Saves(folder, owner)
    for step in range(1, steps + 1):
        saved.path(f"state-{step}.bin").write_bytes(bytes([step] * 100))
        (folder / f"kept-{step}.bin").write_bytes(bytes([10 + step] * 100))
        kept = [folder / f"kept-{each}.bin" for each in range(1, step + 1)]
        saved.save(step, [*kept, saved.path(f"state-{step}.bin")])
    return saved


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_last_two_saves_are_kept_with_their_files(tmp_path):
    """Claim: the state of an earlier step goes, what all saves list stays."""
    made(tmp_path)
    states = {f"progress/{name}" for step in (2, 3) for name in (f"{step:09d}.json", f"state-{step}.bin")}
    assert names(tmp_path) == {"kept-1.bin", "kept-2.bin", "kept-3.bin", *states}
    found = Saves(tmp_path, "mine").intact()
    assert (found.steps, found.finished, found.problem) == ([2, 3], False, "")


@pytest.mark.parametrize(
    ("name", "steps"),
    [("progress/state-3.bin", [2]), ("progress/000000003.json", [2]), ("kept-3.bin", [2]), ("kept-2.bin", []), ("kept-1.bin", [])],
)
@pytest.mark.parametrize("how", ["flip", "cut", "delete", "folder"])
def test_a_save_with_a_damaged_file_is_not_resumed_from(tmp_path, name, steps, how):
    """Claim: whatever happens to a file, the saves that list it are not used, and the problem names a file."""
    made(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes(data[:-1] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])
    found = Saves(tmp_path, "mine").intact()
    assert found.steps == steps
    assert found.problem.startswith(str(tmp_path))
    assert ("continuing from step 2" in found.warning(found.last)) == (steps == [2])
    assert "\n" not in found.warning(found.last)


def test_every_byte_of_a_manifest_counts(tmp_path):
    """Claim: no flipped bit of a manifest leaves its save usable with other content."""
    made(tmp_path, steps=1)
    manifest = tmp_path / "progress" / "000000001.json"
    data = manifest.read_bytes()
    parsed = json.loads(data)
    for position in range(len(data)):
        for bit in range(8):
            manifest.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            if Saves(tmp_path, "mine").intact().steps:
                assert read_json(manifest) == parsed  # a blank became another blank


def test_saves_of_another_node_or_step_are_not_resumed_from(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", owner="other")
    assert Saves(tmp_path / "b", "mine").intact().steps == []
    assert "belongs to another computation" in Saves(tmp_path / "b", "mine").intact().problem
    progress = tmp_path / "a" / "progress"
    (progress / "000000002.json").replace(progress / "000000003.json")
    found = Saves(tmp_path / "a", "mine").intact()
    assert found.steps == []
    assert "is the save 000000002" in found.problem


def test_resuming_deletes_what_was_saved_later_and_continues_the_list(tmp_path):
    """Claim: from an earlier step, files of later steps are gone, and the next save lists what the resumed one does."""
    made(tmp_path)
    saved = Saves(tmp_path, "mine")
    saved.resume(2)
    assert names(tmp_path) == {"kept-1.bin", "kept-2.bin", "progress/000000002.json", "progress/state-2.bin"}
    saved.save(3, [tmp_path / "kept-1.bin", tmp_path / "kept-2.bin"])
    assert Saves(tmp_path, "mine").intact().steps == [2, 3]
    saved.resume(0)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("call", range(6))
def test_an_interrupted_save_leaves_the_one_before_it(tmp_path, monkeypatch, call):
    """Claim: wherever a save is cut short, the saves of before are intact, or the new one is."""
    made(tmp_path, steps=2)
    left = [call]

    def failing(function):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", failing(files.os.fsync))
        patch.setattr(files.os, "replace", failing(files.os.replace))
        patch.setattr(Path, "unlink", failing(Path.unlink))
        try:
            made_again = Saves(tmp_path, "mine")
            made_again.path("state-3.bin").write_bytes(b"3")
            made_again.save(3, [tmp_path / "kept-1.bin", made_again.path("state-3.bin")])
        except KeyboardInterrupt:
            pass
    assert Saves(tmp_path, "mine").intact().last in (2, 3)


def test_what_is_published_is_what_the_result_lists(tmp_path):
    """Claim: a finished result lists its files without those of progress; without saves there are none."""
    saved = made(tmp_path)
    assert not saved.finished
    assert saved.published().keys() == {"kept-1.bin", "kept-2.bin", "kept-3.bin"}
    saved.finish([tmp_path / "kept-1.bin"])
    assert saved.finished
    assert saved.published() == {"kept-1.bin": Digest.of(tmp_path / "kept-1.bin")}
    saved.discard()
    assert names(tmp_path) == {"kept-1.bin", "progress/finished.json"}
    assert Saves(tmp_path / "nothing", "mine").published() == {}
    (tmp_path / "kept-1.bin").write_bytes(b"")
    found = Saves(tmp_path, "mine").intact(tmp_path / "kept-1.bin")
    assert not found.finished
    assert "kept-1.bin has 0 bytes instead of 100" in found.problem


def test_files_are_checked_before_they_are_read_again(tmp_path):
    saved = made(tmp_path)
    saved.verify([tmp_path / "kept-1.bin"])
    (tmp_path / "kept-1.bin").write_bytes(bytes(100))
    with pytest.raises(OSError, match=r"kept-1\.bin has changed since it was saved: run again"):
        saved.verify([tmp_path / "kept-1.bin"])


def test_a_file_is_hashed_once_however_many_saves_list_it(tmp_path, monkeypatch):
    """Claim: the cost of a save is that of its new files."""
    hashed = []
    of = Digest.of.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def counted(cls, path, sync=False):
        hashed.append(path.name)
        return of(cls, path, sync)

    monkeypatch.setattr(saves.Digest, "of", classmethod(counted))
    made(tmp_path, steps=4)
    assert sorted(hashed) == sorted([f"{kind}-{step}.bin" for kind in ("kept", "state") for step in range(1, 5)])


def test_json_is_whole_or_as_before_and_not_too_deep(tmp_path):
    """Claim: values that are nested too deep for Python are a ValueError, however deep they are."""
    path = tmp_path / "value.json"
    write_json(path, {"a": [1]})
    assert read_json(path) == {"a": [1]}
    assert names(tmp_path) == {"value.json"}
    for depth in (250, 990, 5000, 200_000):
        path.write_text("[" * depth + "]" * depth)
        with pytest.raises(ValueError, match="nested too deep"):
            read_json(path)
