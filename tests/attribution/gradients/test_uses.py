"""Per-example gradients of parameters without a formula, against one ``backward`` per draw, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.curvature.vector_products import Hessian
from attribution.diffusion import denoiser
from attribution.gradients.embedding import EmbeddingLayer
from attribution.gradients.per_example import PerExampleGradients
from attribution.measurements import Loss
from attribution.projection import SJLT, Kronecker
from tests.attribution.gradients.test_gradients import BENT, Net, Scaled, Standardized, assert_right, batch, positions, randomized
from tests.worlds import PROCESS

P = nn.Parameter


class Own(nn.Module):
    """Parameters of its own and named modules."""

    def __init__(self, forward, parameters: dict[str, tuple[int, ...]], **modules: nn.Module):
        super().__init__()
        self.run = forward
        for name, shape in parameters.items():
            self.register_parameter(name, P(torch.zeros(shape)))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.run(self, x)


def labels(x: Tensor) -> Tensor:
    return (x.flatten(1)[:, :3] > 0).long().cumsum(1)


def tokens(m: Any, x: Tensor) -> Tensor:
    x = torch.cat([m.token.expand(len(x), -1, -1), m.a(positions(x))], 1)
    return m.b(torch.tanh(x + m.place[:, : x.shape[1]]))


def attended(m: Any, x: Tensor) -> Tensor:
    x = torch.tanh(m.a(positions(x)))
    return torch.cat([m.b(x, x, x, need_weights=False)[0], m.b(x, x.flip(1), x)[1]], 2)


def multiplied(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y *= m.gain[:, None, None]
    y += m.shift.reshape(4, 1, 1)
    return y.tanh()


def expanded(m: Any, x: Tensor) -> Tensor:
    latents = m.a(m.latents.expand(len(x), -1, -1)) + m.place(torch.arange(3).expand(len(x), -1))
    return F.scaled_dot_product_attention(latents.tanh(), positions(x), positions(x))


def mixed(m: Any, x: Tensor) -> Tensor:
    table = m.table[None] + m.a(positions(x).mean(1)).reshape(len(x), 2, 4)
    shift, scale = table.chunk(2, dim=1)
    return positions(x) * (1 + scale) + shift


def half_tied() -> nn.Module:
    net: Any = Net(lambda m, x: m.second(torch.tanh(m.first(x))), first=nn.Linear(6, 6), second=nn.Linear(6, 6))
    net.second.weight = net.first.weight
    return net


def table_tied_to_output() -> nn.Module:
    net: Any = Net(lambda m, x: m.out(torch.tanh(m.table(labels(x)))), table=nn.Embedding(4, 6), out=nn.Linear(6, 4, bias=False))
    net.out.weight = net.table.weight
    return net


def normed(module: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(module)


def between(module: nn.Module, prepare=lambda x: x) -> nn.Module:
    return Net(lambda m, x: m.b(prepare(torch.tanh(m.a(x)))), a=nn.Conv2d(4, 4, 3, padding=1), b=module)


MODELS = {
    "Embedding": lambda: Net(lambda m, x: m.a(labels(x)) * x.flatten(1)[:, :6].unsqueeze(1), a=nn.Embedding(4, 6)),
    "Embedding, one per input": lambda: Net(lambda m, x: m.a(labels(x)[:, 0]) * x.flatten(1)[:, :6], a=nn.Embedding(4, 6)),
    "Embedding with padding": lambda: Net(lambda m, x: m.a(labels(x)), a=nn.Embedding(4, 6, padding_idx=2)),
    "Embedding, called twice": lambda: Net(lambda m, x: m.a(labels(x)) * m.a(labels(-x)), a=nn.Embedding(4, 6)),
    "Embedding tied to the output": table_tied_to_output,
    "tokens and positions": lambda: Own(tokens, {"token": (1, 1, 5), "place": (1, 40, 5)}, a=nn.Linear(4, 5), b=nn.Linear(5, 3)),
    "modules on latents and places": lambda: Own(expanded, {"latents": (1, 3, 5)}, a=nn.Linear(5, 4), place=nn.Embedding(3, 4)),
    "scale and shift table": lambda: Own(mixed, {"table": (2, 4)}, a=nn.Linear(4, 8)),
    "in place": lambda: Own(multiplied, {"gain": (4,), "shift": (4,)}, a=nn.Conv2d(4, 4, 1)),
    "first and last": lambda: Own(lambda m, x: m.a * (x + m.a).tanh() * m.b, {"a": (6,), "b": (1,)}),
    "unused": lambda: Own(lambda m, x: x * m.a, {"a": (6,), "b": (3, 2)}),
    "matrix product": lambda: Own(lambda m, x: m.a @ x @ m.b.mT, {"a": (5, 6), "b": (3, 6)}),
    "einsum": lambda: Own(lambda m, x: torch.einsum("nchw,cd->nd", x, m.a), {"a": (4, 3)}),
    "stacked": lambda: Own(lambda m, x: x * torch.stack([m.a, m.b.exp()])[1] + m.a.repeat(len(x), 4, 6, 1), {"a": (6,), "b": (6,)}),
    "learned query": lambda: Own(
        lambda m, x: F.scaled_dot_product_attention(m.q.expand(len(x), -1, -1), positions(x), positions(x)), {"q": (1, 3, 4)}
    ),
    "RMSNorm": lambda: between(nn.RMSNorm(6, eps=1e-2)),
    "ConvTranspose2d": lambda: between(nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1)),
    "ConvTranspose2d, grouped, no bias": lambda: between(nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)),
    "Conv1d": lambda: between(nn.Conv1d(4, 3, 3, padding=1), lambda x: x.flatten(2)),
    "Conv1d, grouped": lambda: between(nn.Conv1d(4, 6, 3, groups=2, bias=False, padding_mode="circular"), lambda x: x.flatten(2)),
    "Conv3d": lambda: between(nn.Conv3d(2, 3, 2, stride=2), lambda x: x.unflatten(1, (2, 2))),
    "ConvTranspose1d": lambda: between(nn.ConvTranspose1d(4, 3, 3), lambda x: x.flatten(2)),
    "Bilinear": lambda: Net(lambda m, x: m.a(x, x.tanh()), a=nn.Bilinear(6, 6, 3)),
    "PReLU": lambda: between(nn.PReLU(4)),
    "weight norm": lambda: between(normed(nn.Conv2d(4, 3, 3))),
    "weight norm of Linear": lambda: between(normed(nn.Linear(6, 3, bias=False))),
    "spectral norm": lambda: between(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))),
    "subclass with a forward": lambda: between(Scaled(6, 5)),
    "subclass of Conv2d": lambda: between(Standardized(4, 3, 3)),
    "half tied": half_tied,
    "MultiheadAttention": lambda: Net(attended, a=nn.Linear(4, 4), b=nn.MultiheadAttention(4, 2, batch_first=True)),
    "MultiheadAttention, more parameters": lambda: Net(
        lambda m, x: m.b(*[positions(x).mT.permute(2, 0, 1)] * 3)[0].transpose(0, 1),
        b=nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=4, vdim=4),
    ),
    "MultiheadAttention, other keys": lambda: Net(
        lambda m, x: m.b(positions(x), positions(x[:, :3]), positions(x[:, :2]))[0],
        b=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, bias=False, batch_first=True),
    ),
    "TransformerEncoder": lambda: Net(
        lambda m, x: m.b(positions(x)),
        b=nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), 2, enable_nested_tensor=False),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_uses_of_parameters(name):
    """Claim: means, norms and weighted means are correct for these kinds of modules and ways of using a parameter."""
    assert_right(randomized(MODELS[name]()), *batch())


@pytest.mark.parametrize("frozen", ["token", "place", "a.bias"])
def test_frozen_parameters_are_left_out(frozen):
    """Claim: a frozen parameter has no gradient, and the others keep theirs."""
    model: Any = randomized(MODELS["tokens and positions"]())
    model.get_parameter(frozen).requires_grad_(False)
    assert_right(model, *batch())
    names = {name for layer in PerExampleGradients(model).layers.values() for name in layer.parameters}
    assert names == {name for name, _ in model.named_parameters()} - {frozen}


def test_parts_of_attention_may_be_frozen():
    """Claim: gradients of the output projection alone are correct."""
    model: Any = randomized(MODELS["MultiheadAttention"]())
    model.b.in_proj_weight.requires_grad_(False)
    model.b.in_proj_bias.requires_grad_(False)
    assert_right(model, *batch())


def test_the_model_is_left_as_it_was():
    """Claim: after a pass, also one that fails, the modules have their own parameters again."""
    model: Any = randomized(MODELS["tokens and positions"]())
    before = {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}
    PerExampleGradients(model).capture(BENT, *batch()).mean()
    model.run = lambda m, x: x * torch.einsum("nchw,k->chw", x, m.token[0, 0])
    with pytest.raises(ValueError, match="token: einsum combines it with the inputs of a pass"):
        PerExampleGradients(model).capture(BENT, *batch()).mean()
    assert before == {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}


def wrong_rows(m: Any, x: Tensor) -> Tensor:
    x[:, 0] = m.a
    return x


def part(m: Any, x: Tensor) -> Tensor:
    x = x * m.a
    x[:, 1] += m.a
    return x


@pytest.mark.parametrize("forward", [wrong_rows, part, lambda m, x: m.a.mul_(x[0, 0, 0, 0]) * x, lambda m, x: x.__ipow__(m.a)])
def test_changes_in_place_are_errors(forward):
    """Claim: writing a parameter into a tensor, or a tensor into a parameter, raises an error with its name."""
    with pytest.raises(ValueError, match=r"a: .* changes a tensor in place"):
        PerExampleGradients(randomized(Own(forward, {"a": (6,)}))).capture(BENT, *batch())


@pytest.mark.parametrize("B", [1, 2, 3, 4, 5, 6, 8])
def test_sizes_equal_to_the_number_of_inputs(B):
    """Claim: a constant, or a repetition, of as many rows as the pass has inputs is not mistaken for a tensor of the batch."""

    def forward(m: Any, x: Tensor) -> Tensor:
        waves = (m.a * torch.linspace(0, 1, 4).to(x).unsqueeze(1)).sin().unsqueeze(1)  # [4, 1, 6]
        return x * waves + x * m.b.expand(5, 6)[:1]

    assert_right(randomized(Own(forward, {"a": (6,), "b": (1, 6)})), *batch(B, 1))


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.parametrize(("B", "K"), [(1, 1), (3, 2), (5, 1)])
def test_constants_of_any_number_of_rows(rows, B, K):
    """Claim: a constant that is no buffer may have as many rows as any of the first passes, or a single one."""

    def forward(m: Any, x: Tensor) -> Tensor:
        waves = m.a * torch.linspace(0.5, 1, rows).to(x).unsqueeze(1)  # [rows, 6]
        return x * waves.sum(0) + x * (m.b + torch.ones(1, 6).to(x))

    assert_right(randomized(Own(forward, {"a": (6,), "b": (6, 6)})), *batch(B, K))


def test_operations_that_the_first_passes_lack_are_errors():
    """Claim: an operation that was not compared with autograd raises an error with the name of the parameter."""
    model: Any = randomized(Own(lambda m, x: x * m.a, {"a": (6,)}))
    gradients = PerExampleGradients(model)
    gradients.capture(BENT, *batch(3, 1)).mean()
    model.run = lambda m, x: x * m.a + m.a.exp() * (m.a * torch.ones(3, 1).to(x)).sum(0)
    with pytest.raises(RuntimeError, match="a: mul was not among the operations of the first passes"):
        gradients.capture(BENT, *batch(3, 1)).mean()


UNCLEAR = {
    r"a: mul cannot be repeated for one input at a time \(.*\). Keep the batch": lambda m, x: (
        torch.stack([m.a] * len(x))[:, None] * x
    ),
    r"a: linear combines it with a tensor \[120, 6\] computed from the inputs of a pass": (
        lambda m, x: F.linear(m.b(x).flatten(0, 2), m.a).view_as(x)
    ),
    r"b \(Linear\) was called with the parameter a in a pass": lambda m, x: x + m.b(m.a),
}


@pytest.mark.parametrize("message", UNCLEAR)
def test_parameters_without_a_batch_are_errors(message):
    """Claim: repetition by other means than expand, a merged batch, and a module called with a parameter raise clear errors."""
    model = randomized(Own(UNCLEAR[message], {"a": (6, 6)}, b=nn.Linear(6, 6)))
    with pytest.raises((RuntimeError, ValueError), match=message):
        PerExampleGradients(model).capture(BENT, *batch())


def test_conversions_are_repeated_in_the_precision_of_gradients():
    """Claim: in a network in half precision that converts parameters, gradients are close to those of one without conversions."""
    converting = Own(lambda m, x: F.linear(x, m.a.to(x.dtype)) * m.b.float().to(x.dtype), {"a": (6, 6), "b": (6,)})
    plain = Own(lambda m, x: F.linear(x, m.a) * m.b, {"a": (6, 6), "b": (6,)})
    plain.load_state_dict(randomized(converting).bfloat16().state_dict())
    (x0, draws), exact = batch(2, 1), plain.double()
    found = PerExampleGradients(converting).capture(Loss(PROCESS), x0.bfloat16(), draws).mean()
    for name, block in PerExampleGradients(exact).capture(Loss(PROCESS), x0, draws).mean().items():
        assert (found[name] - block).norm() < 0.02 * block.norm()


def test_ambiguous_sizes_are_errors():
    """Claim: the same operation with a constant and with the batch, of the same sizes, raises an error that names a remedy."""

    def forward(m: Any, x: Tensor) -> Tensor:
        constant = (m.a * torch.ones(4, 4, 6, 6).to(x)).mean(0)
        return m.a * x + constant

    gradients = PerExampleGradients(randomized(Own(forward, {"a": (6,)})))
    gradients.capture(BENT, *batch(3, 1)).mean()
    with pytest.raises(RuntimeError, match=r"a: in a pass over 4 network inputs, mul does not show .* choose another batch size"):
        gradients.capture(BENT, *batch(4, 1)).mean()


def test_embedding_layer_agrees_with_one_hot_inputs():
    """Claim: the gradient of an Embedding is Σ_r b_r a_rᵀ over one-hot inputs a."""
    generator = torch.Generator().manual_seed(0)
    layer = EmbeddingLayer("a", nn.Embedding(5, 3, padding_idx=1))
    a, b = torch.randint(0, 5, (6, 4), generator=generator), torch.randn(6, 4, 3, generator=generator)
    hot, rows = layer.positions(a, b)
    torch.testing.assert_close(layer.contract(a, b, 2), torch.bmm(rows.mT, hot).unflatten(0, (3, 2)).sum(1))


def test_uses_are_projected():
    """Claim: features of an Embedding and of a learned table are those of their gradients."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return x * (m.a(labels(x)).sum(1) + m.table[0])[:, None, None]

    model = randomized(Own(forward, {"table": (3, 6)}, a=nn.Embedding(4, 6)))
    per_example = PerExampleGradients(model)
    for projection in (Kronecker(3, 2), SJLT(8)):
        projector = projection.start(per_example.blocks, dtype=torch.float64)
        captured = per_example.capture(BENT, *batch())
        torch.testing.assert_close(projector.features(captured), projector(captured.mean()), rtol=1e-9, atol=1e-12)


