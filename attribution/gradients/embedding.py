"""Per-example gradients of nn.Embedding: the output gradients, added to the rows that the input names."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.gradients.layers import Layer

SHARED = ("attribution.gradients.layers",)


class EmbeddingLayer(Layer):
    """The gradients of an ``nn.Embedding`` on integers ``[N, ...]``: a Linear layer without bias on one-hot inputs.

    The block is therefore ``[embedding_dim, num_embeddings]``, the transpose of the parameter.
    """

    MODULE = nn.Embedding

    @property
    def block(self) -> tuple[int, int]:
        return self.module.embedding_dim, self.module.num_embeddings

    def fits(self, a: Tensor, inputs: int) -> bool:
        return a.dim() >= 1 and len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        D, V = self.block
        a, b = a.reshape(len(a), -1), self.output_gradients(a, b)
        total = b.new_zeros(len(b) // K * V, D)
        example = torch.arange(len(a), device=a.device).div(K, rounding_mode="floor").unsqueeze(1)
        total.index_add_(0, (example * V + a).flatten(), b.flatten(0, 1))
        return total.view(-1, V, D).mT.contiguous()

    def positions(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the one-hot inputs ``[N, R, V]`` and the output gradients ``[N, R, D]``."""
        b = self.output_gradients(a, b)
        return F.one_hot(a.reshape(len(a), -1), self.block[1]).to(b), b

    def output_gradients(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the output gradients ``[N, R, D]``, with zeros at ``padding_idx``, which has no gradient."""
        b = b.reshape(len(b), -1, b.shape[-1])
        if self.module.padding_idx is None:
            return b
        return b * (a.reshape(len(a), -1, 1) != self.module.padding_idx)

    def split(self, block: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name in self.parameters:
            yield name, block.mT

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].mT
