"""Compression of query gradients (K-FAC influence, §3.2 and fig. 6): what is held of every query during a pass.

A layer's matrix ``[out, in]`` of each query is compressed by itself; leading dimensions (draws, bins, queries) stay in front of
every part, so that parts can be stacked and indexed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attribution.checks import whole

FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Compression(ABC):
    """A way to hold matrices in fewer bytes.

    ``preconditioned``: in the coordinates in which the paper compresses, of the gradient divided by Λ + λ, instead of whitened ones
    (``estimators.influence_nodes``), where the error of a coefficient weighs alike whatever its Λ.
    """

    VERSION: ClassVar[int] = 1

    preconditioned: bool = False

    @abstractmethod
    def compress(self, x: Tensor) -> dict[str, Tensor]:
        """``x [.., out, in]`` as parts, each with the leading dimensions of ``x``."""

    @abstractmethod
    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Parts with leading dimensions ``..`` as matrices ``[.., *shape]``, float32."""

    @abstractmethod
    def size(self, shape: Sequence[int]) -> int:
        """Bytes of one matrix."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What reports call it."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it has in common with others of another size."""


@dataclass(frozen=True, kw_only=True)
class Uncompressed(Compression):
    """float32 as it is."""

    NAME = "Uncompressed"
    VERSION = 1

    @property
    def label(self) -> str:
        return "none"

    @property
    def kind(self) -> str:
        return "none"

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x.float()}

    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        return parts["x"]

    def size(self, shape: Sequence[int]) -> int:
        return FLOAT * math.prod(shape)


@dataclass(frozen=True, kw_only=True)
class Quantized(Compression):
    """``x ≈ low + step · code``, ``bits`` a code: affine, with a range of its own for each matrix."""

    NAME = "Quantized"
    VERSION = 1

    bits: Literal[4, 8, 16]

    def __post_init__(self):
        if self.bits not in (4, 8, 16):
            raise ValueError(f"compression.bits={self.bits}: choose 4, 8 or 16")

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    @property
    def kind(self) -> str:
        return "quantised, preconditioned" if self.preconditioned else "quantised"

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        x = x.float().flatten(-2)
        low, high = x.aminmax(dim=-1, keepdim=True)
        step = (high - low) / (2**self.bits - 1)
        code = ((x - low) / step.clamp(min=torch.finfo(x.dtype).tiny)).round()
        return {"code": self._pack(code), "low": low, "step": step}

    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        code = self._unpack(parts["code"])[..., : math.prod(shape)]
        return torch.addcmul(parts["low"], code, parts["step"]).unflatten(-1, shape)

    def size(self, shape: Sequence[int]) -> int:
        return -(-math.prod(shape) * self.bits // 8) + 2 * FLOAT

    def _pack(self, code: Tensor) -> Tensor:
        if self.bits == 16:
            return (code - 2**15).to(torch.int16)
        code = code.to(torch.uint8)
        if self.bits == 8:
            return code
        if code.shape[-1] % 2:
            code = torch.nn.functional.pad(code, (0, 1))
        return code[..., ::2] | code[..., 1::2] << 4

    def _unpack(self, code: Tensor) -> Tensor:
        if self.bits == 16:
            return code.float() + 2**15
        return code.float() if self.bits == 8 else torch.stack([code & 15, code >> 4], -1).flatten(-2).float()


@dataclass(frozen=True, kw_only=True)
class TruncatedSVD(Compression):
    """The best approximation of ``rank`` in the Frobenius norm; matrices that it would not make smaller stay as they are."""

    NAME = "TruncatedSVD"
    VERSION = 1

    rank: int

    def __post_init__(self):
        whole("compression.rank", self.rank, 1)

    @property
    def label(self) -> str:
        return f"svd rank {self.rank}"

    @property
    def kind(self) -> str:
        return "svd, preconditioned" if self.preconditioned else "svd"

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        if not self._pays(x.shape[-2:]):
            return {"x": x.float()}
        U, S, Vh = torch.linalg.svd(x.float(), full_matrices=False)
        return {"US": (U * S.unsqueeze(-2))[..., : self.rank].contiguous(), "Vh": Vh[..., : self.rank, :].contiguous()}

    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        return parts["US"] @ parts["Vh"] if self._pays(shape) else parts["x"]

    def size(self, shape: Sequence[int]) -> int:
        return FLOAT * (self.rank * sum(shape) if self._pays(shape) else math.prod(shape))

    def _pays(self, shape: Sequence[int]) -> bool:
        return self.rank * sum(shape) < math.prod(shape)
