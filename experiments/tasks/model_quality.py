"""The quality of the explained model, beside the results: losses of a given one, and a warning if it has not learned its data."""

import numpy as np

from attribution.estimators import Estimator
from attribution.models.given import UntrainedModel
from experiments.datasets import Split
from experiments.metrics.bootstrap import Bootstrap
from experiments.models.quality import Fit, roughness
from experiments.report.row import Row, Subject
from experiments.tasks.run_context import RunContext

_ROUGHEST = 0.995
"""The quantile of the training images' roughness above which the mean of the samples' is called noise."""


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
    for note in trained.notes(replayed=any(estimator.RECORDED_DRAWS for estimator in estimators)):
        run.report.warn(note)


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
