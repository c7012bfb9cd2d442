"""The README of a bundle."""

from collections.abc import Mapping
from typing import Any

_TEXT = """---
license: # for you to choose
---

# {data}: models retrained on subsets, and scores of training images

<!-- For you to write: who made this, how to cite it. README.md has no checksum, so change it freely. -->

{M} subsets of {N} training images; {kinds}. Measurements are costs of the queries (`{measurement}`): larger is worse.

| file | arrays |
|---|---|
| `subsets.safetensors` | `masks [M, N]`: true where a subset keeps a training image; `train_ids [N]` |
| `KIND.measurements.safetensors` | `measurements [K, M, Q]` under K training runs; `query_ids [Q]`; `repeated [M', Q]`: \
the first subsets, trained once more |
| `KIND.scores.safetensors` | scores `[Q, N]` by estimator; positive: training on the image lowers the query's cost |
| `train.csv`, `KIND.csv` | position, id, name and label of each column and row |
| `rows.jsonl` | the linear datamodeling scores (LDS) that the run reported |
| `card.json` | all settings: retraining, measurement, estimators, versions |
| `SHA256SUMS` | checksums: `sha256sum -c SHA256SUMS` |

Judge scores of your own, `[Q, N]`, beside these:

    python run.py task=judge task.bundle=THIS_FOLDER 'task.scores={{mine: scores.npy}}' task.queries={first}

Fingerprint: `{fingerprint}`

Made by: `{command}`
"""


def readme(card: Mapping[str, Any]) -> str:
    """Return the text of README.md for a bundle with this ``card``."""
    kinds = [f"{known['Q']} {kind} queries, K = {known['K']}" for kind, known in card["kinds"].items()]
    measurement = str(card["measurement"].get("_target_", "")).rpartition(".")[2]
    return _TEXT.format(**{**card, "kinds": "; ".join(kinds), "measurement": measurement, "first": next(iter(card["kinds"]))})
