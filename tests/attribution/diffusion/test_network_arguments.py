"""Which arguments of a network's ``forward`` get the image, the time and the condition."""

import functools

import diffusers
import pytest
import torch
from torch import nn

from attribution.diffusion import denoiser
from attribution.diffusion.denoiser import without_label_dropout
from tests.conditional_networks import CLASSES, DIT, EMBEDDED_UNET, LEARNED_VARIANCE, LENGTH, PIXART, POOLED, SD3, SIZE
from tests.worlds import UNET

X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 70])
CLASS, NULL = torch.tensor([1, 2]), torch.tensor([-1, 2])
EMBEDDING = torch.randn(2, LENGTH, SIZE, generator=torch.Generator().manual_seed(1))
VECTOR = torch.randn(2, 1, POOLED, generator=torch.Generator().manual_seed(2))
WITH_POOLED = torch.cat([EMBEDDING, VECTOR.expand(2, LENGTH, POOLED)], 2)
CLASS_UNET = functools.partial(UNET, num_class_embeds=CLASSES + 1)


def network(build):
    torch.manual_seed(0)
    return build().eval()


class Swapped(nn.Module):
    """Has the condition before the time, which is found by its name."""

    def forward(self, x, condition, timestep):
        return x * condition[:, None, None, None] + timestep[:, None, None, None]


class NamedTime(nn.Module):
    """Has the time in the second place, under the name that it has in diffusers."""

    def forward(self, x, timestep, kind):
        return x * kind[:, None, None, None] + timestep[:, None, None, None]


class Own(nn.Module):
    """Has arguments in the order of the convention, under other names."""

    null_class = 7

    def forward(self, noisy, level, kind=None):
        return noisy * level[:, None, None, None] + (0 if kind is None else kind[:, None, None, None])


class Bare(nn.Module):
    def forward(self, x, t):
        return x


@pytest.mark.parametrize(
    ("build", "condition", "direct"),
    [
        (CLASS_UNET, CLASS, lambda net: net(X, T, CLASS).sample),
        (CLASS_UNET, NULL, lambda net: net(X, T, torch.tensor([CLASSES, 2])).sample),
        (DIT, CLASS, lambda net: net(X, T, CLASS).sample),
        (DIT, NULL, lambda net: net(X, T, torch.tensor([CLASSES, 2])).sample),
        (EMBEDDED_UNET, EMBEDDING, lambda net: net(X, T, EMBEDDING).sample),
        (EMBEDDED_UNET, EMBEDDING[:, 0], lambda net: net(X, T, EMBEDDING[:, :1]).sample),
        (PIXART, EMBEDDING, lambda net: net(X, EMBEDDING, T, added_cond_kwargs={}).sample[:, :1]),
        (SD3, WITH_POOLED, lambda net: net(X, EMBEDDING, VECTOR[:, 0], T).sample),
        (Swapped, CLASS, lambda net: net(X, CLASS, T)),
        (NamedTime, CLASS, lambda net: net(X, T, CLASS)),
        (Own, NULL, lambda net: net(X, T, torch.tensor([7, 2]))),
        (Own, None, lambda net: net(X, T)),
        (Bare, None, lambda net: X),
    ],
    ids=lambda value: getattr(getattr(value, "func", value), "__name__", ""),
)
@torch.no_grad()
def test_inputs_go_to_the_arguments_of_their_names(build, condition, direct):
    """Claim: the output is that of a direct call; no class is the last row of a table of classes, or ``null_class``."""
    net = network(build)
    assert torch.equal(denoiser(net)(X, T, condition), direct(net))


@torch.no_grad()
def test_of_a_learned_variance_only_the_prediction_is_taken():
    """Claim: a network configured with twice the channels gives the first half; the state of a call may be given."""
    net = network(LEARNED_VARIANCE)
    assert net(X, T, CLASS).sample.shape == (2, 2, 8, 8)
    output = denoiser(net, dict(net.named_parameters()))(X, T, CLASS)
    assert torch.equal(output, net(X, T, CLASS).sample[:, :1])


FLUX = functools.partial(
    diffusers.FluxTransformer2DModel, in_channels=1, num_layers=1, num_single_layers=0, attention_head_dim=8, num_attention_heads=1,
    joint_attention_dim=SIZE, pooled_projection_dim=POOLED, axes_dims_rope=(2, 2, 4),
)  # fmt: skip


@pytest.mark.parametrize(
    ("build", "condition", "said"),
    [
        (Bare, CLASS, r"the images have a condition, but Bare\.forward takes none"),
        (UNET, CLASS, "the images have classes, but UNet2DModel has no table of them: set num_class_embeds"),
        (CLASS_UNET, None, r"UNet2DModel needs a condition of each image \(class_labels\), but the images have none"),
        (Swapped, None, r"Swapped needs a condition of each image \(condition\), but the images have none"),
        (NamedTime, None, r"NamedTime needs a condition of each image \(kind\), but the images have none"),
        (DIT, None, r"DiTTransformer2DModel needs a condition of each image \(class_labels\)"),
        (EMBEDDED_UNET, None, r"UNet2DConditionModel needs a condition of each image \(encoder_hidden_states\)"),
        (EMBEDDED_UNET, CLASS, r"the images have classes, but UNet2DConditionModel takes embeddings"),
        (PIXART, CLASS, r"the images have classes, but PixArtTransformer2DModel takes embeddings"),
        (DIT, EMBEDDING, r"the images have embeddings B×3×4, but DiTTransformer2DModel takes classes"),
        (CLASS_UNET, EMBEDDING[:, 0], r"the images have embeddings B×4, but UNet2DModel takes classes"),
        (UNET, EMBEDDING[:, 0], r"the images have embeddings B×4, but UNet2DModel takes none: use a network with encoder_hidden"),
        (SD3, None, r"SD3Transformer2DModel needs a condition of each image \(pooled_projections\)"),
        (SD3, CLASS, r"the images have classes, but SD3Transformer2DModel takes embeddings"),
        (
            SD3,
            EMBEDDING,
            r"B×3×4, but SD3Transformer2DModel takes sequences of 4 numbers, each followed by the 5 .*: use embeddings B×L×9",
        ),
        (SD3, WITH_POOLED[:, 0], r"the images have embeddings B×9, but SD3Transformer2DModel takes sequences of 4 numbers"),
        (FLUX, WITH_POOLED, r"FluxTransformer2DModel\.forward needs img_ids, which denoisers are not called with"),
    ],
)
def test_what_does_not_fit_is_refused(build, condition, said):
    """Claim: the sentence says what the network takes, what the images have, and what to do."""
    with pytest.raises(ValueError, match=said):
        denoiser(network(build))(X, T, condition)


def test_label_dropout_inside_a_network_is_switched_off():
    """Claim: in training mode DiT drops classes at random; without its own dropout the output is that of eval mode."""
    net = network(DIT)
    with torch.no_grad():
        expected = net(X, T, CLASS).sample
        net.train()
        assert any(not torch.equal(net(X, T, CLASS).sample, expected) for _ in range(50))
        without_label_dropout(net)
        assert all(torch.equal(net(X, T, CLASS).sample, expected) for _ in range(50))
