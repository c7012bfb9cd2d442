"""The page of a run, ``index.html``: images to explore, tables, issues, figures, and what made them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from experiments.report.attributions import Attributions
from experiments.report.page import thumbnails
from experiments.report.page.checks import checks
from experiments.report.page.explorer import Ranked, Shown, explorer, ranked
from experiments.report.page.issues import GENERAL_SHARE, GENERAL_TOP, general
from experiments.report.page.meanings import figure_caption
from experiments.report.page.render import render
from experiments.report.page.tables import tables
from experiments.report.report import FILE, Report
from experiments.report.row import Row

NAME = "index.html"
FIGURE_BYTES = 8_000_000
"""Bytes of figures inside a page. Further figures are shown from their files beside it."""


def write_page(report: Report, config: str, provenance: Mapping[str, Any]) -> Path | None:
    """Write the page of a run that has figures, and the queries as images; return its path, or None without figures.

    ``config`` is the resolved configuration as YAML, ``provenance`` has ``versions`` by name and ``git``.
    """
    if not report.figures:
        return None
    sets = [ranked(attributions, len(report.attributions)) for attributions in report.attributions]
    shown = Shown()
    values = _explored(sets, shown) if any(of_kind.rankings for of_kind in sets) else {"explorer": None}
    for attributions in report.attributions:
        _save_images(report.folder, attributions, shown)
    found, agreements = checks(sets, shown) if sets else ([], [])
    has_scores = values["explorer"] is not None
    text = render(
        "run.html.j2",
        title=title_of(report.rows, report.data, "attribution" if report.attributions else "figures"),
        command=report.command,
        notes=report.notes,
        warnings=report.warnings,
        **tables(report.rows),
        checks=found,
        agreements=agreements,
        general_note=f"A dot: generally influential, among the top {GENERAL_TOP} of more than {GENERAL_SHARE:.0%} of the queries, "
        "and of more than by chance.",
        drawn=figures(_last(report.figures, "proponents" if has_scores else None), report.folder, report.in_formats),
        files=[(path.name, quote(path.name)) for path in (report.folder / FILE, *report.tables)],
        versions=_versions(provenance),
        config=config,
        **values,
    )
    return save_page(report.folder, text)


def save_page(folder: Path, text: str) -> Path:
    """Write ``index.html`` to ``folder`` at once, and return its path."""
    path = folder / NAME
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    part.replace(path)
    return path


def title_of(rows: Sequence[Row], data: str, otherwise: str = "figures") -> str:
    """The benchmarks and the data of rows, such as "lds on digits"; tables that a benchmark has beside its own are left out.

    Without rows, ``otherwise`` stands in place of the benchmarks.
    """
    names = dict.fromkeys(row.benchmark for row in rows)
    own = [name for name in names if not any(name != other and name.startswith(other) for other in names)]
    return f"{', '.join(own) or otherwise} on {data}"


def figures(paths: Iterable[Path], folder: Path, formats: Any = None) -> list[dict[str, Any]]:
    """The figures ``paths``, PNG files in ``folder``, with their captions, sizes and files."""
    drawn, room = [], FIGURE_BYTES
    for path in paths:
        content = path.read_bytes()
        room -= len(content)
        with Image.open(path) as picture:
            (width, height), dpi = picture.size, float(picture.info.get("dpi", (96, 96))[0])
        files = formats(path) if formats else {"png": path}
        caption = figure_caption(path.stem)
        drawn.append(
            {
                "source": thumbnails.data_uri(content) if room >= 0 else quote(str(path.relative_to(folder))),
                "width": round(width * 96 / dpi),
                "height": round(height * 96 / dpi),
                "caption": caption,
                "alt": f"Figure: {caption}",
                "files": {suffix.upper(): quote(str(file.relative_to(folder))) for suffix, file in files.items()},
            }
        )
    return drawn


def _explored(sets: Sequence[Ranked], shown: Shown) -> dict[str, Any]:
    data = explorer(sets, shown)
    for kind, of_kind in zip(data["kinds"], (one for one in sets if one.rankings), strict=True):
        train, found = of_kind.attributions.train, {one.label: one.positions for one in general(of_kind)}
        places = {position: shown.place(train, position) for position in shown.of(train)}
        for estimator in kind["estimators"]:
            estimator["general"] = [places[p] for p in found.get(estimator["label"], ()) if p in places]
    return {"explorer": data}


def _save_images(folder: Path, attributions: Attributions, shown: Shown) -> None:
    """Save all queries, and in full size the training images on the page with thumbnails that are smaller."""
    queries, train = attributions.queries, attributions.train
    thumbnails.save(folder / thumbnails.folder_of(attributions.kind), queries, range(len(queries)))
    if thumbnails.is_reduced(train):
        thumbnails.save(folder / thumbnails.TRAIN, train, shown.of(train))


def _last(paths: Sequence[Path], prefix: str | None) -> list[Path]:
    """The paths with those last that begin with ``prefix``: the page shows their content in another way."""
    return sorted(paths, key=lambda path: prefix is not None and path.name.startswith(prefix))


def _versions(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = [(name, version) for name, version in provenance["versions"].items() if version]
    git = provenance.get("git")
    if git and git["revision"]:
        versions.append(("git commit", git["revision"] + (", with changes" if git["dirty"] else "")))
    return versions
