"""Groups of draws: replicates of a score, from which its sampling error is estimated.

The K independent draws of either side are cut into R groups of K/R consecutive ones. With group r of the query's draws and group s
of the training image's, an estimator gives the *cross score* τ_rs. Every draw is in one group, so that all R² of them take the
passes of one score.
"""

from dataclasses import dataclass

from torch import Tensor

from attribution.images.draws import Draws, DrawScheme, Side

SHARED = ("attribution.images.draws",)


@dataclass(frozen=True)
class _OfScheme(DrawScheme):
    """Some of the draws of ``scheme``."""

    scheme: DrawScheme

    @property
    def seed(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The seed of ``scheme``."""
        return self.scheme.seed

    @property
    def bins(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The bins of ``scheme``."""
        return self.scheme.bins

    def check(self, T: int) -> None:
        self.scheme.check(T)


@dataclass(frozen=True)
class Group(_OfScheme):
    """Group ``index`` of ``of`` groups of the draws of ``scheme``: consecutive draws, K / ``of`` of them."""

    NAME = "Group"
    VERSION = 1

    index: int
    of: int

    @property
    def count(self) -> int:
        return self.scheme.count // self.of

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        first = self.index * self.count
        return self.scheme.draw(role, example, T, flips, dropout).columns(slice(first, first + self.count))


@dataclass(frozen=True)
class CrossGroups(_OfScheme):
    """Group ``query`` of the draws of a query, and group ``train`` of those of a training image, of ``of`` groups each.

    ``train`` None: all draws of a training image.
    """

    NAME = "CrossGroups"
    VERSION = 1

    query: int
    train: int | None
    of: int

    @property
    def count(self) -> int:
        return self.side("query").count

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(self.side("query").count, self.side("train").count)]

    def side(self, side: Side) -> DrawScheme:
        index = self.query if side == "query" else self.train
        return self.scheme.side(side) if index is None else Group(self.scheme.side(side), index, self.of)

    def draw(self, role: str, example: Tensor, T: int, flips: bool = False, dropout: float = 0.0) -> Draws:
        return self.side("query" if role == "query" else "train").draw(role, example, T, flips, dropout)
