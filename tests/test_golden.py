"""The numbers of every class of nodes in a tiny world: they must not change without a VERSION."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import world

LEDGER = Path(__file__).parent / "golden.json"
GOLDEN: dict[str, dict[str, Any]] = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
TOLERANCE = 1e-3
"""Relative difference of floats between machines, after a training."""
HELP = """
The numbers of {name} changed. Decide:
- they are meant to: raise VERSION in {name}, or in the class that it gets them from (a measure, a draw scheme, a parent node);
- they are not: undo the change.
Then run: python -m tests.test_golden
"""


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.slow
def test_numbers_change_only_with_a_version(name):
    """Claim: shapes and integers are equal, norms and projections of floats up to rounding."""
    golden, now = GOLDEN[name], world().get(name)
    assert now is not None, f"no {name} was computed: compute one in tests/golden.py, or run python -m tests.test_golden"
    assert now["version"] == golden["version"], f"VERSION of {name} was raised: run python -m tests.test_golden"
    assert close(now, golden), HELP.format(name=name) + f"{golden}\n{now}"


def close(now: dict[str, Any], golden: dict[str, Any]) -> bool:
    """Whether two summaries agree. The tolerance of a projection is relative to the norm of the array."""
    if (
        any(now[part] != golden[part] for part in ("shapes", "checksums"))
        or now["projections"].keys() != golden["projections"].keys()
    ):
        return False
    norms, projections = golden["norms"], golden["projections"]
    return now["norms"] == pytest.approx(norms, rel=TOLERANCE, abs=1e-12) and all(
        abs(now["projections"][key] - projections[key]) <= TOLERANCE * norms[key] + 1e-12 for key in projections
    )


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(summary)}" for name, summary in world().items())
    LEDGER.write_text("{\n" + ",\n".join(lines) + "\n}\n")
