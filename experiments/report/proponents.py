"""The most influential training images of a few queries as lines of a table, with pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.images import Images
from experiments.metrics.ranking import both_ends
from experiments.report.attributions import Attributions
from experiments.report.colors import colors

QUERIES = 8
"""The largest number of queries."""
TOP = 5
"""The largest number of proponents, and of opponents, of a query."""
PROPONENT_COLUMNS = (
    "query", "query_id", "query_name", "estimator", "side", "rank", "training_image", "id", "name", "score",
)  # fmt: skip
"""The columns of the table. ``id`` and ``name`` are those of the training image."""
_SIDE = 64
"""The least height and width of a picture in pixels."""


@dataclass(frozen=True)
class Proponent:
    """A proponent or opponent (``side``) of a query, as rows of the queries and of the training images; ``rank`` begins at 1."""

    query: int
    estimator: str
    side: str
    rank: int
    image: int
    score: float


def influential(attributions: Attributions) -> Iterator[Proponent]:
    """The proponents (largest scores first) and opponents (smallest first) of the first queries, by estimator."""
    for query in range(min(QUERIES, len(attributions.queries))):
        for estimator, scores in attributions.scores.items():
            values = np.asarray(scores[query])
            for side, places in both_ends(values[None], min(TOP, len(values))).items():
                for rank, image in enumerate(places[0], 1):
                    yield Proponent(query, estimator, side, rank, int(image), float(values[image]))


def picture(images: Images, row: int) -> np.ndarray:
    """An image as uint8 ``[H, W]`` or ``[H, W, 3]``, enlarged if it is small."""
    pixels = (colors(images, [row])[0] * 255).round().astype(np.uint8)
    shown = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    factor = max(1, -(-_SIDE // max(shown.shape[:2])))
    return shown.repeat(factor, 0).repeat(factor, 1)


def proponent_lines(attributions: Attributions, image: Callable[[np.ndarray, str], Any]) -> list[list[Any]]:
    """The lines of the table with PROPONENT_COLUMNS. ``image`` makes the cell of a picture with a name; each is made once."""
    queries, train, lines = attributions.queries, attributions.train, list(influential(attributions))
    explained = {row: image(picture(queries, row), queries.name(row)) for row in {line.query for line in lines}}
    images = {row: image(picture(train, row), train.name(row)) for row in {line.image for line in lines}}
    return [
        [
            *(explained[line.query], int(queries.index[line.query]), queries.name(line.query)),
            *(line.estimator, line.side, line.rank),
            *(images[line.image], int(train.index[line.image]), train.name(line.image), line.score),
        ]
        for line in lines
    ]
