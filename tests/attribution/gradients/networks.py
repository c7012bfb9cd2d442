"""Small networks of many kinds, and the table of what works with them: ``python -m tests.attribution.gradients.networks``."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from attribution.curvature.pseudo_gradients import kronecker_modules
from attribution.diffusion import denoiser
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Loss
from tests.worlds import PROCESS

LOSS = Loss(PROCESS)
TOLERANCE = 1e-10


class Called(nn.Module):
    """``network``, called as ``call(network, x_t, t)``."""

    def __init__(self, network: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.network, x, t)


def words(x: Tensor) -> Tensor:
    """Embeddings of three words ``[N, 3, 8]`` that depend on the image."""
    return x.flatten(1)[:, :24].unflatten(1, (3, 8)).sin()


def unet() -> nn.Module:
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )  # fmt: skip
    return Called(network, lambda m, x, t: m(x, t, class_labels=t % 3).sample)


def conditional_unet() -> nn.Module:
    network = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Called(network, lambda m, x, t: m(x, t, words(x)).sample)


def dit() -> nn.Module:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    return Called(network, lambda m, x, t: m(x, t, class_labels=t % 3).sample)


def pixart() -> nn.Module:
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2, sample_size=8, patch_size=2,
        cross_attention_dim=8, caption_channels=8, norm_num_groups=1, use_additional_conditions=False,
    )  # fmt: skip
    extra = {"resolution": None, "aspect_ratio": None}
    return Called(network, lambda m, x, t: m(x, words(x), t, added_cond_kwargs=extra).sample)


def sd3() -> nn.Module:
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8, pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    return Called(network, lambda m, x, t: m(x, words(x), words(x)[:, 0], t).sample)


def convolutions() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.ConvTranspose2d(6, 4, 2, stride=2)
    )
    return Called(network, lambda m, x, t: m(x))


class Tokens(nn.Module):
    """A transformer of torch on the pixels of an image, with learned places."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 64, 4))
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.encoder(x.flatten(2).mT + self.place).mT.view_as(x)


def normalized() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    return Called(network, lambda m, x, t: m(x))


def adapted() -> nn.Module:
    from attribution.models.lora import LoRA

    return LoRA(model=unet, targets=("to_q", "to_k", "to_v"), rank=2, alpha=2.0)()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "`UNet2DModel` of diffusers, with classes": unet,
    "`UNet2DConditionModel`": conditional_unet,
    "`DiTTransformer2DModel`": dit,
    "`PixArtTransformer2DModel`": pixart,
    "`SD3Transformer2DModel`": sd3,
    "Conv2d, GroupNorm and ConvTranspose2d": convolutions,
    "`nn.TransformerEncoder` with learned places": Tokens,
    "LoRA adapters of a U-Net (`model=lora`)": adapted,
    "any with BatchNorm": normalized,
}
HEADER = ["| network | gradients: TracIn, ReTrac, TRAK, LiSSA, ... | K-FAC, EK-FAC |", "|---|---|---|"]


def row(name: str) -> str:
    """The row of a network, from gradients of three images at two draws and a loop of ``backward`` in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NETWORKS[name]().double().eval()
        for p in network.parameters():
            p.data = 0.3 * torch.randn_like(p)
    x0, draws = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double(), Uniform(2).draw(
        "networks", torch.arange(3), PROCESS.T
    )  # fmt: skip
    try:
        gradients = PerExampleGradients(network)
    except ValueError:
        return f"| {name} | refused | refused |"
    error = largest_error(network, gradients, x0, draws)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    covered = sum(p.numel() for _, layer in kronecker_modules(gradients).values() for p in layer.parameters.values())
    works = "all parameters" if error < TOLERANCE else f"wrong by {error:.0e}"
    return f"| {name} | {works} | {100 * covered / trained:.0f} % of the parameters |"


def largest_error(network: nn.Module, gradients: PerExampleGradients, x0: Tensor, draws: Draws) -> float:
    """The largest difference of a gradient from autograd, relative to the norm of the whole gradient."""
    found, worst = gradients.capture(LOSS, x0, draws).mean(), 0.0
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for i in range(len(x0)):
        one = slice(i, i + 1)
        inputs = LOSS.inputs(x0[one], draws.rows(one), None)
        cost = LOSS(denoiser(network), *inputs).mean()
        truth = dict(zip(trained, torch.autograd.grad(cost, list(trained.values()), materialize_grads=True), strict=True))
        ours = {name: g for key, layer in gradients.layers.items() for name, g in layer.split(found[key][i])}
        assert ours.keys() == truth.keys()
        norm = torch.stack([g.norm() for g in truth.values()]).norm()
        worst = max(worst, *(float((ours[name] - g).norm() / norm) for name, g in truth.items()))
    return worst


if __name__ == "__main__":
    print("\n".join([*HEADER, *map(row, NETWORKS)]))
