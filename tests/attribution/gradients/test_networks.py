"""What the README says about networks is what a run gives."""

import pytest

from tests.attribution.gradients.networks import HEADER, NETWORKS, row
from tests.experiments.documents import README


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_of_networks_is_what_runs_give(name):
    """Claim: gradients of all parameters agree with autograd, and K-FAC covers this share of them."""
    if "LoRA" in name:
        pytest.importorskip("peft")
    assert row(name) in README.read_text().splitlines()


def test_the_table_has_all_networks():
    """Claim: the table has one row for each network, in this order."""
    lines = README.read_text().splitlines()
    start = lines.index(HEADER[0])
    assert lines[start + 1] == HEADER[1]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[start + 2 :][: len(NETWORKS)]] == list(NETWORKS)
    assert not lines[start + 2 + len(NETWORKS)]
