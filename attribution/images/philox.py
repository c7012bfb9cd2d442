"""Counter-based random numbers: a pure function from (key, counter) to bits, the same on every device and in every order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written in torch integer arithmetic so
that one call computes a whole batch of streams on any device. With a generator that has state (torch.Generator), a number would
depend on how many numbers were drawn before it.
"""

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def key(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit key words from any identifying parts, e.g. ``key(seed, "query")``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox(key0: Tensor | int, key1: Tensor | int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words (held in int64) per counter; key and counter words broadcast against each other.

    A product of two 32-bit words overflows int64 to the right bits in two's complement, so masking after the shift is exact.
    """
    c0, c1, c2, c3 = counter
    for r in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        round_key0, round_key1 = (key0 + r * _WEYL[0]) & _MASK, (key1 + r * _WEYL[1]) & _MASK
        c0 = ((product1 >> 32) & _MASK) ^ c1 ^ round_key0
        c2 = ((product0 >> 32) & _MASK) ^ c3 ^ round_key1
        c1, c3 = product1 & _MASK, product0 & _MASK
    return c0, c1, c2, c3


def normal(seed: Tensor, size: int) -> Tensor:
    """Standard normal numbers, ``[..., size]`` float32: a function of each 64-bit ``seed [...]`` and the position only.

    Box-Muller on the 32-bit words; ``size`` numbers are a prefix of any longer request with the same seed.
    """
    position = torch.arange(-(-size // 4), device=seed.device)
    zero = torch.zeros_like(position)
    seed = seed.unsqueeze(-1)
    words = philox(seed & _MASK, (seed >> 32) & _MASK, (position, zero, zero, zero))
    pairs = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = torch.sqrt(-2.0 * torch.log((radius_word.float() + 0.5) * 2.0**-32))
        angle = angle_word.float() * (2.0 * torch.pi * 2.0**-32)
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(-2)[..., :size]
