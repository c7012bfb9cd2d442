"""A training run computed again from its beginning, with the states of the optimizer, which its record does not have.

Every recorded checkpoint must come out bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.diffusion.denoiser import without_label_dropout
from attribution.double_precision import on_device
from attribution.images import Images
from attribution.training.optimizer_steps import PARAMETERS
from attribution.training.record import TrainingRecord
from attribution.training.repeatable import Repeatable
from attribution.training.replay import replay_gradient

SHARED = (
    "attribution.diffusion.denoiser",
    "attribution.training.optimizer_steps",
    "attribution.training.repeatable",
    "attribution.training.replay",
)


@dataclass(frozen=True, eq=False)
class Moment:
    """A training run before step ``step``: the values of all trainable parameters and the optimizer's state of each."""

    step: int
    parameters: Sequence[Tensor]
    states: Sequence[Mapping[str, Tensor]]

    def flat(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The parameters and the tensors ``names`` of the optimizer's state, as vectors ``[P]``; no state before the first step."""
        joined = {PARAMETERS: self.parameters} | {name: [state[name] for state in self.states] for name in names if self.step}
        return {name: torch.cat([tensor.reshape(-1) for tensor in tensors]) for name, tensors in joined.items()}


class Rerun:
    """The training run of ``trained``, before its first step and then, by ``advance``, before each of the next ones.

    Raises:
        ValueError: the record has steps of several processes.
    """

    def __init__(self, trained: Repeatable, record: TrainingRecord, images: Images, device: torch.device):
        if (processes := record.info.get("processes", 1)) > 1:
            raise ValueError(
                f"{processes} processes trained the model, and sums over them are only replayed up to rounding: {_AGAIN}"
            )
        self.record, self.images, self.objective, self.device = record, images, trained.objective, device
        with torch.random.fork_rng():
            torch.manual_seed(trained.seed)
            network = without_label_dropout(trained.model())
        if trained.recipe.channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        network = on_device(network.double() if trained.recipe.precision == "64-true" else network, device)
        self.network, self.step = network.train(), 0
        self.optimizer = trained.optimizer(network.parameters())
        self.trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def advance(self) -> None:
        """Take the next step.

        Raises:
            ValueError: the parameters after it differ from those of the record.
        """
        gradients = replay_gradient(self.network, self.objective, self.record, self.images, self.step)
        row = self.record.step_table[self.record.step_table["step"] == self.step][0]
        for group, rate in zip(self.optimizer.param_groups, row["learning_rate"].tolist(), strict=True):
            group["lr"] = rate
        for name, parameter in self.trainable.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        self.step += 1
        if self.step in self.record.steps:
            self._check()

    def moment(self) -> Moment:
        """Where training is now, as copies."""
        parameters = [p.detach().clone() for p in self.trainable.values()]
        return Moment(self.step, parameters, [_copied(self.optimizer.state.get(p, {})) for p in self.trainable.values()])

    def go_to(self, moment: Moment) -> None:
        """Go on from an earlier ``moment`` of this run."""
        self.step = moment.step
        with torch.no_grad():
            for parameter, value, state in zip(self.trainable.values(), moment.parameters, moment.states, strict=True):
                parameter.copy_(value)
                self.optimizer.state[parameter] = _copied(state)

    def _check(self) -> None:
        recorded = self.record.parameters(self.step)
        for name, tensor in self.network.state_dict().items():
            if not torch.equal(tensor.cpu(), recorded[name]):
                distance = float((tensor.cpu().double() - recorded[name].double()).abs().max())
                here = f"{self.device}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
                raise ValueError(
                    f"training, computed again, differs from its checkpoint at step {self.step} (by up to {distance:.1e} in "
                    f"{name}): it was changed, the network changes its buffers in training, or the model was trained on another "
                    f"device, with other threads or another version than here ({here}): {_AGAIN}"
                )


_AGAIN = "train the model again in one process, as this run would, or choose another estimator"


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if tensor is not None}
