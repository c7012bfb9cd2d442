"""Low-rank adapters (LoRA, Hu et al. 2021) on a frozen network, by the library peft."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from attribution.checks import FieldError, positive, whole
from attribution.models.trained import one_line, untrained
from attribution.models.weights import WeightsFile

SHARED = ("attribution.models.trained", "attribution.models.weights")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """The constructor of the network of ``model`` with adapters of rank ``rank`` on ``targets``: only the adapters are trained.

    ``targets`` are names of modules, or their last parts: ``to_q`` stands for every module whose name ends in ``.to_q``. An adapter
    adds ``alpha / rank · B A`` to the weight, where A is drawn at random and B is 0 at first. The frozen parameters are those
    in the file ``weights`` (``None``: a random initialization by ``seed``), so they are the same in every training.
    """

    NAME = "LoRA"
    VERSION = 1

    model: Callable[[], nn.Module]
    targets: Sequence[str]
    rank: int
    alpha: float
    weights: WeightsFile | None = None
    seed: int = 0

    def __post_init__(self):
        whole(self, "rank", least=1)
        positive(self, "alpha")
        if not self.targets or isinstance(self.targets, str):
            raise FieldError(self, "targets", "give a list of the modules that get an adapter, such as [to_q,to_k,to_v]")
        try:
            _ = self.weights and self.weights.content
        except ValueError as error:
            raise FieldError(self, "weights", str(error), self.weights and self.weights.path) from error

    def __call__(self) -> nn.Module:
        """Return the network.

        Raises:
            FieldError: peft is not installed, a name in ``targets`` has no module or one that takes no adapter, or the file lacks
                the weights.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model  # slow to import, and needed here only
        except ImportError as error:
            raise FieldError(self, "rank", "adapters need the library peft: pip install -e .[lora]") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = untrained(self)
        if self.weights is not None:
            try:
                weights = self.weights.of_network(network)
            except FieldError as error:
                raise FieldError(self, "weights", error.message, self.weights.path) from error
            if not next(network.parameters()).is_meta:  # an outline has no values
                network.load_state_dict(weights.tensors())
        self._check_targets(network)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets), lora_dropout=0.0)  # type: ignore
        try:
            return inject_adapter_in_model(config, network)
        except ValueError as error:
            refused = f"peft cannot adapt one of them ({one_line(error)}): choose Linear or Conv2d modules"
            raise FieldError(self, "targets", refused) from error

    def _check_targets(self, network: nn.Module) -> None:
        modules = dict(network.named_modules())
        for target in self.targets:
            named = [name for name in modules if f".{name}".endswith(f".{target}")]
            if not named:
                last = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)})
                raise FieldError(self, "targets", f"no module has the name {target}: names end in {', '.join(last)}")
            # It uses the weight of its output projection without calling it: an adapter there has no effect.
            attention = [name for name in named for part in (name, name.rpartition(".")[0]) if _is_attention(modules[part])]
            if attention:
                raise FieldError(self, "targets", f"{attention[0]} is a part of nn.MultiheadAttention, which takes no adapter")


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def lora(
    base: Callable[[], nn.Module],
    targets: Sequence[str],
    rank: int,
    alpha: float,
    weights: str | None = None,
    seed: int = 0,
) -> LoRA:
    """Return ``LoRA`` on the network of ``base``, with frozen parameters from the file at the path ``weights``."""
    file = None if weights is None else WeightsFile(weights)
    return LoRA(model=base, targets=tuple(targets), rank=rank, alpha=alpha, weights=file, seed=seed)
