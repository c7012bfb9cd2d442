"""Per-example gradients against one ``backward`` per draw, in float64, on U-Nets and on small models with difficult cases."""

import copy
import gc
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attribution.gradients.per_example import PerExampleGradients, per_example_gradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Loss, Measure
from tests.references import as_parameters, draw_gradients, draw_norms
from tests.worlds import PROCESS, UNET

LOSS = Loss(PROCESS)


@dataclass(frozen=True)
class Bent(Measure):
    """A cost for any output, with a different function of each of its elements."""

    def __call__(self, denoise, x0, t, noise, condition=None):
        output = denoise(self.process.add_noise(x0, t, noise), t).flatten(1)
        return torch.sin(output + torch.arange(output.shape[1]).to(output)).sum(1)


BENT = Bent(PROCESS)


class Net(nn.Module):
    """Named modules and a forward pass over ``(modules, x)``."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **modules: nn.Module):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.run(self, x)


def batch(B: int = 3, K: int = 2, size: int = 6, channels: int = 4) -> tuple[Tensor, Draws]:
    x0 = torch.rand(B, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return x0, Uniform(K).draw("test", torch.arange(B) + 40, PROCESS.T, flips=True)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomize the parameters: at 1 and 0, the initial values in norms and biases, wrong formulas can give correct results."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    return model.double()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 0
    for name, g in expected.items():
        assert found[name].shape == g.shape, name
        assert float((found[name] - g).abs().max()) <= tolerance * scale, name


def assert_right(model: nn.Module, x0: Tensor, draws: Draws, measure: Measure = BENT) -> None:
    """Check means, norms and weighted means against a loop of ``backward``, in one pass and in several."""
    truth = draw_gradients(measure, model, x0, draws)
    weights = torch.rand(draws.timestep.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for batch_size in (1000, 2 * draws.count, 1):
        captured = PerExampleGradients(model, batch_size).capture(measure, x0, draws)
        assert_close(as_parameters(model, captured.mean()), {name: g.mean(1) for name, g in truth.items()})
        torch.testing.assert_close(captured.norms(), draw_norms(truth), rtol=1e-10, atol=0)
        for w, given in ((weights, weights), (1 / draw_norms(truth), torch.reciprocal)):
            expected = {name: torch.einsum("bk,bk...->b...", w, g) / draws.count for name, g in truth.items()}
            assert_close(as_parameters(model, captured.mean(given)), expected)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.slow
def test_unet_equals_a_loop_of_backward(K):
    """Claim: gradients are correct for all parameters of diffusers' U-Net; dropout is off."""
    model = randomized(UNET())
    x0, draws = batch(3, K, size=8, channels=1)
    assert_right(model.train(), x0, draws, LOSS)
    assert set(as_parameters(model, per_example_gradients(LOSS, model, x0, draws))) == {n for n, _ in model.named_parameters()}


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "no bias": nn.Conv2d(4, 6, 3, bias=False),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "strided, rows left over": nn.Conv2d(4, 6, 2, stride=4),
    "stride and padding by axis": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1)),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "grouped 1 × 1": nn.Conv2d(4, 6, 1, groups=2),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
    "same": nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2)),
    "same, one more after": nn.Conv2d(4, 6, (2, 4), padding="same"),
    "circular": nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
    "reflect": nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", stride=2),
    "replicate same": nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
    "1 × 1": nn.Conv2d(4, 6, 1),
    "1 × 1, no bias": nn.Conv2d(4, 6, 1, bias=False),
    "1 × 1, strided": nn.Conv2d(4, 6, 1, stride=2),
    "1 × 1, padded": nn.Conv2d(4, 6, 1, padding=1),
    "many channels": nn.Conv2d(4, 60, 5, stride=3, padding=1, groups=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    """Claim: gradients are correct for every kind of Conv2d, as the first layer and after another layer."""
    before, conv = nn.Conv2d(4, 4, 3, padding=1), copy.deepcopy(CONVOLUTIONS[name])
    assert_right(randomized(Net(lambda m, x: m.conv(torch.tanh(m.before(x))), before=before, conv=conv)), *batch())
    assert_right(randomized(Net(lambda m, x: m.conv(x), conv=conv)), *batch())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if not name.startswith("1 × 1")])
