"""Draws: the timestep, noise and flip at which an example is evaluated, as data.

A draw is a function of (seed, role, example id, draw number) only: never of batch size, order, device or worker. ``Draws`` holds
the draws of a batch; the schemes ``Uniform``, ``Even``, ``Fixed``, ``window.Window`` and ``stratified.Stratified`` make them. Noise
is kept as a 64-bit seed and expanded when it is needed, so that draws are small enough to record for every step of training.

Shapes: B examples, K draws of each, C×H×W pixels. Timesteps are 1..T.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from attribution.checks import FieldError, listed, whole
from attribution.images import philox
from attribution.images.proposals import Proposal
from attribution.nodes.identity import added
from attribution.transfers import to_device

SHARED = ("attribution.images.philox",)

_MASK = 0xFFFFFFFF

Side = Literal["query", "train"]
"""A side of a score: the queries or the training images."""


@dataclass(frozen=True)
class Draws:
    """K draws of each of B examples: ``timestep``, ``noise_seed`` (int64) and ``flip`` (bool), all ``[B, K]``.

    ``condition_dropped`` (bool ``[B, K]``) says where the network is not given the example's condition; None means nowhere.
    ``weight`` (float ``[B, K]``) is the weight of each draw in means over draws; None means 1.
    """

    timestep: Tensor
    noise_seed: Tensor
    flip: Tensor
    condition_dropped: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.timestep)

    @property
    def count(self) -> int:
        """K, the number of draws of each example."""
        return self.timestep.shape[1]

    def noise(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """ε for an image of ``shape`` (C, H, W): ``[B, K, C, H, W]``, standard normal."""
        size = torch.Size(shape)
        return philox.normal(self.noise_seed, size.numel()).view(*self.noise_seed.shape, *size).to(dtype)

    def images(self, x0: Tensor) -> Tensor:
        """``x0 [B, C, H, W]`` once per draw, mirrored left to right where the draw says so: ``[B, K, C, H, W]``."""
        x = x0.unsqueeze(1).expand(-1, self.count, *x0.shape[1:])
        if self.flip.device.type == "cpu" and not self.flip.any():  # on another device the host would have to wait for the answer
            return x
        return torch.where(self.flip[:, :, None, None, None], x.flip(-1), x)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Draws":
        """Draws with ``function`` applied to every field that is not None; it must treat all ``[B, K]`` tensors alike."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return Draws(*(None if tensor is None else function(tensor) for tensor in tensors))  # pyright: ignore[reportArgumentType]

    def rows(self, index: slice | Tensor) -> "Draws":
        """The draws of the examples that ``index`` selects."""
        return self.map(lambda tensor: tensor[index])

    def columns(self, index: slice | Tensor) -> "Draws":
        """The draws that ``index`` selects, of every example."""
        return self.map(lambda tensor: tensor[:, index])

    def single(self) -> "Draws":
        """Every draw as an example with one draw, ``[B·K, 1]``."""
        return self.map(lambda tensor: tensor.flatten().unsqueeze(1))

    def to(self, device: torch.device | str) -> "Draws":
        """The draws on another device."""
        return self.map(lambda tensor: to_device(tensor, device))

    def unweighted(self) -> "Draws":
        """The draws without their weights, at which a measure is evaluated; ``mean`` applies the weights to its costs."""
        return replace(self, weight=None)

    def mean(self, costs: Tensor) -> Tensor:
        """The mean over draws of weighted ``costs [B, K]``: ``[B]``."""
        return (costs if self.weight is None else self.weight * costs).mean(1)

    def check_supported(self) -> None:
        """Raises ValueError: draws with weights, which would be lost in means of gradients."""
        if self.weight is not None:
            raise ValueError("draws with weights are for means of costs: evaluate draws.unweighted(), then draws.mean(costs)")


