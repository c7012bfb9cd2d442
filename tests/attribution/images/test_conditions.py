"""Draws that drop the condition."""

import pytest
import torch

from attribution.images.at_checkpoints import UniformAtCheckpoints
from attribution.images.conditions import with_dropped
from attribution.images.draws import Draws, Even, Fixed, Uniform
from attribution.images.stratified import Stratified
from attribution.images.window import Window
from attribution.measurements.base import per_draw

IDS = torch.arange(500) * 7
SCHEMES = [Uniform(4), Even(4), Fixed([3, 9], 2), Stratified(4), Window(4, 2, 30), UniformAtCheckpoints(4)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_dropout_changes_nothing_else(scheme):
    """Claim: timesteps, noise and flips are those without dropout; the given share is dropped, fewer are a subset of more."""
    plain = scheme.draw("attribution", IDS, 40, flips=True)
    few, many = (scheme.draw("attribution", IDS, 40, flips=True, dropout=p) for p in (0.1, 0.3))
    assert plain.condition_dropped is None
    for draws, p in ((few, 0.1), (many, 0.3)):
        assert torch.equal(draws.timestep, plain.timestep)
        assert torch.equal(draws.noise_seed, plain.noise_seed)
        assert torch.equal(draws.flip, plain.flip)
        assert abs(draws.condition_dropped.double().mean() - p) < 4 * (p / IDS.numel() / 4) ** 0.5
        for flip in (True, False):  # independent of the flips
            assert abs(draws.condition_dropped[draws.flip == flip].double().mean() - p) < 0.05
    assert (few.condition_dropped <= many.condition_dropped).all()
    assert scheme.draw("attribution", IDS, 40, dropout=1.0).condition_dropped.all()


def test_a_dropped_condition_is_the_null_class_or_zeros():
    """Claim: each draw's condition is that of its image, or none where the draw says so."""
    dropped = torch.tensor([[True, False], [False, True]])
    draws = Draws(*(torch.zeros(2, 2, dtype=kind) for kind in (torch.long, torch.long, torch.bool)), dropped)
    assert per_draw(torch.tensor([5, 6]), draws).tolist() == [-1, 5, 6, -1]
    embeddings = torch.arange(1.0, 13).view(2, 3, 2)
    zeros = torch.zeros(3, 2)
    assert torch.equal(per_draw(embeddings, draws), torch.stack([zeros, embeddings[0], embeddings[1], zeros]))
    assert torch.equal(with_dropped(embeddings[:, 0], torch.tensor([False, True]))[1], torch.zeros(2))
    assert per_draw(None, draws) is None