def test_convolution_formulas_agree(name):
    """Claim: patches (used for small layers on a GPU), grouped convolutions of any number of examples, and Gram norms agree."""
    model = randomized(Net(lambda m, x: m.conv(x), conv=copy.deepcopy(CONVOLUTIONS[name])))
    gradients = PerExampleGradients(model)
    captured = gradients.capture(BENT, *batch(4, 3))
    seen = captured._record(captured._parts[0])["conv"][0]
    layer, a, b = gradients.layers["conv"], seen.input, seen.gradient
    whole = layer.contract(a, b, 3)
    torch.testing.assert_close(layer._unfolded(layer._padded(a), b, 3), whole, rtol=1e-10, atol=1e-10)
    one_by_one = torch.cat([layer.contract(a[i : i + 3], b[i : i + 3], 3) for i in range(0, 12, 3)])
    torch.testing.assert_close(one_by_one, whole, rtol=1e-10, atol=1e-10)
    gram = layer.square_norms(a, b)
    assert (gram is not None) == (name in {"many channels", "strided, rows left over"})
    if gram is not None:
        torch.testing.assert_close(gram, layer.contract(a, b, 1).square().sum((1, 2)))


def positions(x: Tensor) -> Tensor:
    """Return ``[N, C, H, W]`` as ``[N, H·W, C]``, not contiguous."""
    return x.flatten(2).mT


class Doubling(nn.Linear):
    """A subclass that computes the same as its base."""

    def extra_repr(self) -> str:
        return "doubling"


def tied(first: nn.Module, second: nn.Module) -> dict[str, nn.Module]:
    second.weight = first.weight
    if first.bias is not None:
        second.bias = first.bias
    return {"first": first, "second": second}


