"""Moments of a layer's positions against the positions written out."""

import pytest
import torch
from torch import nn

from attribution.curvature import moments
from attribution.gradients.convolution import ConvLayer

CONVOLUTIONS = {
    "padded": nn.Conv2d(3, 4, 3, padding=1),
    "no bias": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "unpadded": nn.Conv2d(3, 4, 3),
    "padded by more than reaches": nn.Conv2d(3, 4, 3, padding=3),
    "large kernel": nn.Conv2d(3, 4, (5, 2), padding=(2, 1)),
    "same, one more after": nn.Conv2d(3, 4, (4, 2), padding="same"),
    "reflect": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "one column": nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
    "one row": nn.Conv2d(3, 4, (1, 3), padding=(0, 1)),
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "strided, circular": nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1, padding_mode="circular"),
    "dilated": nn.Conv2d(3, 4, 2, dilation=2, padding=1),
    "pointwise": nn.Conv2d(3, 4, 1),
}


def layer_and_sides(name: str, n: int, height: int, width: int) -> tuple[ConvLayer, torch.Tensor, torch.Tensor]:
    conv, generator = CONVOLUTIONS[name].double(), torch.Generator().manual_seed(0)
    a = torch.randn(n, 3, height, width, generator=generator).double()
    b = torch.randn(conv(a).shape, generator=generator).double()
    return ConvLayer("conv", conv), a, b


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_are_those_of_positions(name, size):
    """Claim: moments and sums are those of the unfolded patches, also if every position touches the border."""
    layer, a, b = layer_and_sides(name, 5, size, size - 1 if name == "large kernel" else size + 1)
    patches, rows = layer.positions(a, b)
    A, B, count = moments.second_moments(layer, a, b)
    torch.testing.assert_close(A, patches.flatten(0, 1).T @ patches.flatten(0, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(B, rows.flatten(0, 1).T @ rows.flatten(0, 1), rtol=1e-10, atol=1e-10)
    assert count == patches.shape[0] * patches.shape[1]
    a_sum, b_sum, R = moments.position_sums(layer, a, b)
    torch.testing.assert_close((a_sum, b_sum, R), (patches.sum(1), rows.sum(1), patches.shape[1]))


@pytest.mark.parametrize(("size", "by_products"), [((2, 5), False), ((3, 2), False), ((3, 3), True), ((4, 6), True)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_moment_is_the_sum_over_patches(size, by_products, bias, monkeypatch):
    """Claim: in float32, A is Σ a aᵀ in float64 to 1e-6 of its largest entry, where a is cut out of the padded input pixel by
    pixel: for sizes at which patches are written out, and for the smallest at which products of pixels replace them."""
    generator, calls, products = torch.Generator().manual_seed(0), [], moments.patch_moment
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
    a = torch.randn(6, 3, *size, generator=generator)
    monkeypatch.setattr(moments, "patch_moment", lambda *given: calls.append(1) or products(*given))
    found, _, count = moments.second_moments(ConvLayer("conv", conv), a, torch.randn(6, 4, *size, generator=generator))
    expected, padded = torch.zeros(27 + bias, 27 + bias, dtype=torch.float64), nn.functional.pad(a.double(), (1, 1, 1, 1))
    for image in padded:
        for y in range(size[0]):
            for x in range(size[1]):
                patch = image[:, y : y + 3, x : x + 3].flatten()
                patch = torch.cat([patch, patch.new_ones(1)]) if bias else patch
                expected += torch.outer(patch, patch)
    assert bool(calls) == by_products
    assert count == 6 * size[0] * size[1]
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    assert torch.equal(found, found.T) or not by_products


@pytest.mark.parametrize("step", [1, 200, 10**9])
def test_pieces_change_no_moment(step, monkeypatch):
    """Claim: the size of the pieces in which patches are written out changes nothing beyond rounding."""
    layer, a, b = layer_and_sides("strided", 40, 9, 9)
    patches, _ = layer.positions(a, b)
    monkeypatch.setattr(moments, "step", lambda _: step)
    A, _, _ = moments.second_moments(layer, a, b)
    torch.testing.assert_close(A, patches.flatten(0, 1).T @ patches.flatten(0, 1), rtol=1e-10, atol=1e-10)


def test_float32_is_enough():
    """Claim: sums over 2^17 positions in float32 are right to 2e-6 of the largest entry: no long chains of additions."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    a = torch.randn(128, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    b = a.new_ones(128, 4, 32, 32)
    found = moments.patch_moment(ConvLayer("conv", conv), a, b)
    exact = moments.patch_moment(ConvLayer("conv", conv.double()), a.double(), b.double())
    assert (found - exact).abs().max() < 2e-6 * exact.abs().max()
