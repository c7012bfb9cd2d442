"""``task=train``: train one model; report its training curve and samples."""

from collections.abc import Sequence

from omegaconf import DictConfig

from attribution.checks import FieldError
from attribution.gradients.layer_check import find_layers
from attribution.training import TrainingRecord
from experiments import figures
from experiments.metrics.bootstrap import Bootstrap
from experiments.models.explained import FromTraining
from experiments.report.row import Row, Subject
from experiments.tasks.before_training import check_before_training
from experiments.tasks.model_quality import warn_of_poor_model
from experiments.tasks.run_context import RunContext, run_context
from experiments.tasks.settings import SettingError


def train(config: DictConfig, check_layers: bool) -> None:
    """Train the model unless the store has it; report its training curve and samples.

    Raises:
        FieldError: If ``check_layers`` is true and a layer has no per-example gradients. Otherwise a line says so.
        SettingError: If the explained model is given.
    """
    with run_context(config) as run:
        if not isinstance(run.experiment.explained, FromTraining):
            raise SettingError("task=train trains a model here: leave out explained=, or choose task=attribute")
        check_before_training(run)
        trained = run.experiment.training
        try:
            find_layers(trained.outline)
        except ValueError as error:
            if check_layers:
                raise FieldError(trained, "model", str(error)) from error
            print(f"note: most estimators will refuse this model: {error}")
        record = run.store(run.experiment.training)
        last_epoch = record.losses[-record.info["steps_per_epoch"] :]
        row = Row(
            benchmark="train",
            metric="training_loss_of_last_epoch",
            subject=Subject("none"),
            estimate=Bootstrap().mean(last_epoch, ["steps"]).estimate(),
            about={"model": run.experiment.training.fingerprint},
        )
        run.report.add([row])
        show_training(run, record)
        show_samples(run)
        warn_of_poor_model(run)
        if config.samples.trajectory:
            samples = run.experiment.samples(config.samples.n, config.samples.seed)
            node = samples.trajectories
            run.store(node)
            print(f"sampling trajectories: {run.store.folder(node)}")


def show_training(run: RunContext, record: TrainingRecord, used: Sequence[int] = ()) -> None:
    """Report the loss and the learning rate of every step, with the checkpoints ``used`` by an estimator."""
    table = record.step_table[record.step_table["rank"] == 0]
    rates = table["learning_rate"][:, 0]
    steps = range(1, len(record.losses) + 1)
    run.report.figure("training", figures.training_curve(steps, record.losses, rates, record.steps, used))
    run.tracker.curve("training", steps, {"loss": record.losses.tolist(), "learning_rate": rates.tolist()})


def show_samples(run: RunContext) -> None:
    """Report samples of the explained model."""
    samples = run.store(run.experiment.samples(run.config.samples.n, run.config.samples.seed))
    run.report.figure("samples", figures.grid(samples))