MODELS = {
    "Linear on 3-d": lambda: Net(lambda m, x: m.a(positions(x)), a=nn.Linear(4, 5)),
    "Linear on 4-d": lambda: Net(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Linear(6, 5), b=nn.Linear(5, 3, bias=False)),
    "Linear on 2-d": lambda: Net(lambda m, x: m.b(torch.tanh(m.a(x.flatten(1)))), a=nn.Linear(144, 20), b=nn.Linear(20, 30)),
    "subclass": lambda: Net(lambda m, x: m.a(positions(x)), a=Doubling(4, 5)),
    "input by keyword": lambda: Net(lambda m, x: m.a(input=positions(x)), a=nn.Linear(4, 5)),
    "called twice": lambda: Net(
        lambda m, x: m.a(torch.tanh(m.a(x))) + m.b(torch.tanh(m.b(x))), a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1)
    ),
    "called twice, other sizes": lambda: Net(
        lambda m, x: m.a(torch.tanh(m.a(x))).flatten(1).sum(1, keepdim=True) + m.b(m.b(positions(x))[:, :3]).flatten(1),
        a=nn.Conv2d(4, 4, 3),
        b=nn.Linear(4, 4),
    ),
    "called twice, used once": lambda: Net(lambda m, x: [m.a(x), torch.tanh(m.a(x + 1))][1], a=nn.Conv2d(4, 4, 3)),
    "one module under two names": lambda: Net(
        lambda m, x: m.b(torch.tanh(m.a(x))), **dict.fromkeys(("a", "b"), nn.Conv2d(4, 4, 3, padding=1))
    ),
    "tied": lambda: Net(lambda m, x: m.second(torch.tanh(m.first(x))), **tied(nn.Linear(6, 6), nn.Linear(6, 6))),
    "tied, no bias": lambda: Net(
        lambda m, x: m.second(torch.tanh(m.first(x))), **tied(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    ),
    "tied, other stride": lambda: Net(
        lambda m, x: m.second(torch.tanh(m.first(x))), **tied(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    ),
    "unused": lambda: Net(lambda m, x: m.a(x), a=nn.Conv2d(4, 4, 3), b=nn.Linear(4, 3), c=nn.GroupNorm(2, 4), d=nn.LayerNorm(3)),
    "used without effect": lambda: Net(
        lambda m, x: m.a(x) + 0 * m.b(x) + m.b(x).detach(), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3)
    ),
    "partly without gradients": lambda: Net(lambda m, x: m.a(x + without_gradients(m.a, x)), a=nn.Conv2d(4, 4, 1)),
    "in place after conv": lambda: Net(
        lambda m, x: F.silu(m.b(F.silu(m.a(x), inplace=True)), inplace=True), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3)
    ),
    "in place after Linear": lambda: Net(lambda m, x: m.b(m.a(x).tanh_()).sin_(), a=nn.Linear(6, 5), b=nn.Linear(5, 5)),
    "in place on a slice": lambda: Net(lambda m, x: sliced(m.b(torch.tanh(m.a(x)))), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 1)),
    "GroupNorm": lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 6, 3), b=nn.GroupNorm(3, 6, eps=1e-2)),
    "GroupNorm on 3-d, transposed": lambda: Net(lambda m, x: m.b(m.a(positions(x)).mT), a=nn.Linear(4, 6), b=nn.GroupNorm(2, 6)),
    "GroupNorm on 2-d": lambda: Net(lambda m, x: m.b(m.a(x.flatten(1))), a=nn.Linear(144, 6), b=nn.GroupNorm(2, 6)),
    "GroupNorm first": lambda: Net(lambda m, x: m.b(x), b=nn.GroupNorm(2, 4)),
    "LayerNorm": lambda: Net(lambda m, x: m.b(m.a(positions(x))), a=nn.Linear(4, 6), b=nn.LayerNorm(6, eps=1e-2)),
    "LayerNorm over three dimensions": lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 3, 3), b=nn.LayerNorm((3, 4, 4))),
    "LayerNorm without bias": lambda: Net(lambda m, x: m.a(m.b(x)), a=nn.Linear(6, 3), b=nn.LayerNorm((6, 6), bias=False)),
    "norms without parameters": lambda: Net(
        lambda m, x: m.b(m.c(m.a(x))), a=nn.Conv2d(4, 4, 3), b=nn.GroupNorm(2, 4, affine=False), c=nn.BatchNorm2d(4, affine=False)
    ),
    "residual": lambda: Net(lambda m, x: residual(m.a(x), m.b), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3, padding=1)),
    "another's hook": lambda: hooked(Net(lambda m, x: m.b(torch.tanh(m.a(x))), a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3))),
    "gradient checkpointing": lambda: Net(
        lambda m, x: m.c(checkpoint(lambda x: torch.tanh(m.b(torch.tanh(m.a(x)))), m.first(x), use_reentrant=False)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.GroupNorm(2, 4),
        c=nn.Conv2d(4, 4, 3),
    ),
    "gradient checkpointing from the first layer": lambda: Net(
        lambda m, x: m.c(checkpoint(lambda x: torch.tanh(m.b(torch.tanh(m.a(x)))), x, use_reentrant=False)),
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.GroupNorm(2, 4),
        c=nn.Conv2d(4, 4, 3),
    ),
}


