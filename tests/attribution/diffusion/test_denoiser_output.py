"""What a network may return."""

import pytest
import torch
from torch import nn

from attribution.diffusion import DDPM, NoiseSchedule, denoiser
from attribution.measurements import Loss


class Returns(nn.Module):
    """Returns whatever the function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t):
        return self.function(x)


class Output:
    def __init__(self, sample):
        self.sample = sample


X, T = torch.ones(2, 1, 4, 4), torch.tensor([1, 5])


@pytest.mark.parametrize("function", [lambda x: 2 * x, lambda x: Output(2 * x)])
def test_a_tensor_or_an_object_with_a_sample(function):
    """Claim: both give the tensor."""
    assert torch.equal(denoiser(Returns(function))(X, T), 2 * X)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: (x,), "returns a tuple: return a tensor"),
        (lambda x: {"sample": x}, "returns a dict: return a tensor"),
        (lambda x: None, "returns a NoneType: return a tensor"),
        (lambda x: Output(lambda: x), "returns a function: return a tensor"),
        (lambda x: x.expand(-1, 2, -1, -1), r"returns \(2, 4, 4\) for an image of \(1, 4, 4\)"),
        (lambda x: x[:, 0], r"returns \(4, 4\) for an image of \(1, 4, 4\)"),
        (lambda x: x.mean((2, 3), keepdim=True), r"returns \(1, 1, 1\) for an image of \(1, 4, 4\)"),
    ],
)
def test_another_output_is_refused(function, said):
    """Claim: neither another type nor a shape that a loss would broadcast passes; the sentence has both shapes."""
    with pytest.raises(ValueError, match=said):
        Loss(DDPM(NoiseSchedule(T=10)))(denoiser(Returns(function)), X, T, torch.zeros_like(X))
