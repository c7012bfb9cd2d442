"""The quality of the explained model, beside the results: losses of a given one, and a warning if it has not learned its data."""

import numpy as np

from attribution.double_precision import on_device
from attribution.estimators import Estimator
from attribution.models.given import UntrainedModel
from attribution.training.given_record import GivenRecord
from experiments.datasets import Split
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.estimate import Estimate
from experiments.models.quality import Fit, roughness
from experiments.report.row import Row, Subject
from experiments.tasks.run_context import RunContext

_ROUGHEST = 0.995
"""The quantile of the training images' roughness above which the mean of the samples' is called noise."""
_REPLAYED = 4
"""The largest number of recorded steps whose loss is computed again."""
_LARGEST_DIFFERENCE = 0.1
"""The relative difference of a recorded loss above which the record does not fit."""


def report_models(run: RunContext, *estimators: Estimator) -> None:
    """Report which parameters ``estimators`` cover and the losses of a given model, and warn of a model that has not learned."""
    run.report_coverage(*estimators)
    report_given_model(run, *estimators)
    warn_of_poor_model(run)


def report_given_model(run: RunContext, *estimators: Estimator) -> None:
    """Report the loss of a given model on its training and held-out images, beside that of an untrained network.

    Warn of what readers of the scores of ``estimators`` must know about such a model.

    A model that is trained here has its training curve instead.
    """
    experiment, execution = run.experiment, run.experiment.execution
    trained = experiment.trained
    if not trained.GIVEN or not run.store.has(trained):
        return
    untrained = UntrainedModel(model=trained.model, objective=trained.objective)
    held_out = Split(experiment.data, "validation")
    losses = {"given model, training images": Fit.of(experiment)}
    if held_out.count:
        losses["given model, held-out images"] = Fit(trained=trained, data=held_out, execution=execution)
    losses["untrained network, training images"] = Fit(trained=untrained, data=experiment.train, execution=execution)
    for name, node in losses.items():
        estimate = Bootstrap(seed=experiment.seed).mean(run.store(node).model, ["images"]).estimate()
        run.report.add([Row(benchmark="explained", metric="loss", subject=Subject(name), estimate=estimate)])
    if isinstance(trained, GivenRecord) and trained.record.noise_is_known:
        _report_replay(run, trained)
    for note in trained.notes(replayed=any(estimator.RECORDED_DRAWS for estimator in estimators)):
        run.report.warn(note)


def _report_replay(run: RunContext, trained: GivenRecord) -> None:
    """Report by how much the losses of recorded steps differ when they are computed again at the recorded draws."""
    from attribution.training.replay import replay_loss  # Lightning, which takes seconds to import

    record, images, device = run.store(trained), run.store(run.experiment.train), run.experiment.execution.torch_device()
    followed = [step for step in record.steps if step < len(record.losses)]  # a step was taken from these checkpoints
    followed = [step for step in followed if np.isin(record.visits_of_step(step)["example"], images.index).all()]
    differences = []
    for step in followed[-_REPLAYED:]:
        network = on_device(trained.network(run.store, step), device)
        differences.append(abs(replay_loss(network, trained.objective, record, images, step) / record.losses[step] - 1))
    if not differences:
        return
    estimate = Estimate(max(differences))
    run.report.add([Row(benchmark="explained", metric="replay_difference", subject=Subject("recorded steps"), estimate=estimate)])
    if max(differences) > _LARGEST_DIFFERENCE:
        run.report.warn(
            f"the recorded losses are not those of the recorded draws (they differ by up to {max(differences):.0%}): the images, "
            "their ids, flips, the process (diffusion) or the objective are not those of training, or dropout is strong"
        )


def warn_of_poor_model(run: RunContext) -> None:
    """Warn in the report, with each reason, if the trained model is poor.

    It is if its loss on training images is not below that of predicting every pixel by itself, or if its samples (where they are
    stored) are rougher than nearly all training images.
    """
    experiment = run.experiment
    if not run.store.has(experiment.trained):  # scores that need no model
        return
    reasons = []
    losses = run.store(Fit.of(experiment))
    model, pixelwise = float(losses.model.mean()), float(losses.pixelwise.mean())
    if not model < pixelwise:
        reasons.append(
            f"its loss on training images is {model:.3g}, and {pixelwise:.3g} needs only the mean and variance of each pixel"
        )
    samples = experiment.samples(run.config.samples.n, run.config.samples.seed)
    if run.store.has(samples):
        of_samples, of_train = roughness(run.store(samples)), roughness(run.store(experiment.train))
        roughest = float(np.quantile(of_train, _ROUGHEST))
        if of_samples.mean() > roughest:
            reasons.append(
                f"its samples are as rough as noise ({of_samples.mean():.2g}; training images have at most {roughest:.2g})"
            )
    if reasons:
        given = "give the images, the process (diffusion) and the weights (explained.path) that belong together"
        trained = "train longer, or change the learning rate (optimizer.lr) or the average (trainer.ema)"
        advice = given if experiment.trained.GIVEN else trained
        run.report.warn(f"the model has not learned its data: {', and '.join(reasons)}. Scores explain noise: {advice}")
