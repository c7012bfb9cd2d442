"""The section on issues: one sentence for each check, whether it found something, and the images that it is about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from attribution.images import Images
from experiments.metrics.duplicates import SAME, Duplicates, digests, duplicates
from experiments.report.page import issues, thumbnails
from experiments.report.page.explorer import Ranked, Shown
from experiments.report.page.issues import AGREEMENT, GENERAL_SHARE, Agreement, General

SHOWN = 12
"""The largest number of images of one group, and of groups of one check."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail with a caption; ``href`` leads to the image among those to explore."""

    source: str
    alt: str
    caption: str
    href: str | None = None


@dataclass(frozen=True)
class Group:
    """Images side by side, with a title, and a note about those that are left out."""

    images: Sequence[Picture]
    title: str | None = None
    more: str | None = None


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    found: bool
    sentence: str
    groups: Sequence[Group] = ()
    images: str = "The images"


def checks(sets: Sequence[Ranked], shown: Shown) -> tuple[list[Check], list[dict[str, Any]]]:
    """All checks of the training images, the queries and the scores of a run, those that found something first.

    The second value has, for each kind of queries, the matrix of rank correlations as text.
    """
    train = sets[0].attributions.train
    hashes = list(digests(train))
    found, tables = _duplicates(train, duplicates(train, hashes), shown), []
    for of_kind in sets:
        found += [*_in_training(of_kind, hashes), *_not_finite(of_kind)]
        if of_kind.rankings:
            found.append(_general(of_kind, shown))
        if (agreement := issues.agreement(of_kind)) is not None:
            found.append(_agreement(of_kind.attributions.kind, agreement))
            tables.append(_agreement_table(of_kind.attributions.kind, agreement))
    return sorted(found, key=lambda check: not check.found), tables


def _agreement_table(kind: str, found: Agreement) -> dict[str, Any]:
    """The matrix of rank correlations; ``share``, from 0 to 1, says how dark a cell is."""
    lines = [(label, [_correlation(value) for value in row]) for label, row in zip(found.labels, found.correlation, strict=True)]
    queries = _counted(found.queries, "query", "queries")
    title = f"Agreement of estimators, {kind}: Spearman's correlation over training images, mean over {queries}"
    return {"title": title, "labels": found.labels, "lines": lines}


def _correlation(value: float) -> dict[str, Any]:
    if not math.isfinite(value):
        return {"text": "–", "share": 0, "low": False}
    text = f"{round(float(value), 2) + 0.0:.2f}"  # no negative zero
    return {"text": text, "share": round(max(0.0, float(value)), 2), "low": bool(value < AGREEMENT)}


def _duplicates(train: Images, found: Duplicates, shown: Shown) -> list[Check]:
    among = f"{len(train):,} training images"
    if found.equal:
        copies = sum(map(len, found.equal))
        sentence = f"{copies:,} of {among} have an exact copy ({_counted(len(found.equal), 'group', 'groups')}). "
        equal = Check(True, sentence + "Scores of copies share what one image would get.", _pictures(train, found.equal, shown))
    else:
        equal = Check(False, f"No two of {among} are equal.")
    measure = f"by at most {SAME:.0%} of the range of pixels (root mean square)"
    if found.near:
        least = "" if found.complete else "At least "
        sentence = f"{least}{_counted(len(found.near), 'pair', 'pairs')} among {among} differ {measure}."
        return [equal, Check(True, sentence, _pictures(train, found.near, shown))]
    return [equal, Check(False, f"No two different images among {among} differ {measure}.")]


def _pictures(train: Images, groups: Sequence[Sequence[int]], shown: Shown) -> list[Group]:
    made = []
    for group in groups[:SHOWN]:
        rows, left = list(group)[:SHOWN], len(group) - SHOWN
        captions = [f"#{train.index[row]}" for row in rows]
        made.append(Group(_thumbnails(train, rows, captions, shown), more=f"and {left:,} more" if left > 0 else None))
    if (left := len(groups) - SHOWN) > 0:
        made.append(Group((), more=f"and {left:,} more"))
    return made


def _in_training(of_kind: Ranked, hashes: Sequence[bytes]) -> list[Check]:
    attributions = of_kind.attributions
    if not (equal := issues.equal_to_training(attributions.queries, hashes)):
        return []
    queries, rows = attributions.queries, [row for row, _ in equal[:SHOWN]]
    captions = [f"query #{queries.index[row]} = image #{attributions.train.index[position]}" for row, position in equal[:SHOWN]]
    sentence = f"{len(equal):,} of {len(queries):,} {attributions.kind} queries are equal to a training image."
    return [Check(True, sentence, [Group(_thumbnails(queries, rows, captions))])]


def _not_finite(of_kind: Ranked) -> list[Check]:
    kind = of_kind.attributions.kind
    return [
        Check(True, f"Scores of {label} for {kind} queries are not finite: they are left out here.") for label in of_kind.not_finite
    ]


def _general(of_kind: Ranked, shown: Shown) -> Check:
    attributions, found = of_kind.attributions, issues.general(of_kind)
    if not found:
        return Check(False, f"No training image is among the top {issues.GENERAL_TOP} of many {attributions.kind} queries.")
    names = ", ".join(f"{one.label} ({len(one.positions)})" for one in found)
    sentence = (
        f"Generally influential images, among the top {found[0].top} of more than {GENERAL_SHARE:.0%} of {found[0].queries:,} "
        f"{attributions.kind} queries and more often than by chance: {names}. They say little about a single query."
    )
    groups = [_general_group(attributions.train, one, shown) for one in found]
    return Check(True, sentence, groups, "The images: id × number of queries")


def _general_group(train: Images, found: General, shown: Shown) -> Group:
    captions = [
        f"#{train.index[position]} × {count}" for position, count in zip(found.positions[:SHOWN], found.counts, strict=False)
    ]
    left = len(found.positions) - SHOWN
    more = f"and {left:,} more" if left > 0 else None
    return Group(_thumbnails(train, found.positions[:SHOWN], captions, shown), found.label, more)


def _agreement(kind: str, found: Agreement) -> Check:
    below = f"a mean rank correlation below {AGREEMENT}"
    sentences = _sentences(found)
    if not sentences:
        return Check(False, f"No two estimators have {below} for {kind} queries.")
    return Check(True, f"Estimators that disagree for {kind} queries, with {below}: {'; '.join(sentences)}.")


def _sentences(found: Agreement) -> list[str]:
    pairs = [f"{a} and {b} ({value:.2f})" for a, b, value in found.disagreeing]
    left = len(pairs) - SHOWN
    return [
        *(f"{label} with every other one" for label in found.alone),
        *pairs[:SHOWN],
        *([f"and {left} more pairs"] if left > 0 else []),
    ]


def _thumbnails(images: Images, rows: Sequence[int], captions: Sequence[str], shown: Shown | None = None) -> list[Picture]:
    """Thumbnails of ``rows`` with captions; images that are ``shown`` to explore are links there."""
    explored = set(shown.of(images)) if shown else set()
    pictures = []
    for row, uri, caption in zip(rows, thumbnails.thumbnails(images, rows), captions, strict=True):
        href = f"#{urlencode({'view': 'image', 'image': images.index[row]})}" if row in explored else None
        pictures.append(Picture(uri, f"{images.name(row)}, {caption}", caption, href))
    return pictures


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
