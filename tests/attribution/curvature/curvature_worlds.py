"""Small networks with given parameters, as if they had been trained, and slow Kronecker factors."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from attribution.curvature import KFAC
from attribution.diffusion import denoiser
from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.images.draws import Draws, DrawScheme, Uniform
from attribution.measurements import Measure
from attribution.nodes import Get
from attribution.training import Recorded, TrainingRecord
from tests.worlds import OBJECTIVE, PROCESS, UNET, Blobs

DRAWS = Uniform(2, seed=4)
SIZES = {"embedded": 4, "shared": 4, "perceptron": 4, "linear": 4}


def curvature(kind: Any = KFAC, **changes: Any) -> Any:
    """A curvature over ``DRAWS``, with four inputs per pass."""
    return kind(**{"draws": DRAWS, "execution": Execution(device="cpu", batch_size=4), **changes})


def blobs(name: str, n: int = 3) -> Blobs:
    """Images of the size that the network ``name`` takes."""
    return Blobs(n=n, size=SIZES.get(name, 8))


def draws_of(train: Blobs, get: Get, scheme: DrawScheme = DRAWS, flips: bool = True) -> Draws:
    """The draws of the curvature."""
    return scheme.draw("curvature", get(train).ids(), PROCESS.T, flips)


class Net(nn.Module):
    """Named modules and a forward pass over ``(modules, x)``; the timestep does not matter."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], modules: dict[str, nn.Module]):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.run(self, x)


def convolutions() -> nn.Module:
    """Convolutions with padding, strides, asymmetric padding, non-square and pointwise kernels, and a norm."""

    def forward(m: Net, x: Tensor) -> Tensor:
        h = torch.tanh(m.norm(m.padded(x)))
        h = torch.tanh(m.strided(h))
        h = torch.tanh(m.wide(h) + m.point(h))
        return m.last(F.interpolate(h, scale_factor=2.0))

    return Net(
        forward,
        {
            "padded": nn.Conv2d(1, 4, 3, padding=1),
            "norm": nn.GroupNorm(2, 4),
            "strided": nn.Conv2d(4, 3, 3, stride=2, padding=1),
            "wide": nn.Conv2d(3, 3, (5, 3), padding="same", bias=False),
            "point": nn.Conv2d(3, 3, 1),
            "last": nn.Conv2d(3, 1, (3, 1), padding=(1, 0), padding_mode="circular"),
        },
    )


def shared() -> nn.Module:
    """A Linear layer over positions, called twice with different numbers of positions and again through a tied module."""
    linear, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight, tied.bias = linear.weight, linear.bias

    def forward(m: Net, x: Tensor) -> Tensor:
        h = torch.tanh(m.linear(x.reshape(len(x), -1, 4)))
        h = h + torch.tanh(m.linear(h[:, :3])).sum(1, keepdim=True)
        return m.out(m.tied(h).flatten(1)).view_as(x)

    return Net(forward, {"linear": linear, "tied": tied, "out": nn.Linear(16, 16, bias=False)})


def perceptron() -> nn.Module:
    """No weight sharing: Linear layers on whole images of 4 × 4."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return m.second(torch.tanh(m.first(x.flatten(1)))).view_as(x)

    return Net(forward, {"first": nn.Linear(16, 5), "second": nn.Linear(5, 16)})


def linear() -> nn.Module:
    """A linear denoiser of images of 4 × 4."""
    return Net(lambda m, x: m.only(x.flatten(1)).view_as(x), {"only": nn.Linear(16, 16)})


def embedded() -> nn.Module:
    """An Embedding of three signs at four places, called twice, beside a Linear layer and a learned table."""

    def forward(m: Any, x: Tensor) -> Tensor:
        signs = 1 + x.flatten(1)[:, :4].sign().long()
        h = torch.tanh(m.embedding(signs) + m.embedding(signs.flip(1)[:, :1])) + m.scale.weight
        return m.out(h.flatten(1)).view_as(x)

    return Net(forward, {"embedding": nn.Embedding(3, 5), "scale": nn.RMSNorm(5), "out": nn.Linear(20, 16)})


def unet() -> nn.Module:
    """diffusers' U-Net."""
    return UNET()


def randomized(builder: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Parameters drawn at random, in float64 and eval mode."""
    model, generator = builder().double().eval(), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.4
    return model


@dataclass(frozen=True)
class Given(Recorded):
    """A "training" that ends with given parameters."""

    seed: int = 0

    def compute(self, get: Get) -> TrainingRecord:
        folder = get.workspace(self)
        save_file(self.parameters(get), folder / "average.safetensors")
        return TrainingRecord(folder)

    def parameters(self, get: Get) -> dict[str, Tensor]:
        """The state of the network, with separate memory for each tensor."""
        return {name: p.clone() for name, p in self.model().state_dict().items()}


def given(builder: Callable[[], nn.Module], objective: Measure = OBJECTIVE) -> Given:
    """The randomized network as a record."""
    return Given(functools.partial(randomized, builder), objective)


def inputs(measure: Measure, train: ImageSet, draws: Draws, get: Get) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The inputs of the measure for one draw of one image at a time, in float64."""
    x0 = get(train).x0().double()
    for i in range(len(x0)):
        x, t, noise, _ = measure.inputs(x0[i : i + 1], draws.rows(slice(i, i + 1)))
        yield from ((x[k : k + 1], t[k : k + 1], noise[k : k + 1]) for k in range(len(t)))


def factor_terms(model: nn.Module, measure: Measure, row: tuple[Tensor, Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs ``[R, in (+1)]`` and output gradients ``[R, out]`` of every Linear, Conv2d and Embedding for one input of the network.

    Hooks keep the outputs, autograd differentiates the cost by them, patches are cut out position by position.
    """
    first = {}  # parameter → the name of the first module that has it
    seen: dict[str, list[tuple[nn.Module, Tensor, Tensor]]] = defaultdict(list)

    def keep(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name].append((module, args[0].detach(), output))

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            home = first.setdefault(module.weight, name)
            handles.append(module.register_forward_hook(functools.partial(keep, home)))
    cost = measure(denoiser(model), *row).sum()
    for handle in handles:
        handle.remove()
    terms = {}
    for name, calls in seen.items():
        gradients = torch.autograd.grad(cost, [output for _, _, output in calls], retain_graph=True)
        a = torch.cat([_patches(module, x[0]) for module, x, _ in calls])
        b = torch.cat([_positions(module, g[0]) for (module, _, _), g in zip(calls, gradients, strict=True)])
        terms[name] = a, b
    return terms


def _positions(module: nn.Module, b: Tensor) -> Tensor:
    return b.flatten(1).T if isinstance(module, nn.Conv2d) else b.reshape(-1, b.shape[-1])


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Embedding):
        return torch.stack([torch.eye(module.num_embeddings, dtype=torch.float64)[i] for i in x.flatten()])
    if isinstance(module, nn.Conv2d):
        (kh, kw), (sy, sx) = module.kernel_size, module.stride
        if module.padding == "same":
            pads = ((kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2)
        else:
            py, px = module.padding
            pads = (px, px, py, py)
        x = F.pad(x[None], pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)[0]
        H, W = (x.shape[1] - kh) // sy + 1, (x.shape[2] - kw) // sx + 1
        rows = torch.stack(
            [x[:, i * sy : i * sy + kh, j * sx : j * sx + kw].flatten() for i in range(H) for j in range(W)]  # channel, row, column
        )
    else:
        rows = x.reshape(-1, x.shape[-1])
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1) if module.bias is not None else rows
