"""``task=report``: a page that compares the numbers of the papers' experiments with the published ones."""

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from experiments.disk import explained
from experiments.report.report import natural, read_rows, write_file
from experiments.report.reproduction import SCALES, Reproduced, page
from experiments.report.row import Row
from experiments.tasks.choices import config_file, config_folders
from experiments.tasks.settings import SettingError

NOTES = "notes.yaml"


def report(config: DictConfig, rows: str, output: str) -> None:
    """Write the page to the file ``output``.

    Args:
        rows: A folder; every ``.jsonl`` file in it and in its subfolders is read, and rows without an experiment are left out. Of
            equal rows the newest file's counts. Its file ``notes.yaml`` may have a note for each experiment, by name.
        output: The Markdown file.

    Raises:
        SettingError: If there is no folder ``rows``, or a note is for no experiment.
        ValueError: If a line of a file is not a row.
    """
    folder = Path(rows)
    if not folder.is_dir():
        raise SettingError(f"task.rows={rows}: no such folder; give the folder of finished runs, such as outputs or multirun")
    titles, found, notes = experiments(), rows_of(folder), notes_of(folder)
    if unknown := sorted(notes.keys() - titles.keys()):
        raise SettingError(f"{folder / NOTES}: {', '.join(unknown)}: no such experiment")
    files = {name: files_of(name) for name in titles}
    text = page(
        [
            Reproduced(name, title, found.get(name, {}), notes.get(name), smallest(files[name]), swept(files[name]))
            for name, title in titles.items()
        ]
    )
    path = Path(output)
    with explained(path.parent, "task.output", "nothing else is lost"):
        write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"{sum(map(bool, found.values()))} of {len(titles)} experiments have rows: {path}")


def experiments() -> dict[str, str]:
    """Return the papers' experiments by name with their titles: the first comment of their files."""
    found = {}
    for folder in (folder / "experiment" for folder in config_folders()):
        for path in sorted(folder.glob("*/*.yaml"), key=natural):
            lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            titles = [line for line in lines if not line.startswith("@package")]
            found[str(path.relative_to(folder).with_suffix(""))] = titles[0] if titles else ""
    return found


def smallest(text: str) -> str:
    """Return the smallest scale of an experiment with the files ``text``: that of the paper, unless they choose by scale."""
    return SCALES[0] if "${scale}" in text else SCALES[-1]


def swept(text: str) -> list[str]:
    """Return the settings that an experiment with the files ``text`` sweeps."""
    found = re.search(r"^hydra:\n  sweeper:\n    params:\n((?:      \S.*\n)+)", text, re.MULTILINE)
    return [line.partition(":")[0].strip() for line in found[1].splitlines()] if found else []


def files_of(experiment: str) -> str:
    """Return the file of an experiment, followed by its sizes at all scales and by the files that it extends."""
    path = config_file(f"experiment/{experiment}.yaml")
    text = path.read_text(encoding="utf-8") if path else ""
    scales = re.findall(r"^ *- optional /scale/([\w/]+)@_global_", text, re.MULTILINE)
    sizes = [file for name in scales for folder in config_folders() for file in sorted((folder / "scale" / name).glob("*.yaml"))]
    extended = re.findall(r"^ *- /experiment/([\w/]+)", text, re.MULTILINE)
    return "".join([text, *(file.read_text(encoding="utf-8") for file in sizes), *map(files_of, extended)])


def rows_of(folder: Path) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of all files in ``folder`` by experiment and scale, those of the newest files first."""
    found: dict[str, dict[str, list[Row]]] = {}
    for path in sorted(folder.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True):
        for row in read_rows(path):
            if row.experiment:
                found.setdefault(row.experiment, {}).setdefault(row.scale or "paper", []).append(row)
    return found


def notes_of(folder: Path) -> dict[str, str]:
    """Return the notes by the names of their experiments."""
    path = folder / NOTES
    return {str(name): str(note) for name, note in OmegaConf.load(path).items()} if path.exists() else {}