def random_draws(seed: int, role: str, example: Tensor, number: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
    """Return the draw of each ``number`` for each ``example``: t ~ U{1..T}, a noise seed, and a flip with probability 1/2.

    ``example`` and ``number`` are int64 and broadcast to ``[B, K]``; the draws are on the device of ``example``. ``flips=False``
    leaves every image as it is. ``dropout``: the probability with which the condition is dropped, which changes nothing else.
    """
    example, number = torch.broadcast_tensors(example, number.to(example.device))
    key0, key1 = philox.key(seed, role)
    zero = torch.zeros_like(example)
    w0, w1, w2, w3 = philox.philox(key0, key1, (number & _MASK, example & _MASK, (example >> 32) & _MASK, zero))
    flip = (w3 & 1).bool() if flips else torch.zeros_like(example, dtype=torch.bool)
    dropped = (w3 >> 1) < round(dropout * 2**31) if dropout else None  # the flip is the lowest bit
    return Draws(1 + ((w2 * T) >> 32), w0 | (w1 << 32), flip, dropped)


MOST_REPLICATES = 16
"""The most groups of draws: there are as many cross scores of each pair as the square of their number."""


class DrawScheme(ABC):
    """A rule for the K draws of an example; ``seed`` is independent of the seed of training.

    With ``bins`` above 1, estimators also give scores by pair of (query's, training example's) bin, where the bins divide 1..T into
    equal stretches.
    """

    VERSION: ClassVar[int] = 1
    LISTS: ClassVar[bool] = False
    """Whether it takes several numbers of draws, because the first of its draws are themselves a valid set."""

    seed: int
    bins: int
    replicates: int = 1
    automatic: bool = False
    """Whether ``replicates`` was left open, and is 1 until it is chosen."""

    @property
    @abstractmethod
    def count(self) -> int:
        """K."""

    def side(self, side: Side) -> "DrawScheme":
        """The draws of one side of a score, the same as this scheme's if it makes no difference between the sides."""
        return self

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The numbers of first draws (of a query, of a training image) for which an estimator gives scores; the last are all."""
        return [(n, n) for n in self.prefixes]

    def at(self, query: int, train: int) -> "DrawScheme":
        """The draws of one of the ``pairs`` alone."""
        return self

    def at_checkpoint(self, step: int) -> "DrawScheme":
        """The draws at the checkpoint ``step``, the same as this scheme's if it makes no difference between checkpoints."""
        return self

    def refuse_lists(self, what: str, replicates: bool = False) -> None:
        """Raises FieldError: bins or several numbers of draws, which are for scores; ``what`` takes neither.

        Nor does it take groups of draws, unless ``replicates`` is true.
        """
        if len(self.prefixes) > 1:
            raise FieldError(self, "n", f"{what} takes one number of draws")
        if self.bins > 1:
            raise FieldError(self, "bins", f"{what} takes no bins")
        if self.replicates > 1 and not replicates:
            raise FieldError(self, "replicates", f"{what} has no errors by groups of draws: set 1")

    def refuse_sides(self, why: str) -> None:
        """Raises FieldError: a number of draws of training images, where there are none to choose; ``why`` says so."""
        if self.side("train") != self.side("query"):
            raise FieldError(self, "train", f"{why}: leave it null")

    def check(self, T: int) -> None:
        """Raises FieldError: more bins than timesteps, or draws that a process with ``T`` timesteps does not have."""
        if self.bins > T:
            raise FieldError(self, "bins", f"there are T={T} timesteps, set at most as many bins")

    @property
    def prefixes(self) -> list[int]:
        """The numbers of first draws for which an estimator gives scores, ascending; the last is K."""
        return [self.count]

    @abstractmethod
    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        """Return K draws for each ``example [B]`` (int64 ids) and ``role`` ("query", "train", ...), with timesteps in 1..T.

        ``flips`` and ``dropout`` are those of ``random_draws``.
        """

    def draw_for(self, proposal: Proposal, role: str, example: Tensor) -> Draws:
        """Return K draws for a measurement with this ``proposal``. A scheme that draws by it gives every draw a weight."""
        return self.draw(role, example, proposal.T)

    def given_timesteps(self, T: int) -> Sequence[int] | None:
        """The timesteps at which every example is evaluated; None: they are random."""
        return None


class TwoSided(DrawScheme):
    """A scheme with a number of draws for each side: ``n`` of a query, ``train`` of a training image (None: as many as of a query).

    Subclasses are frozen dataclasses with these fields. If they take lists and ``n`` is one, ``train`` may be one number for all of
    it, or a list of the same length.
    """

    n: Any
    train: Any

    def __post_init__(self):
        """Check the numbers. As many draws of either side are one scheme, however they are given."""
        at_least_one = partial(whole, least=1)
        for name in ("n", "train") if self.train is not None else ("n",):
            if not isinstance(getattr(self, name), Sequence):
                at_least_one(self, name)
            elif self.LISTS:
                listed(self, name, at_least_one)
            else:
                raise FieldError(self, name, "must be one number; independent draws (Uniform) take a list")
        whole(self, "bins", least=1)
        several = isinstance(self.n, Sequence)
        if isinstance(self.train, Sequence) and not (several and len(self.train) == len(self.n)):
            raise FieldError(self, "train", "give one number, or a list with a number for each one of the list n")
        if isinstance(self.train, Sequence) and len(set(self.n)) < len(self.n):
            raise FieldError(self, "n", "give each number once, because each has its own number in the list train")
        same = list(self.train) == list(self.n) if isinstance(self.train, Sequence) and several else self.train == self.n
        if same:
            object.__setattr__(self, "train", None)
        self._check_replicates()

    def _check_replicates(self) -> None:
        if self.replicates == "auto":
            object.__setattr__(self, "replicates", 1)
            object.__setattr__(self, "automatic", True)
        whole(self, "replicates", least=1, most=MOST_REPLICATES)
        if self.replicates == 1:
            return
        if len(self.pairs) > 1 or self.bins > 1:
            raise FieldError(self, "replicates", "the groups are of one number of draws, over all timesteps: set one n, and bins=1")
        for number in self.pairs[0]:
            if number % self.replicates:
                raise FieldError(
                    self, "replicates", f"{number} draws cannot be cut into as many equal groups: choose a divisor of it"
                )

    @property
    def prefixes(self) -> list[int]:
        return sorted(set(self.n)) if isinstance(self.n, Sequence) else [self.count]

    @property
    def count(self) -> int:
        return max(self.n) if isinstance(self.n, Sequence) else self.n

    def side(self, side: Side) -> Self:
        if self.train is None:
            return self
        return replace(self, n=self.n if side == "query" else self.train, train=None)  # pyright: ignore[reportArgumentType]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        if len(self.prefixes) == 1:
            return [(self.side("query").count, self.side("train").count)]
        train = self.n if self.train is None else self.train
        return sorted(dict.fromkeys(zip(self.n, [train] * len(self.n) if isinstance(train, int) else train, strict=True)))

    def at(self, query: int, train: int) -> Self:
        if len(self.pairs) == 1:
            return self
        return replace(self, n=query, train=train)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Uniform(TwoSided):
    """``n`` independent draws, t ~ U{1..T} (K-FAC influence). The first k of n are the draws of ``Uniform(k)``.

    With a list of ``n``, estimators give scores for each: the largest number is drawn, the others are prefixes of it. ``train``:
    the number for training images, or a list that goes with that of ``n`` (None: as many). ``replicates``: the number of groups
    that the draws of either side are cut into, from which scores get standard errors (``attribution.images.replicates``); "auto":
    one, which may be changed where errors are reported (``attribution.estimators.replicated.in_groups``).
    """

    NAME = "Uniform"
    VERSION = 1
    LISTS = True

    n: int | Sequence[int]
    seed: int = 0
    bins: int = 1
    train: int | Sequence[int] | None = added(default=None)
    replicates: int | Literal["auto"] = added(default=1)  # pyright: ignore[reportIncompatibleVariableOverride]

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        number = torch.arange(self.count, device=example.device)
        return random_draws(self.seed, role, example[:, None], number, T, flips, dropout)


@dataclass(frozen=True)
class Fixed(DrawScheme):
    """The given ``timesteps`` (1..T), each with ``noises`` independent noises; draw number = position · noises + noise."""

    NAME = "Fixed"
    VERSION = 1

    timesteps: Sequence[int]
    noises: int = 1
    seed: int = 0
    bins: int = 1

    def __post_init__(self):
        if not self.timesteps:
            raise FieldError(self, "timesteps", "give at least one timestep")
        whole(self, "noises", least=1)
        whole(self, "bins", least=1)

    @property
    def count(self) -> int:
        return len(self.timesteps) * self.noises

    def given_timesteps(self, T: int) -> Sequence[int]:
        return self.timesteps

    def check(self, T: int) -> None:
        super().check(T)
        if outside := [t for t in self.timesteps if not 1 <= t <= T]:
            raise FieldError(self, "timesteps", f"the timesteps are 1..{T}, without {outside}: choose from these")

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        self.check(T)
        number = torch.arange(self.count, device=example.device)
        random = random_draws(self.seed, role, example[:, None], number, T, flips, dropout)
        timestep = torch.tensor(list(self.timesteps), device=example.device).repeat_interleave(self.noises)
        return replace(random, timestep=timestep.expand(len(example), -1))


@dataclass(frozen=True)
class Even(TwoSided):
    """``n`` evenly spaced timesteps ``t_j = 1 + ⌊jT/n⌋``, j = 0..n-1, with ``noises`` noises each (ReTrac §5.1, eq. 8).

    ``train``: the number of timesteps for training images (None: as many).
    """

    NAME = "Even"
    VERSION = 1

    n: int
    noises: int = 1
    seed: int = 0
    bins: int = 1
    train: int | None = added(default=None)

    def __post_init__(self):
        super().__post_init__()
        whole(self, "noises", least=1)

    @property
    def count(self) -> int:
        return self.n * self.noises

    def check(self, T: int) -> None:
        super().check(T)
        for name, number in (("n", self.n), ("train", self.train or 1)):
            if number > T:
                raise FieldError(self, name, f"there are only T={T} timesteps to space evenly: set {name} <= {T}")

    def given_timesteps(self, T: int) -> Sequence[int]:
        self.check(T)
        return [1 + j * T // self.n for j in range(self.n)]

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        return Fixed(self.given_timesteps(T), self.noises, self.seed).draw(role, example, T, flips, dropout)