def test_curvature_products_take_all_parameters():
    """Claim: with an Embedding and a learned table, products with the Hessian are those of double backward by parameter."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return x * (m.a(labels(x)).sum(1) * m.table[0])[:, None, None]

    model = randomized(Own(forward, {"table": (3, 6)}, a=nn.Embedding(4, 6)))
    per_example, (x0, draws) = PerExampleGradients(model), batch(2, 2)
    generator = torch.Generator().manual_seed(0)
    v = {name: torch.randn(2, *shape, generator=generator).double() for name, shape in per_example.blocks.items()}
    found = Hessian()(per_example, BENT, x0, draws, v)
    inputs = BENT.inputs(x0, draws, None)
    parameters = dict(model.named_parameters())
    cost = BENT(denoiser(model), *inputs).mean()
    gradients = torch.autograd.grad(cost, list(parameters.values()), create_graph=True)
    for q in range(2):
        ours = {name: part for key, layer in per_example.layers.items() for name, part in layer.split(v[key][q])}
        products = torch.autograd.grad(gradients, list(parameters.values()), [ours[name] for name in parameters], retain_graph=True)
        theirs = {name: part for key, layer in per_example.layers.items() for name, part in layer.split(found[key][q])}
        for name, product in zip(parameters, products, strict=True):
            torch.testing.assert_close(theirs[name], product, rtol=1e-9, atol=1e-11)
