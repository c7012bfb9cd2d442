"""Compression of query gradients, so that more queries fit into memory during a pass (K-FAC influence, §3.2 and fig. 6).

The matrix ``[out, in]`` of each layer and query is compressed separately. Leading dimensions (draws, bins, queries) stay in front
of every part, so that parts can be stacked and indexed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attribution.checks import FieldError, whole
from attribution.execution import FLOAT32_BYTES


@dataclass(frozen=True, kw_only=True)
class Compression(ABC):
    """A lossy or lossless encoding of matrices.

    ``preconditioned=True`` compresses the gradient divided by Λ + λ, as the paper does. ``False`` compresses whitened coordinates
    (``estimators.held_queries``), in which the error of a coefficient has the same weight for every eigenvalue in Λ.
    """

    VERSION: ClassVar[int] = 1

    preconditioned: bool = False

    @abstractmethod
    def compress(self, x: Tensor) -> dict[str, Tensor]:
        """Encode ``x [.., out, in]`` as named parts, each with the leading dimensions of ``x``."""

    @abstractmethod
    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Decode parts with leading dimensions ``..`` to matrices ``[.., *shape]``, float32."""

    @abstractmethod
    def size(self, shape: Sequence[int]) -> int:
        """Return the bytes that one compressed matrix of this shape takes."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The name of this compression in reports."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The family of this compression, without its size: the same for all ``bits`` or all ``rank``."""


@dataclass(frozen=True, kw_only=True)
class Uncompressed(Compression):
    """No compression: the matrices in float32."""

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
        return FLOAT32_BYTES * math.prod(shape)


@dataclass(frozen=True, kw_only=True)
class Quantized(Compression):
    """Affine quantization ``x ≈ low + step · code`` with ``bits`` bits per code; each matrix has its own range."""

    NAME = "Quantized"
    VERSION = 1

    bits: Literal[4, 8, 16]

    def __post_init__(self):
        if self.bits not in (4, 8, 16):
            raise FieldError(self, "bits", "choose 4, 8 or 16")

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    @property
    def kind(self) -> str:
        return "quantized, preconditioned" if self.preconditioned else "quantized"

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
        return -(-math.prod(shape) * self.bits // 8) + 2 * FLOAT32_BYTES

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
    """The best approximation of rank ``rank`` in the Frobenius norm; matrices that would not become smaller stay as they are."""

    NAME = "TruncatedSVD"
    VERSION = 1

    rank: int

    def __post_init__(self):
        whole(self, "rank", least=1)

    @property
    def label(self) -> str:
        return f"svd rank {self.rank}"

    @property
    def kind(self) -> str:
        return "svd, preconditioned" if self.preconditioned else "svd"

    def compress(self, x: Tensor) -> dict[str, Tensor]:
        if not self._is_smaller(x.shape[-2:]):
            return {"x": x.float()}
        U, S, Vh = torch.linalg.svd(x.float(), full_matrices=False)
        return {"US": (U * S.unsqueeze(-2))[..., : self.rank].contiguous(), "Vh": Vh[..., : self.rank, :].contiguous()}

    def restore(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        return parts["US"] @ parts["Vh"] if self._is_smaller(shape) else parts["x"]

    def size(self, shape: Sequence[int]) -> int:
        return FLOAT32_BYTES * (self.rank * sum(shape) if self._is_smaller(shape) else math.prod(shape))

    def _is_smaller(self, shape: Sequence[int]) -> bool:
        """Whether the two factors have fewer numbers than a matrix of this shape."""
        return self.rank * sum(shape) < math.prod(shape)
