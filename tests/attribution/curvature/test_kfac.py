"""K-FAC's eigenbases: cases in which they are exact, their limit, and the rotation of gradients."""

import pytest
import torch
from torch import nn

from attribution.curvature import EKFAC, KFAC, ExactGGN, KroneckerBasis
from attribution.curvature.basis import eigh
from attribution.curvature.factors import AllFactors, Factors, FactorSums
from attribution.curvature.pseudo_gradients import OutputProbe, kronecker_modules
from attribution.diffusion import Process
from attribution.execution import Execution
from attribution.gradients import hooks
from attribution.gradients.per_example import PerExampleGradients, per_example_gradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import blobs, curvature, draws_of, given, randomized
from tests.worlds import PROCESS, PROCESSES


def enumerated(model: nn.Module, x0: torch.Tensor, draws: Draws, process: Process = PROCESS) -> Factors:
    """Factors with the exact expectation over v: v = √(2 w_t/d) e_j for every output j, B summed over j and A averaged."""
    sums, probe = FactorSums("expand"), OutputProbe(process)
    modules = kronecker_modules(PerExampleGradients(model))
    inputs = probe.inputs(x0, draws)
    epsilon = inputs.noise.chunk(2, dim=1)[0]
    for j in range(x0[0].numel()):
        v = torch.zeros_like(epsilon)
        v.flatten(1)[:, j] = (2 / x0[0].numel() * process.weight(inputs.t, v.dtype)) ** 0.5
        inputs = inputs._replace(noise=torch.cat([epsilon, v], 1))
        hooks.run(model, modules, probe, inputs, sums.add, torch.autocast("cpu", enabled=False))
    factors = sums.factors()
    d = x0[0].numel()
    return Factors(factors.A, {name: B * d for name, B in factors.B.items()}, factors.counts)


def ggn_block(model: nn.Module, layer: str, x0: torch.Tensor, draws: Draws, process: Process = PROCESS) -> torch.Tensor:
    """1/(NK) Σ Jᵀ (2 w_t/d) J for the joint block [W | b] of a Linear layer, J by one backward pass for each output."""
    module, d = model.get_submodule(layer), x0[0].numel()
    x, t, noise, _ = Loss(process).inputs(x0, draws)
    weight_of_t = process.weight(t, x.dtype)
    total = 0
    for i in range(len(t)):
        x_t = process.add_noise(x[i : i + 1], t[i : i + 1], noise[i : i + 1])
        output = model(process.network_input(x_t, t[i : i + 1]), process.network_time(t[i : i + 1])).flatten()
        rows = []
        for value in output:
            weight, bias = torch.autograd.grad(value, [module.weight, module.bias], retain_graph=True)
            rows.append(torch.cat([weight, bias[:, None]], 1).flatten())
        total = total + (2 / d) * weight_of_t[i] * torch.stack(rows).T @ torch.stack(rows)
    return total / len(t)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("layer", ["first", "second"])
def test_kfac_is_the_exact_block_of_one_input(layer, process):
    """Claim (docs/methods.md): for one (example, draw), without weight sharing and with v enumerated, B ⊗ A is the GGN's block."""
    model, get, train = randomized(worlds.perceptron), InMemory(), blobs("perceptron", 1)
    x0, draws = get(train).x0().double(), draws_of(train, get, Uniform(1, seed=2))
    A, B = enumerated(model, x0, draws, process).means(layer)
    torch.testing.assert_close(torch.kron(B, A), ggn_block(model, layer, x0, draws, process), rtol=1e-9, atol=1e-12)


def test_kfac_is_not_exact_for_several_inputs():
    """Claim: the test above could fail: with two inputs the mean of products is not the product of means."""
    model, get, train = randomized(worlds.perceptron), InMemory(), blobs("perceptron", 2)
    x0, draws = get(train).x0().double(), draws_of(train, get)
    A, B = enumerated(model, x0, draws).means("first")
    exact = ggn_block(model, "first", x0, draws)
    assert (torch.kron(B, A) - exact).norm() > 0.05 * exact.norm()


