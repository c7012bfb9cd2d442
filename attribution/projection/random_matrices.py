"""Random matrices whose rows can be generated independently: entry (i, j) is a function of (key, i, j) (``images.philox``).

The first n columns of a matrix are equal to the matrix with n columns. Values are float32 or integers, before any cast.
"""

import torch
from torch import Tensor

from attribution.images import philox

SHARED = ("attribution.images.philox",)

NORMALS, SIGNS = 4, 128
"""How many normal numbers and how many signs one counter of philox gives."""

_WORD = 0xFFFFFFFF
_SIGN, _ONE = -(2**31), 0x3F800000  # the sign bit of a float32, and the bits of 1.0


def rows_at_once(counters: int, entries: int, device: torch.device) -> int:
    """Return how many rows to generate at once, where each row takes ``counters`` counters of philox and has ``entries`` entries.

    On a CPU, there are enough rows to hide the overhead of calls, and few enough that temporaries stay in the cache.
    """
    most_counters, most_entries = (2**16, 2**21) if device.type == "cpu" else (2**24, 2**26)
    return max(1, min(most_counters // counters, most_entries // entries))


def normal_rows(key: tuple[int, int], rows: Tensor, columns: int) -> Tensor:
    """Return standard normal numbers ``[len(rows), columns]``, float32."""
    zero = torch.zeros_like(rows)
    low, high, *_ = philox.philox(*key, (rows & _WORD, rows >> 32, zero, zero))
    return philox.normal(low | (high << 32), columns)


def sign_rows(key: tuple[int, int], rows: Tensor, columns: int) -> Tensor:
    """Return fair ±1 ``[len(rows), columns]``, float32, from one random bit each."""
    position = torch.arange(-(-columns // SIGNS), device=rows.device)
    row, position = torch.broadcast_tensors(rows.unsqueeze(1), position)
    words = philox.philox(*key, (row & _WORD, row >> 32, position, torch.zeros_like(row)))
    words = torch.stack(words, -1).to(torch.int32).unsqueeze(-1)  # wraps around: all 32 bits are kept
    bits = (words << torch.arange(32, device=rows.device, dtype=torch.int32)).bitwise_and_(_SIGN)
    return bits.bitwise_or_(_ONE).view(torch.float32).flatten(1)[:, :columns]


def hashed_rows(key: tuple[int, int], rows: Tensor, hashes: int, buckets: int) -> tuple[Tensor, Tensor]:
    """Return a bucket and a fair ±1 for each row and each of its ``hashes``: both int64, ``[len(rows), hashes]``.

    A bucket is a 63-bit number mod ``buckets``. Taken mod a divisor of ``buckets``, it is the bucket for that smaller number.
    """
    row, number = torch.broadcast_tensors(rows.unsqueeze(1), torch.arange(hashes, device=rows.device))
    low, high, sign, _ = philox.philox(*key, (row & _WORD, row >> 32, number, torch.zeros_like(row)))
    return (low | ((high >> 1) << 32)) % buckets, 1 - 2 * (sign & 1)