def without_gradients(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def sliced(x: Tensor) -> Tensor:
    x[:, 1:] *= 2
    return x


def residual(x: Tensor, module: nn.Module) -> Tensor:
    return x + module(x) * x


def hooked(model: nn.Module) -> nn.Module:
    model.a.register_forward_hook(lambda module, args, output: output * 3)
    model.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Standardized(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


@pytest.mark.parametrize("name", MODELS)
def test_adversarial_models(name):
    """Claim: means, norms and weighted means are correct for all these ways of using layers."""
    assert_right(randomized(MODELS[name]()), *batch())


@pytest.mark.parametrize("frozen", ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "d.bias", "a"])
def test_frozen_parameters_are_left_out(frozen):
    """Claim: a frozen parameter has no columns and does not contribute to norms; a layer with only frozen ones is left out."""
    layers = {"a": nn.Conv2d(4, 6, 3), "b": nn.Linear(4, 4), "c": nn.GroupNorm(2, 6), "d": nn.LayerNorm(4)}
    model = randomized(Net(lambda m, x: m.d(m.b(m.c(m.a(x)))), **layers))
    for name, p in model.named_parameters():
        p.requires_grad_(not (name == frozen or name.startswith(f"{frozen}.")))
    assert_right(model, *batch())
    assert ("a" in per_example_gradients(BENT, model, *batch())) == (frozen != "a")
    assert not dict(model.named_parameters())[f"{frozen}.weight" if frozen == "a" else frozen].requires_grad


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: nn.BatchNorm2d(4), "odd.weight, odd.bias (BatchNorm2d): training computes it from the whole batch"),
        (lambda: nn.SyncBatchNorm(4), "odd.weight, odd.bias (SyncBatchNorm): training computes it from the whole batch"),
        (lambda: nn.Embedding(5, 4, max_norm=1.0), "odd.weight (Embedding): it has max_norm; build it without"),
        (lambda: nn.Embedding(5, 4, sparse=True, scale_grad_by_freq=True), "(Embedding): it has scale_grad_by_freq, sparse"),
    ],
)
def test_parameters_without_gradients_of_examples_are_errors(model, named):
    """Claim: a trainable parameter of such a module raises an error with both names before any pass."""
    with pytest.raises(ValueError, match=re.escape(named)):
        PerExampleGradients(Net(lambda m, x: m.a(x), a=nn.Conv2d(4, 4, 3), odd=model()))
    frozen = Net(lambda m, x: m.a(x), a=nn.Conv2d(4, 4, 3), odd=model().requires_grad_(False))
    assert list(PerExampleGradients(frozen).layers) == ["a"]


def test_nothing_to_train_is_an_error():
    """Claim: a model with only frozen parameters raises an error."""
    with pytest.raises(ValueError, match="no trainable parameter"):
        PerExampleGradients(UNET().requires_grad_(False))


def functional() -> nn.Module:
    return Net(lambda m, x: F.linear(m.a(x), m.b.weight, m.b.bias), a=nn.Linear(6, 6), b=nn.Linear(6, 6))


def functional_besides() -> nn.Module:
    return Net(lambda m, x: m.b(m.a(x)) + m.b.bias, a=nn.Linear(6, 6), b=nn.Linear(6, 6))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (functional, r"b\.(weight|bias)"),
        (functional_besides, "b.bias"),
        (lambda: Net(lambda m, x: m.a(x) - m.a(x).mean(0), a=nn.Linear(6, 6)), r"a\.(weight|bias)"),
        (lambda: Net(lambda m, x: F.dropout(m.a(x), 0.5), a=nn.Linear(6, 6)), r"a\.(weight|bias)"),
    ],
    ids=["functional", "functional besides", "batch mean", "random"],
)
@pytest.mark.parametrize("K", [1, 2])
def test_what_hooks_cannot_see_is_found_at_the_first_capture(model, named, K):
    """Claim: weights used outside their module, interacting inputs and randomness in eval mode raise errors with the parameter."""
    with pytest.raises(RuntimeError, match=f"gradient of {named} is .* away from plain autograd"):
        PerExampleGradients(randomized(model())).capture(BENT, *batch(K=K))


def test_influence_between_examples_is_found_once_there_are_two():
    """Claim: after a first capture of a single input, the check runs again for a batch."""
    gradients = PerExampleGradients(randomized(Net(lambda m, x: m.a(x).tanh() - m.a(x).mean(0), a=nn.Linear(6, 6))))
    gradients.capture(BENT, *batch(1, 1))
    with pytest.raises(RuntimeError, match=r"a\.weight"):
        gradients.capture(BENT, *batch(2, 1))