def test_mc_converges_to_the_exact_matrix():
    """Claim: for a linear denoiser, whose Jacobian is its input, MC factors tend to the exact GGN: five standard errors."""
    get, record, train = InMemory(), given(worlds.linear), blobs("linear", 8)
    settings = {"draws": Uniform(500, seed=1), "execution": Execution(device="cpu", batch_size=4000)}
    basis = get(KFAC(**settings).basis(record, train))
    exact = get(ExactGGN(**settings).basis(record, train)).matrix()
    assert isinstance(basis, KroneckerBasis)
    QA, QB, values = basis.QA["only"].double(), basis.QB["only"].double(), basis.values["only"]
    diagonal = ((QB**2) @ values @ (QA**2).T).flatten()
    # Var(v²) = 2 Var(v)²: each B[o, o] is a mean of 4000 squares.
    assert (diagonal / exact.diagonal() - 1).abs().max() < 5 * (2 / 4000) ** 0.5


def test_kfac_basis_is_the_eigendecomposition():
    """Claim: Σ values[o, i] (QB[:, o] ⊗ QA[:, i])(..)ᵀ is B ⊗ A, up to the float32 of the vectors."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    node = curvature().basis(record, train)
    basis, factors = get(node), get(AllFactors(curvature().pseudo_gradients(record, train, False), "expand"))
    assert set(basis.layers) == {"padded", "strided", "wide", "point", "last"}
    for layer in basis.layers:
        A, B = factors.means(layer)
        total = 0
        for o in range(len(B)):
            for i in range(len(A)):
                q = torch.outer(basis.QB[layer][:, o], basis.QA[layer][:, i]).double().flatten()
                total = total + basis.values[layer][o, i] * torch.outer(q, q)
        expected = torch.kron(B, A)
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-6 * float(expected.norm()))
        assert basis.values[layer].dtype == torch.float64
        assert basis.QA[layer].dtype == basis.QB[layer].dtype == torch.float32


def test_rotation_leaves_norms_out_and_products_alone():
    """Claim: rotated gradients are QBᵀ g QA for the layers of the basis and keep their inner products."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    basis = get(curvature().basis(record, train))
    gradients = per_example_gradients(Loss(PROCESS), record.network(get), get(train).x0().double(), draws_of(train, get))
    rotated = basis.rotate(gradients)
    assert list(rotated) == basis.layers
    assert "norm" in gradients
    for layer, g in rotated.items():
        assert g.shape == gradients[layer].shape
        assert g.dtype == torch.float64
        one = gradients[layer][1]
        torch.testing.assert_close(g[1], basis.QB[layer].double().T @ one @ basis.QA[layer].double(), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(
            g.flatten(1) @ g.flatten(1).T, gradients[layer].flatten(1) @ gradients[layer].flatten(1).T, rtol=1e-4, atol=1e-9
        )


def test_artifacts_come_back_from_disk(tmp_path):
    """Claim: a loaded basis is bit-equal to the saved one."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    basis = get(curvature(EKFAC).basis(record, train))
    basis.save(tmp_path)
    again = KroneckerBasis.load(tmp_path)
    assert set(again.layers) == set(basis.layers)
    for layer in basis.layers:
        for kind in ("QA", "QB", "values"):
            assert torch.equal(getattr(again, kind)[layer], getattr(basis, kind)[layer])
    factors = get(AllFactors(curvature().pseudo_gradients(record, train, False), "expand"))
    factors.save(tmp_path)
    for layer in factors.A:
        assert all(map(torch.equal, Factors.load(tmp_path).means(layer), factors.means(layer)))


@pytest.mark.parametrize("setting", ["fisher", "sharing"])
def test_unknown_choices(setting):
    """Claim: an unknown word is an error that names the field and the choices."""
    with pytest.raises(ValueError, match=rf"KFAC.{setting}=wrong: choose \w+ or \w+"):
        curvature(**{setting: "wrong"})


def test_factors_that_are_not_finite_name_the_layer():
    """Claim: NaN in a factor is an error."""
    with pytest.raises(FloatingPointError, match="factor A of layer x is not finite"):
        eigh(torch.tensor([[1.0, 0.0], [0.0, torch.nan]]), "the K-FAC factor A of layer x")
    with pytest.raises(FloatingPointError, match="factor A of layer x has the eigenvalue"):
        eigh(torch.diag(torch.tensor([1.0, -1e-3])), "the K-FAC factor A of layer x")
    values, _ = eigh(torch.diag(torch.tensor([1.0, -1e-7])), "a factor")
    assert values.tolist() == [0.0, 1.0]
