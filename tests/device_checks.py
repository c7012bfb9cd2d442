"""Every kind of computation on the device without float64 of ``tests/without_float64.py``, compared with the CPU.

``python -m tests.device_checks`` runs all checks, or those named, and prints a JSON object: the name of each → its traceback, or
the empty string.
"""

import dataclasses
import functools
import inspect
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from safetensors.torch import load_file

from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.diffusion import DDPM, EDM, NoiseSchedule, RectifiedFlow
from attribution.diffusion.euler_samplers import EDMEulerSampler, FlowMatchEulerSampler
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.estimators import Estimator, Guided, LiSSA, ReTrac, SelfInfluence, TracIn
from attribution.estimators.astra import ASTRA
from attribution.estimators.balance import Balance
from attribution.estimators.das import DAS
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.half_trak import HalfPrecisionTRAK
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.mirrored_unlearning import MirroredUnlearning
from attribution.estimators.nda import NDA
from attribution.estimators.perceptual import StructuralSimilarity
from attribution.estimators.rank_average import RankAverage
from attribution.estimators.relative_if import RelativeIF
from attribution.estimators.renorm_if import RenormIF
from attribution.estimators.rescaled_kfac import RescaledKFAC
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.source import Source
from attribution.estimators.trak import TRAK
from attribution.estimators.unlearning import Unlearning
from attribution.execution import Execution
from attribution.gradients.compression import Quantized, TruncatedSVD
from attribution.images.draws import Even, Fixed, Uniform
from attribution.images.stratified import Stratified
from attribution.images.window import Window
from attribution.measurements import (
    Elbo,
    ElboWeighted,
    Interpolated,
    JourneyLoss,
    Loss,
    LossAtT,
    Measure,
    OutputMean,
    OutputNorm,
    SquareNorm,
    TrajectoryLikelihood,
)  # fmt: skip
from attribution.models.trained import PARAMETERS
from attribution.nodes import InMemory, Node
from attribution.projection import SJLT, Gaussian, Identity, Kronecker, Rademacher
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone, Together
from attribution.retraining.selection import Selection
from attribution.retraining.stacked_state import Stack
from attribution.training.checkpoints import AtSteps
from attribution.training.fit import fit
from attribution.training.module import DiffusionModule
from attribution.training.recipe import Hardware, Recipe
from attribution.training.record import TrainingRecord
from attribution.training.trainer import check_hardware
from experiments.estimators.datamodels import Datamodels
from experiments.estimators.tuned import TunedTRAK
from experiments.models.measured import Measured
from experiments.models.quality import Fit
from experiments.models.retrained import Retrained
from experiments.models.samples import Samples, SampleTrajectories
from experiments.models.subsets import RandomSubsets
from tests.attribution.curvature.curvature_worlds import Given, given, perceptron, randomized
from tests.test_versions import classes
from tests.without_float64 import NAME, registered
from tests.worlds import UNET, Blobs, trained

