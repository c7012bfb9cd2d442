"""Tiny networks of diffusers that take a condition."""

import functools

import diffusers

CLASSES, LENGTH, SIZE, POOLED = 3, 3, 4, 5
"""The number of classes, the shape of an embedding, and the size of a pooled one."""

DIT = functools.partial(
    diffusers.DiTTransformer2DModel, sample_size=8, patch_size=4, in_channels=1, num_attention_heads=2, attention_head_dim=4,
    num_layers=2, num_embeds_ada_norm=CLASSES, norm_num_groups=4,
)  # fmt: skip
LEARNED_VARIANCE = functools.partial(DIT, out_channels=2)
EMBEDDED_UNET = functools.partial(
    diffusers.UNet2DConditionModel, sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=SIZE, attention_head_dim=4, norm_num_groups=4,
)  # fmt: skip
PIXART = functools.partial(
    diffusers.PixArtTransformer2DModel, sample_size=8, patch_size=4, in_channels=1, out_channels=2, num_attention_heads=2,
    attention_head_dim=4, num_layers=1, cross_attention_dim=8, caption_channels=SIZE, norm_num_groups=4,
    use_additional_conditions=False,
)  # fmt: skip
SD3 = functools.partial(
    diffusers.SD3Transformer2DModel, sample_size=8, patch_size=4, in_channels=1, out_channels=1, num_layers=1, attention_head_dim=4,
    num_attention_heads=2, joint_attention_dim=SIZE, caption_projection_dim=8, pooled_projection_dim=POOLED, pos_embed_max_size=2,
)  # fmt: skip
