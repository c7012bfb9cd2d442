"""Networks that cannot be trained or explained, and one that can although it is unusual."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """One convolution, which is a valid network."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor):
        return self.conv(x)


class ReturnsTuple(Network):
    def forward(self, x: Tensor, t: Tensor):
        return (self.conv(x),)


class ReturnsDict(Network):
    def forward(self, x: Tensor, t: Tensor):
        return {"sample": self.conv(x)}


class ReturnsNone(Network):
    def forward(self, x: Tensor, t: Tensor):
        return None


class DropsChannel(Network):
    def forward(self, x: Tensor, t: Tensor):
        return self.conv(x)[:, 0]


class Mixing(Network):
    def forward(self, x: Tensor, t: Tensor):
        return self.conv(x) - self.conv(x).mean(0, keepdim=True)


class Noisy(Network):
    def forward(self, x: Tensor, t: Tensor):
        return self.conv(x) + torch.randn_like(x)


class Normalized(Network):
    """Has batch statistics, so that examples have no gradients of their own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor, t: Tensor):
        return self.norm(self.conv(x))


class Frozen(Network):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Network):
    def forward(self, x: Tensor, t: Tensor):
        return self.conv(x).detach()


class Half(Network):
    def __init__(self):
        super().__init__()
        self.half()


class FailsToConstruct(Network):
    def __init__(self):
        raise RuntimeError("no network\ntoday")


class FixedSize(Network):
    """Takes images of 16 × 16 only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(256, 256)

    def forward(self, x: Tensor, t: Tensor):
        return self.linear(x.flatten(1)).view_as(x)


class NotOnMeta(Network):
    """Reads a value in its constructor, which the meta device has not."""

    def __init__(self):
        super().__init__()
        self.scale = 1 + torch.zeros(1).item()


def NotANetwork() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: x
