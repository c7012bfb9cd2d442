"""What the command line says about a run, for trackers: choices, swept values, and a name made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class RunDescription:
    """The description of one run.

    ``name`` says the estimator and swept values; ``sweep`` is the name of the sweep that the run is a job of, or None. ``job_type``
    is the task. ``choices`` has the choice of each group of the configuration (estimator: kfac), and ``axes`` plain numbers and
    words along which runs are compared, such as damping, draws and timesteps. An empty description is that of a run without a
    command line.
    """

    name: str | None = None
    sweep: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    command: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def estimator(self) -> str | None:
        """The chosen estimator."""
        return self.choices.get("estimator")

    @property
    def facts(self) -> dict[str, Scalar]:
        """Choices, axes and the command as one mapping."""
        return {**self.choices, **self.axes, **({"command": self.command} if self.command else {})}
