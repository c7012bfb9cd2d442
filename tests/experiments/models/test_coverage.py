"""What a report says about the parameters that scores are of."""

from attribution.curvature import KFAC
from attribution.estimators import TracIn
from attribution.estimators.embedding import Random
from attribution.estimators.influence import KFACInfluence
from attribution.images.draws import Even
from attribution.training.selected import Matching
from experiments.models.coverage import coverage
from tests.worlds import OBJECTIVE, trained

MODEL = trained()
TRACIN = TracIn(measurement=OBJECTIVE, checkpoints=[6], draws=Even(2))
INFLUENCE = KFACInfluence(measurement=OBJECTIVE, curvature=KFAC(draws=Even(2)), damping=1.0, draws=Even(2))


def test_the_share_of_the_parameters_is_said():
    """Claim: numbers are counts of the network's parameters; norms are named as what Kronecker factors leave out."""
    network = MODEL.model()
    total = sum(p.numel() for p in network.parameters())
    up = {name: p.numel() for name, p in network.named_parameters() if name.startswith("up_blocks")}
    norms = sum(size for name, size in up.items() if "norm" in name)
    part = Matching("^up_blocks").of(MODEL)
    share = f"{sum(up.values()) / total:.1%} of the parameters: {sum(up.values()):,} of {total:,}"
    assert coverage(MODEL, [TRACIN, Random()]) == f"Gradients are of all {total:,} parameters."
    assert coverage(part, [TRACIN]) == f"Gradients are of {share}."
    left_out = f"Kronecker factors leave out {norms / sum(up.values()):.1%} of these (GroupNorm)"
    assert coverage(part, [Random(), INFLUENCE]) == f"Gradients are of {share}; {left_out}."
    assert coverage(MODEL, [Random()]) is None