BLOCKS = {"block_out_channels": (4,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
SMALL: Any = functools.partial(UNET, **BLOCKS, attention_head_dim=4, dropout=0.0)
PROCESS = DDPM(NoiseSchedule(T=12, beta_end=0.3))
LOSS, DRAWS = Loss(PROCESS), Uniform(2, seed=1)
RECIPE = replace(trained().recipe, precision="32-true", ema=0.9, steps=4, batch_size=3)
MODEL = trained(model=SMALL, objective=LOSS, recipe=RECIPE, data=Blobs(n=6), checkpoints=AtSteps([2, 4]))
QUERIES = Blobs(n=2, first=900)
DDIM = DDIMSampler(steps=5, eta=1.0)

CHECKS: dict[str, Callable[[], None]] = {}
COVERED: set[type] = set()
"""The classes of everything that has been compared."""
CPU = InMemory()
"""Artifacts that were computed on the CPU, among them the trained model of all checks."""


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def equal(node: Callable[[Execution], Node], model: Any = MODEL, rtol: float = 1e-4, **at: float) -> None:
    """Check that a node's arrays, of scores those ``at`` a damping, are the same from both devices to ``rtol`` of the largest."""
    device = InMemory()
    device._artifacts[model.fingerprint] = CPU(model)
    COVERED.update(_kinds(node(Execution(device=NAME))))
    one, other = CPU(node(Execution(device="cpu"))), device(node(Execution(device=NAME)))
    if at:
        one, other = one.at(**at), other.at(**at)
    for name, array in vars(one).items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            assert np.abs(array).max() > 0, f"{name} is 0"
            np.testing.assert_allclose(getattr(other, name), array, rtol=rtol, atol=rtol * np.abs(array).max(), err_msg=name)


def _kinds(value: Any) -> Iterator[type]:
    """The classes of a dataclass and of all dataclasses among its fields, at any depth."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _kinds(each)
    elif dataclasses.is_dataclass(value):
        yield type(value)  # pyright: ignore[reportReturnType]
        for field in dataclasses.fields(value):
            yield from _kinds(getattr(value, field.name))


def scores(kind: Any, model: Any = MODEL, data: Any = None, queries: Any = QUERIES, **settings: Any) -> None:
    """Check that the scores of an estimator are the same from both devices."""

    def node(execution: Execution) -> Node:
        on_device = {
            name: setting(execution=execution) if isinstance(setting, functools.partial) else setting
            for name, setting in settings.items()
        }
        return kind(draws=DRAWS, execution=execution, **on_device).scores(model, data or model.data, queries)

    COVERED.add(kind)
    at = {"damping": settings["damping"]} if kind in (KFACInfluence, TRAK, RelativeIF, RenormIF, DAS) else {}
    equal(node, model, **at, **({"draws": DRAWS.count} if kind is KFACInfluence else {}))


class Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device.type == NAME


@check
def training() -> None:
    seen = []

    class Devices(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert isinstance(pl_module, DiffusionModule)
            draws = (pl_module.ids, pl_module.draws.timestep, pl_module.draws.noise_seed)
            seen.extend(tensor.device.type for tensor in [*pl_module.parameters(), *draws])

    with tempfile.TemporaryDirectory() as folder:
        hardware = Hardware(accelerator=NAME, strategy=NAME, interval=2)
        arguments = (CPU(MODEL.data), SMALL, LOSS, MODEL.optimizer, RECIPE, MODEL.checkpoints, MODEL.seed, MODEL.flips)
        fit(Path(folder), *arguments, hardware, [Devices()])
        one, other = CPU(MODEL), TrainingRecord(Path(folder))
        assert set(seen) == {NAME}
        assert np.array_equal(one.visits, other.visits)
        for name, tensor in one.final_parameters().items():
            torch.testing.assert_close(other.final_parameters()[name], tensor, rtol=1e-5, atol=1e-6)


def _retraining(mode: Any, recipe: Recipe = RECIPE, rtol: float = 1e-5) -> None:
    images, results = CPU(MODEL.data), []
    for device in ("cpu", NAME):
        with tempfile.TemporaryDirectory() as folder:
            members = [Member(seed, Selection(np.arange(5)), Path(folder) / str(seed)) for seed in (1, 2)]
            fit_together(members, images, SMALL, LOSS, MODEL.optimizer, recipe, mode, True, device)
            results.append([load_file(member.folder / PARAMETERS) for member in members])
    for one, other in zip(*results, strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=rtol, atol=1e-6)


@check
def retraining_together() -> None:
    _retraining(Together())


@check
def retraining_alone() -> None:
    _retraining(Alone())


@check
def precision() -> None:
    """The stand-in's autocast casts nothing, so results differ by bfloat16's rounding on the CPU."""
    for mode in (Together(), Alone()):
        _retraining(mode, replace(RECIPE, precision="bf16-mixed", channels_last=True), rtol=1e-2)
        _retraining(mode, replace(RECIPE, precision="tf32"))
    settings = {"model": MODEL, "images": QUERIES, "measure": LOSS, "draws": Even(4), "precision": "bf16-mixed"}
    equal(lambda execution: Measured(**settings, execution=execution), rtol=1e-2)


@check
def measuring_retrained_models() -> None:
    for mode in (Together(group=2), Alone()):

        def node(execution: Execution, mode: Any = mode) -> Node:
            model = Retrained.of(MODEL, Selection(np.arange(5)), 1, 3, mode, execution)
            return Measured(model=model, images=QUERIES, measure=LOSS, draws=Even(4), execution=execution)

        equal(node)


def _samples(execution: Execution, sampler: Any = DDIM) -> Samples:
    return Samples(trained=MODEL, sampler=sampler, shape=(1, 8, 8), n=2, seed=0, execution=execution)


@check
def sampling() -> None:
    for sampler in (DDIM, DDPMSampler()):
        equal(lambda execution, sampler=sampler: _samples(execution, sampler))
        equal(lambda execution, sampler=sampler: SampleTrajectories(_samples(execution, sampler)))


@check
def measuring() -> None:
    measures = [LOSS, LossAtT(PROCESS, [3, 7]), Elbo(PROCESS, 16), ElboWeighted(PROCESS), SquareNorm(PROCESS)]
    measures += [OutputMean(PROCESS), OutputNorm(PROCESS, 2), Interpolated(PROCESS, 0.3)]
    cases: list[tuple[Any, Any]] = [(measure, QUERIES) for measure in measures]
    samples = _samples(Execution(device="cpu"))
    cases += [(measure, samples) for measure in (JourneyLoss(PROCESS, DDIM), TrajectoryLikelihood(PROCESS, DDIM))]
    for measure, images in cases:
        equal(
            lambda execution, m=measure, images=images: Measured(
                model=MODEL, images=images, measure=m, draws=Even(4), execution=execution
            )
        )


@check
def quality() -> None:
    equal(lambda execution: Fit(trained=MODEL, data=MODEL.data, execution=execution))


def _influence(**settings: Any) -> None:
    curvature = settings.pop("curvature", functools.partial(KFAC, draws=DRAWS))
    scores(KFACInfluence, measurement=LOSS, curvature=curvature, damping=1e-4, **settings)


@check
def kfac() -> None:
    _influence()


@check
def processes() -> None:
    zero = NoiseSchedule(T=12, beta_end=0.3, rescale_zero_terminal_snr=True)
    for process, sampler in (
        (DDPM(zero, "v", "min_snr"), DDIMSampler(steps=5, timestep_spacing="trailing")),
        (RectifiedFlow(T=12), FlowMatchEulerSampler(steps=3)),
        (EDM(T=12), EDMEulerSampler(steps=3)),
    ):
        model, of = replace(MODEL, objective=Loss(process)), {"images": QUERIES, "measure": Loss(process), "draws": Even(4)}
        equal(
            lambda execution, model=model, sampler=sampler: Samples(
                trained=model, sampler=sampler, shape=(1, 8, 8), n=2, seed=0, execution=execution
            ),
            model,
        )
        equal(lambda execution, model=model, of=of: Measured(model=model, execution=execution, **of), model)
        curvature = functools.partial(KFAC, draws=DRAWS)
        scores(KFACInfluence, model, measurement=Loss(process), curvature=curvature, damping=1e-4)


@check
def kfac_of_positions() -> None:
    _influence(curvature=functools.partial(KFAC, draws=DRAWS, sharing="reduce"))


@check
def ekfac() -> None:
    _influence(curvature=functools.partial(EKFAC, draws=DRAWS))


def _single() -> torch.nn.Module:
    return randomized(perceptron).float()


@check
def exact_curvature() -> None:
    curvature = functools.partial(ExactGGN, draws=DRAWS)
    sets = {"data": Blobs(n=6, size=4), "queries": Blobs(n=2, first=900, size=4)}
    _influence(curvature=curvature, model=Given(_single, LOSS), **sets)


@check
def models_in_float64() -> None:
    model, images = given(perceptron), Blobs(n=2, size=4)
    measured = Measured(model=model, images=images, measure=LOSS, draws=Even(4), execution=Execution(device=NAME))
    cosines = GradientSimilarity(
        measurement=LOSS, draws=DRAWS, cosine=True, projection=Identity(), execution=Execution(device=NAME)
    )
    for node in (measured, cosines.scores(model, images, images)):
        with pytest.raises(ValueError, match="has no float64: choose the CPU"):
            InMemory()(node)
    recipe = replace(RECIPE, precision="64-true")
    with pytest.raises(ValueError, match="has no float64: choose 32-true"):
        Stack(SMALL, [1], MODEL.optimizer, recipe, torch.device(NAME))
    with pytest.raises(ValueError, match="has no float64: choose 32-true"):
        check_hardware(recipe, Hardware(accelerator=NAME, strategy=NAME), 6)


@check
def compression() -> None:
    for bits in (4, 8, 16):
        _influence(compression=Quantized(bits=bits))
    _influence(compression=TruncatedSVD(rank=2))


@check
def balance() -> None:
    for by in ("draw", "timestep", [1.0, 2.0]):
        _influence(balance=Balance(by=by))


@check
def trak() -> None:
    features = {"query_feature": SquareNorm(PROCESS), "train_feature": LOSS, "damping": 1e-3}
    for projection in (Identity(), Gaussian(6), Rademacher(6), SJLT(12, s=2), Kronecker(3, 4)):
        scores(TRAK, projection=projection, **features)
    for kind in (RelativeIF, RenormIF, DAS):
        scores(kind, projection=Gaussian(6), **features)
    for projection in (Identity(), Gaussian(6)):
        scores(TRAK, projection=projection, balance=Balance("draw", "both"), **features)


@check
def similarity() -> None:
    for projection in (Identity(), Gaussian(6)):
        scores(GradientSimilarity, measurement=LOSS, cosine=True, projection=projection, checkpoints=[2, 4])


@check
def training_trajectory() -> None:
    for kind in (TracIn, ReTrac):
        scores(kind, measurement=LOSS, checkpoints=[2, 4])
    for measure in (Elbo(PROCESS, 16), LossAtT(PROCESS, [3, 7])):
        scores(TracIn, measurement=measure, checkpoints=[4])
    scores(Guided, measurement=LOSS, checkpoints=[2, 4], strength=[0.3, 0.7])
    estimator = functools.partial(TracIn, measurement=LOSS, draws=DRAWS, checkpoints=[2, 4])
    equal(lambda execution: SelfInfluence(estimator(execution=execution), MODEL, MODEL.data))


@check
def lissa() -> None:
    settings: dict[str, Any] = {"measurement": LOSS, "damping": 0.05, "scale": 100.0, "depth": 3, "batch_size": 4}
    scores(LiSSA, **settings)
    scores(ASTRA, curvature=functools.partial(EKFAC, draws=DRAWS), **settings)


@check
def source() -> None:
    settings: dict[str, Any] = {"curvature": functools.partial(EKFAC, draws=DRAWS), "segments": 2, "per_segment": 1}
    scores(Source, measurement=LOSS, optimizer="sgd", horizon=[0.5, 2.0], **settings)


@check
def rescaled() -> None:
    scores(RescaledKFAC, measurement=LOSS, curvature=functools.partial(KFAC, draws=DRAWS), damping=1e-2)


@check
def unlearning() -> None:
    settings: dict[str, Any] = {"curvature": functools.partial(KFAC, draws=DRAWS), "damping": 1e-2, "amount": 0.1, "steps": 2}
    scores(Unlearning, measurement=LOSS, **settings)
    scores(MirroredUnlearning, measurement=LOSS, bounded=False, **settings)  # few steps of training leave nothing below the bound


@check
def references() -> None:
    for cosine in (False, True):
        settings = {"embedding": Pixels(), "cosine": cosine}
        equal(lambda e, settings=settings: EmbeddingSimilarity(**settings, execution=e).scores(MODEL, MODEL.data, QUERIES))
    equal(lambda e: StructuralSimilarity(execution=e).scores(MODEL, MODEL.data, QUERIES))
    pair = {"perceptual": StructuralSimilarity, "random": Random}
    equal(lambda e: RankAverage(of={n: of(execution=e) for n, of in pair.items()}).scores(MODEL, MODEL.data, QUERIES))
    equal(lambda e: NDA(timestep=3, patch=3, coarse=4, execution=e).scores(MODEL, MODEL.data, QUERIES))
    equal(lambda execution: Random(seed=1, execution=execution).scores(MODEL, MODEL.data, QUERIES))


@check
def half_precision() -> None:
    features = {"query_feature": LOSS, "train_feature": LOSS, "damping": 1e-3, "projection": Gaussian(6), "draws": DRAWS}
    for kind in ("float16", "bfloat16"):
        settings = {**features, "precision": kind}
        equal(lambda e, s=settings: HalfPrecisionTRAK(**s, execution=e).scores(MODEL, MODEL.data, QUERIES), rtol=3e-2)


@check
def models_of_subsets() -> None:
    shared: dict[str, Any] = {"subsets": RandomSubsets(count=4, seed=2), "mode": Together(group=4), "damping": 1.0}
    datamodels = {**shared, "measurement": LOSS, "measurement_draws": Even(4)}
    equal(lambda e: Datamodels(**datamodels, execution=e).scores(MODEL, MODEL.data, QUERIES), rtol=1e-3)
    features = {"query_feature": None, "train_feature": None, "measurement": LOSS, "projection": Gaussian(6), "draws": DRAWS}
    tuned = {**shared, **features, "target": LOSS, "target_draws": Even(4), "pool": 4}
    equal(lambda e: TunedTRAK(**tuned, execution=e).scores(MODEL, MODEL.data, QUERIES), rtol=1e-3)


@check
def choices_of_draws_and_timesteps() -> None:
    for draws in (Window(low=3, high=7, n=2), Fixed([2, 9]), Stratified(3), Uniform([1, 2])):
        settings = {"measurement": LOSS, "curvature": functools.partial(KFAC, draws=DRAWS), "damping": 1e-4}

        def node(execution: Execution, draws: Any = draws, settings: Any = settings) -> Node:
            curvature = settings["curvature"](execution=execution)
            return KFACInfluence(**{**settings, "curvature": curvature}, draws=draws, execution=execution).scores(
                MODEL, MODEL.data, QUERIES
            )

        equal(node, damping=1e-4, draws=draws.count)
    scores(Guided, measurement=LOSS, checkpoints=[2, 4], strength=[0.3], timestep=5)


@check
def every_estimator_and_measurement() -> None:
    """The checks above have covered all classes, except measures of curvatures, and what needs the device of training."""
    expected = {cls for cls in classes() if issubclass(cls, Estimator | Measure) and not inspect.isabstract(cls)}
    lacking = {cls.__name__ for cls in expected - COVERED} - {"OutputPixels", "OutputProbe", "Metagradient"}
    assert not lacking, f"add a check of {', '.join(sorted(lacking))}"


def main(*names: str) -> None:
    AcceleratorRegistry.register(NAME, Accelerator)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=NAME)
    results = {}
    with registered():
        for name, function in CHECKS.items():
            if names and name not in names:
                continue
            try:
                function()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