def test_the_check_is_made_once():
    """Claim: later captures run the network only for their own inputs."""
    sizes: list[int] = []
    model = randomized(Net(lambda m, x: (sizes.append(len(x)), m.a(x))[1], a=nn.Conv2d(4, 4, 3)))
    gradients = PerExampleGradients(model)
    gradients.capture(BENT, *batch(3, 2)).mean()
    assert sizes == [4, 1, 1, 1, 1, 6]
    sizes.clear()
    gradients.capture(BENT, *batch(5, 1)).mean()
    assert sizes == [5]


def test_overwritten_inputs_are_errors():
    """Claim: an input changed in place after the call raises an error that names the layer."""
    model = randomized(Net(lambda m, x: overwritten(m.b, m.a(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6)))
    with pytest.raises(RuntimeError, match="input of b was changed in place"):
        PerExampleGradients(model).capture(BENT, *batch())


def overwritten(module: nn.Module, x: Tensor) -> Tensor:
    output = module(x)
    x.mul_(2)
    return output + x


@pytest.mark.parametrize(
    ("forward", "layer"),
    [
        (lambda m, x: m.a(x.flatten(0, 1)).unflatten(0, x.shape[:2]), nn.Linear(6, 6)),
        (lambda m, x: x + m.a(torch.ones(1, 6).to(x)), nn.Linear(6, 6)),
        (lambda m, x: x + m.a(torch.ones(6).to(x)), nn.Linear(6, 6)),
        (lambda m, x: torch.stack([m.a(one) for one in x]), nn.Conv2d(4, 4, 3)),
        (lambda m, x: m.a(x.flatten(0, 1).unsqueeze(1)).flatten(1), nn.Conv2d(1, 1, 3)),
        (lambda m, x: x + m.a(torch.ones(6, 6).to(x)), nn.LayerNorm((6, 6))),
    ],
    ids=["flattened", "broadcast", "1-d", "unbatched", "channels as batch", "only normalized dimensions"],
)
def test_layers_without_a_row_for_each_input_are_errors(forward, layer):
    """Claim: an input without the batch as its first dimension raises an error that names the layer."""
    with pytest.raises(ValueError, match=r"a \((Linear|Conv2d|LayerNorm)\) was called with an input"):
        PerExampleGradients(randomized(Net(forward, a=layer))).capture(BENT, *batch())


def test_other_mistakes_are_errors_that_say_so():
    """Claim: wrong shapes of costs or weights, non-finite gradients, and different numbers of examples and draws raise errors."""
    x0, draws = batch()

    @dataclass(frozen=True)
    class Mean(Measure):
        def __call__(self, denoise, x0, t, noise, condition=None):
            return denoise(x0, t).mean()

    @dataclass(frozen=True)
    class Infinite(Measure):
        def __call__(self, denoise, x0, t, noise, condition=None):
            return denoise(x0, t).flatten(1).sum(1) / 0

    gradients = PerExampleGradients(randomized(Net(lambda m, x: m.a(x), a=nn.Linear(6, 6))))
    with pytest.raises(ValueError, match=r"Mean returned costs \[\] for 4 rows"):
        gradients.capture(Mean(PROCESS), x0, draws)
    with pytest.raises(FloatingPointError, match=r"a\.weight is not finite at t = "):
        gradients.capture(Infinite(PROCESS), x0, draws)
    with pytest.raises(ValueError, match=r"weights \[3\] for draws \[3, 2\]"):
        gradients.capture(BENT, x0, draws).mean(torch.ones(3))
    with pytest.raises(ValueError, match="x0 has 2 examples, but the draws cover 3"):
        gradients.capture(BENT, x0[:2], draws)
    with pytest.raises(ValueError, match="x0 has 0 examples"):
        gradients.capture(BENT, x0[:0], draws.rows(slice(0)))
    with pytest.raises(ValueError, match="batch_size=0"):
        PerExampleGradients(UNET(), batch_size=0)


def state(model: nn.Module) -> list[object]:
    """Return everything that a pass must leave unchanged."""
    modules = [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    return [*modules, *((p.requires_grad, id(p.grad), p._version) for p in model.parameters())]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    """Claim: a pass leaves hooks, modes, ``requires_grad`` and ``.grad`` unchanged, even if it fails."""
    model = randomized(UNET()).train()
    model.mid_block.eval()
    model.conv_in.bias.requires_grad_(False)
    model.conv_in.weight.grad = torch.ones_like(model.conv_in.weight)
    x0, draws = batch(3, 2, size=8, channels=1)
    gradients = PerExampleGradients(model)
    gradients.capture(LOSS, x0, draws)
    before = state(model)

    @dataclass(frozen=True)
    class Failing(Measure):
        def __call__(self, denoise, x0, t, noise, condition=None):
            output = denoise(x0, t)
            output.register_hook(lambda gradient: 1 / 0)
            return output.flatten(1).sum(1)

    if fails:
        captured = gradients.capture(Failing(PROCESS), x0, draws)
        for ask in (captured.mean, captured.norms):
            with pytest.raises(ZeroDivisionError):
                ask()
    else:
        captured = gradients.capture(LOSS, x0, draws)
        captured.norms()
        captured.mean()
        assert bool((model.conv_in.weight.grad == 1).all())
    assert state(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_gradients_off(mode):
    """Claim: results are the same under ``no_grad`` and ``inference_mode``, and do not require gradients."""
    model = randomized(UNET())
    x0, draws = batch(2, 2, size=8, channels=1)
    expected = per_example_gradients(LOSS, model, x0, draws)
    with mode():
        found = per_example_gradients(LOSS, model, x0 * 1, draws)
    assert_close({k: v.clone() for k, v in found.items()}, expected)
    assert not any(g.requires_grad for g in (*found.values(), *expected.values()))


@pytest.mark.slow
def test_an_example_depends_neither_on_its_batch_nor_on_its_place():
    """Claim: gradients do not depend on the batch, the order or the passes up to rounding; the same call gives equal bits."""
    model = randomized(UNET())
    x0, draws = batch(6, 4, size=8, channels=1)
    expected = PerExampleGradients(model).capture(LOSS, x0, draws).mean(torch.reciprocal)
    again = PerExampleGradients(model).capture(LOSS, x0, draws).mean(torch.reciprocal)
    assert all(torch.equal(again[name], g) for name, g in expected.items())
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    shuffled = PerExampleGradients(model).capture(LOSS, x0[order], draws.rows(order)).mean(torch.reciprocal)
    assert_close(shuffled, {name: g[order] for name, g in expected.items()})
    for batch_size in (1, 3, 9, 23):
        found = PerExampleGradients(model, batch_size).capture(LOSS, x0, draws).mean(torch.reciprocal)
        assert_close(found, expected)
    alone = PerExampleGradients(model).capture(LOSS, x0[3:4], draws.rows(slice(3, 4))).mean(torch.reciprocal)
    assert_close(alone, {name: g[3:4] for name, g in expected.items()})


@pytest.mark.parametrize(
    ("batch_size", "passes"), [(12, [12]), (100, [12]), (11, [8, 4]), (4, [4, 4, 4]), (3, [2] * 6), (1, [1] * 12)]
)
def test_passes_stay_within_the_batch_size(batch_size, passes):
    """Claim: no pass exceeds the batch size; norms, and the mean normalized by them, take one pass over all inputs."""
    sizes: list[int] = []
    model = randomized(Net(lambda m, x: (sizes.append(len(x)), m.a(x))[1], a=nn.Conv2d(4, 4, 3)))
    gradients = PerExampleGradients(model, batch_size)
    x0, draws = batch(3, 4)
    gradients.capture(BENT, x0, draws)
    for ask in (lambda c: c.mean(), lambda c: c.norms(), lambda c: c.mean(torch.reciprocal), lambda c: c.mean(torch.ones(3, 4))):
        sizes.clear()
        ask(gradients.capture(BENT, x0, draws))
        assert sorted(sizes, reverse=True) == passes
    sizes.clear()
    captured = gradients.capture(BENT, x0, draws)
    captured.mean(1 / captured.norms())
    assert len(sizes) == (1 if len(passes) == 1 else 2 * len(passes))
    assert captured.norms() is captured.norms()
    assert captured.mean() is captured.mean()


def test_parameters_may_change_between_captures_but_not_within():
    """Claim: new parameters are used from the next capture on; computing anything more with an earlier capture raises an error."""
    model, other = randomized(UNET(), 0), randomized(UNET(), 1)
    x0, draws = batch(2, 2, size=8, channels=1)
    gradients = PerExampleGradients(model)
    earlier = gradients.capture(LOSS, x0, draws)
    mean = earlier.mean()
    model.load_state_dict(other.state_dict())
    assert earlier.mean() is mean
    with pytest.raises(RuntimeError, match="parameters have changed since the capture"):
        earlier.norms()
    assert_close(gradients.capture(LOSS, x0, draws).mean(), per_example_gradients(LOSS, other, x0, draws))


def test_single_precision():
    """Claim: float32 agrees with float64 up to rounding; results are float32."""
    model = randomized(UNET())
    x0, draws = batch(3, 4, size=8, channels=1)
    expected = PerExampleGradients(model).capture(LOSS, x0, draws).mean()
    found = PerExampleGradients(copy.deepcopy(model).float()).capture(LOSS, x0, draws).mean()
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert_close({name: g.double() for name, g in found.items()}, expected, tolerance=1e-4)


@pytest.mark.parametrize("asked", ["inside", "inside, norms first", "outside"])
def test_autocast(asked):
    """Claim: under bfloat16 autocast, gradients are those of the rounded network, in float32, inside and outside of the context."""
    model = randomized(UNET()).float()
    x0, draws = batch(3, 4, size=8, channels=1)
    exact = PerExampleGradients(model).capture(LOSS, x0, draws).mean()
    with torch.autocast("cpu", torch.bfloat16):
        captured = PerExampleGradients(model).capture(LOSS, x0, draws)
        rounded = {name: g.mean(1) for name, g in draw_gradients(LOSS, model, x0.float(), draws).items()}
        if asked == "inside, norms first":
            captured.norms()
        if asked != "outside":
            captured.mean()
    found = captured.mean()
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert 1e-4 < distance(found, exact) < 0.05
    assert distance(as_parameters(model, found), rounded) < 0.02


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    difference = torch.stack([(a[name] - g).norm() for name, g in b.items()]).norm()
    return float(difference / torch.stack([g.norm() for g in b.values()]).norm())


@dataclass(frozen=True)
class Remembered(Measure):
    """A cost that remembers the outputs of the network."""

    outputs: list[weakref.ref] = field(default_factory=list)

    def __call__(self, denoise, x0, t, noise, condition=None):
        output = denoise(x0, t)
        self.outputs.append(weakref.ref(output))
        return output.flatten(1).square().sum(1)


@pytest.mark.parametrize("K", [1, 2])
def test_gradients_and_graphs_are_freed_at_once(K):
    """Claim: captured gradients and graphs are in no reference cycle, so their memory is free without a garbage collection.

    Garbage collection would never free graphs, because it does not see the hooks that they hold.
    """
    model = randomized(Net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1)))
    x0, draws = batch(K=K)
    measure = Remembered(PROCESS)
    gc.disable()
    try:
        captured = PerExampleGradients(model).capture(measure, x0, draws)
        block, masked = weakref.ref(captured.mean()["a"]), captured.where(torch.ones(draws.timestep.shape, dtype=torch.bool))
        assert_close(masked.mean(), captured.mean())
        captured.norms()
        assert measure.outputs
        assert [output() for output in measure.outputs] == [None] * len(measure.outputs)
        del captured, masked
        assert block() is None
    finally:
        gc.enable()
