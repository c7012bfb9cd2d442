"""Per-example gradients of networks that take a condition."""

import functools

import pytest
import torch

from attribution.gradients.per_example import per_example_gradients
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from tests.conditional_networks import CLASSES, DIT, EMBEDDED_UNET, LEARNED_VARIANCE, LENGTH, PIXART, POOLED, SD3, SIZE
from tests.references import as_parameters, draw_gradients
from tests.worlds import PROCESSES, UNET

CLASS = torch.tensor([2, 0, 1])
EMBEDDING = torch.randn(3, LENGTH, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
POOLED_TOO = torch.cat([EMBEDDING, EMBEDDING[:, :1, :1].expand(3, LENGTH, POOLED)], 2)
CLASS_UNET = functools.partial(UNET, num_class_embeds=CLASSES + 1)


@pytest.mark.parametrize(
    ("build", "condition"),
    [
        (CLASS_UNET, CLASS),
        (DIT, CLASS),
        (LEARNED_VARIANCE, CLASS),
        (EMBEDDED_UNET, EMBEDDING),
        (PIXART, EMBEDDING),
        (SD3, POOLED_TOO),
    ],
    ids=["unet", "dit", "learned variance", "embedded unet", "pixart", "sd3"],
)
def test_gradients_with_dropped_conditions_are_those_of_autograd(build, condition):
    """Claim: in float64, for each image and every trainable parameter, at draws some of which drop the condition."""
    torch.manual_seed(0)
    model, loss = build().double(), Loss(PROCESSES["v, zero terminal SNR"])
    x0 = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    draws = Uniform(4, seed=1).draw("attribution", torch.arange(3), 100, flips=True, dropout=0.4)
    assert draws.condition_dropped is not None
    assert 0 < draws.condition_dropped.sum() < 12
    ours = as_parameters(model, per_example_gradients(loss, model, x0, draws, condition))
    expected = draw_gradients(loss, model, x0, draws, condition)
    assert ours.keys() == expected.keys()
    for name, gradients in expected.items():
        torch.testing.assert_close(ours[name], gradients.mean(1), rtol=1e-9, atol=1e-12, msg=name)
