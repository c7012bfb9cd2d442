"""Compression of matrices: error bounds, sizes, shapes."""

import math

import pytest
import torch

from attribution.gradients.compression import Quantized, TruncatedSVD, Uncompressed

SHAPES = [(24, 217), (1, 1), (3, 5), (7, 1)]
KINDS = [Uncompressed(), Quantized(bits=16), Quantized(bits=8), Quantized(bits=4), TruncatedSVD(rank=2)]


def matrices(shape, leading=(2, 3)):
    return torch.randn(*leading, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_sizes_are_those_of_the_parts(kind, shape):
    """Claim: ``size`` is the number of bytes of the parts of one matrix, and parts can be indexed by the leading dimensions."""
    parts = kind.compress(matrices(shape))
    assert sum(part[0, 0].numel() * part.element_size() for part in parts.values()) == kind.size(shape)
    restored = kind.restore(parts, shape)
    assert restored.shape == (2, 3, *shape)
    assert restored.dtype == torch.float32
    one = kind.restore({name: part[1] for name, part in parts.items()}, shape)
    assert torch.equal(one, restored[1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_quantisation_errs_by_half_a_step(bits, shape):
    """Claim: the error of a value is at most half a step of its matrix's range; both ends of the range are exact."""
    x = matrices(shape) * torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)[None, :, None, None]
    kind = Quantized(bits=bits)
    restored = kind.restore(kind.compress(x), shape).double()
    spread = x.amax((-1, -2), keepdim=True) - x.amin((-1, -2), keepdim=True)
    step = spread / (2**bits - 1)
    assert ((restored - x).abs() <= 0.5 * step + 2e-6 * x.abs().amax((-1, -2), keepdim=True)).all()


def test_constant_matrices_stay():
    """Claim: a constant matrix, also of zeros, is restored exactly and not as NaN."""
    for value in (0.0, 3.5):
        x = torch.full((1, 4, 5), value)
        assert torch.equal(Quantized(bits=8).restore(Quantized(bits=8).compress(x), (4, 5)), x)


def test_truncated_svd_is_the_best_of_its_rank():
    """Claim: the error in the Frobenius norm is the norm of the omitted singular values (Eckart–Young)."""
    x = matrices((12, 40))
    for rank in (1, 3, 8):
        kind = TruncatedSVD(rank=rank)
        error = (kind.restore(kind.compress(x), (12, 40)).double() - x).flatten(2).norm(dim=2)
        left_out = torch.linalg.svdvals(x)[..., rank:].norm(dim=-1)
        torch.testing.assert_close(error, left_out, rtol=1e-4, atol=1e-5)


def test_svd_never_makes_a_matrix_larger():
    """Claim: a matrix with at most rank · (out + in) elements stays exact."""
    x = matrices((3, 5)).float()
    kind = TruncatedSVD(rank=2)
    assert torch.equal(kind.restore(kind.compress(x), (3, 5)), x)
    assert kind.size((3, 5)) == 4 * math.prod((3, 5))


def test_bad_settings_are_named():
    """Claim: invalid sizes raise an error that names the setting."""
    with pytest.raises(ValueError, match=r"Quantized.bits=3"):
        Quantized(bits=3)
    with pytest.raises(ValueError, match=r"TruncatedSVD.rank=0"):
        TruncatedSVD(rank=0)
