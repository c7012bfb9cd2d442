"""Gradient norms at recorded and other draws, scores at other timesteps of training, and pretrained pipelines."""

from dataclasses import dataclass, replace

import diffusers
import numpy as np
import pytest
import torch

from attribution.estimators import TracIn
from attribution.estimators.balance import TimestepNorms
from attribution.estimators.retiming import AtLargestNorm, AtRandom, Retimed, Timing
from attribution.execution import Execution
from attribution.gradients.gradient_sets import GradientsAtDraws, GradientsAtRecordedDraws, PipelineGradients
from attribution.gradients.norms import GradientNorms
from attribution.gradients.per_example import Captured, PerExampleGradients
from attribution.images.draws import Draws, Fixed, Uniform
from attribution.measurements import Loss
from attribution.models.pipeline import Pipeline
from attribution.nodes import InMemory
from tests.references import draw_gradients, draw_norms
from tests.worlds import PROCESS, UNET, Blobs, trained

RECORD = trained()
CHECKPOINTS = [4, 9]
CPU = Execution(device="cpu")
GRID = (1, 40, 100)
POOL, QUERIES = Blobs(n=8), Blobs(n=2, first=900)
"""Images with ids of the training set; their pixels may differ."""


@pytest.fixture(scope="module")
def get():
    """An in-memory store for all tests, which share the training."""
    return InMemory()


def as_trained(**changes):
    settings = {"images": POOL, "trained": RECORD, "checkpoints": CHECKPOINTS, "execution": CPU}
    return GradientsAtRecordedDraws(**{**settings, **changes})


def at(draws, timesteps):
    """Return draws with the same noise at each of ``timesteps``."""
    K = len(timesteps)
    return Draws(torch.tensor(timesteps).expand(len(draws), K), draws.noise_seed.expand(-1, K), draws.flip.expand(-1, K))


def slow_gradients(get, step, timesteps=None):
    """Return the gradient of every image at its recorded noise by one backward pass each, float64 ``[n, K, parameters]``."""
    images = get(POOL)
    draws = get(RECORD).latest_draws(step, images.index)
    draws = draws if timesteps is None else at(draws, timesteps)
    network = RECORD.network(get, step).double()
    found = draw_gradients(Loss(PROCESS), network, images.x0().double(), draws)
    return torch.cat([g.flatten(2) for g in found.values()], 2), draws


@pytest.mark.parametrize("timesteps", [None, GRID])
def test_norms_are_those_of_plain_gradients(get, timesteps):
    """Claim: norms at the recorded noise, at recorded or other timesteps, are those of a backward pass in float64."""
    found = get(GradientNorms(as_trained(timesteps=timesteps)))
    for s, step in enumerate(CHECKPOINTS):
        gradients, draws = slow_gradients(get, step, timesteps)
        np.testing.assert_allclose(found.norms[s], draw_norms({"all": gradients}), rtol=1e-9)
        np.testing.assert_array_equal(found.timestep[s], draws.timestep)


def test_norms_at_a_scheme_are_those_of_plain_gradients(get):
    """Claim: norms of a checkpoint and of the final model, with one draw or several, are those of backward passes."""
    images = get(POOL)
    for step, scheme in ((4, Fixed((40,), seed=2)), (None, Uniform(3, seed=5))):
        of = GradientsAtDraws(images=POOL, trained=RECORD, step=step, scheme=scheme, role="a role", execution=CPU)
        draws = scheme.draw("a role", images.ids(), PROCESS.T)
        slow = draw_gradients(Loss(PROCESS), RECORD.network(get, step).double(), images.x0().double(), draws)
        np.testing.assert_allclose(get(GradientNorms(of)).norms[0], draw_norms(slow), rtol=1e-5)


def test_whole_gradients_are_held_only_where_there_is_one_draw(get, monkeypatch):
    """Claim: with one draw, blocks respect the memory for gradients; with several, the batch size; norms do not change."""
    counted = []
    capture = PerExampleGradients.capture
    monkeypatch.setattr(PerExampleGradients, "capture", lambda self, m, x0, *a: counted.append(len(x0)) or capture(self, m, x0, *a))
    for n, memory, most in ((1, 4 * 2 * RECORD.parameter_count, 2), (2, 1e9, 3)):
        little = Execution(device="cpu", batch_size=6, pass_memory=memory)
        of = GradientsAtDraws(images=POOL, trained=RECORD, step=9, scheme=Uniform(n), role="a role", execution=little)
        counted.clear()
        found = GradientNorms(of).compute(fresh(get))
        assert counted == [most] * (8 // most) + [8 % most] * (8 % most > 0)
        np.testing.assert_allclose(found.norms, get(GradientNorms(replace(of, execution=CPU))).norms, rtol=1e-6)


def test_norms_that_are_not_finite_are_named(get, monkeypatch):
    """Claim: the error names the checkpoint, the timestep and the settings to change."""
    monkeypatch.setattr(Captured, "norms", lambda self: torch.tensor([[1.0], [np.nan]]).expand(2, self._draws.count))
    of = GradientsAtDraws(images=Blobs(n=2), trained=RECORD, step=9, scheme=Fixed((40,), seed=7), role="a role", execution=CPU)
    with pytest.raises(FloatingPointError, match=r"1 of 2 .*timestep 40 under checkpoint 9.*lower the learning rate.*clip"):
        GradientNorms(of).compute(fresh(get))


def fresh(get):
    """Return an in-memory store with only the training."""
    memory = InMemory()
    memory._artifacts[RECORD.fingerprint] = get(RECORD)
    return memory


@pytest.mark.slow
def test_the_table_by_timestep_comes_in_shards(get):
    """Claim: the table of norms by timestep is computed in shards and does not depend on their size."""
    whole, cut = (TimestepNorms(RECORD, POOL, 0, Execution(device="cpu", shard=shard)) for shard in (512, 3))
    assert whole.fingerprint == cut.fingerprint
    assert [part.rows for part in cut.parts(get)] == [(0, 3), (3, 6), (6, 8)]
    np.testing.assert_allclose(cut.compute(get).norms, get(whole).norms, rtol=1e-6)


def test_execution_changes_no_norm(get):
    """Claim: norms and their identity do not depend on shards and batches."""
    whole, cut = as_trained(timesteps=GRID), as_trained(timesteps=GRID, execution=Execution(device="cpu", shard=3, batch_size=2))
    assert GradientNorms(whole).fingerprint == GradientNorms(cut).fingerprint
    assert len(GradientNorms(cut).parts(get)) == 6
    np.testing.assert_allclose(get(GradientNorms(whole)).norms, GradientNorms(cut).compute(get).norms, rtol=1e-9)


@dataclass(frozen=True)
class AsRecorded(Timing):
    """The recorded timesteps of training."""

    def timesteps(self, record, images, checkpoints, get):
        return np.stack([get(record).latest_draws(step, get(images).index).timestep[:, 0].numpy() for step in checkpoints])


def tracin():
    return TracIn(measurement=Loss(PROCESS), draws=Fixed([20, 60], seed=1), checkpoints=CHECKPOINTS, execution=CPU)


def scores_at(get, timing):
    return get(tracin().scores(Retimed.of(RECORD, POOL, CHECKPOINTS, timing), POOL, QUERIES)).values


def test_retiming_to_the_true_timesteps_changes_nothing(get):
    """Claim: replacing the timesteps of a record by themselves gives bit-equal scores."""
    np.testing.assert_array_equal(scores_at(get, AsRecorded()), tracin().score(RECORD, POOL, QUERIES, get).values)


def test_scores_at_t_max_are_the_equation_there(get):
    """Claim: Σ_k η_k ⟨Q_k, G_k⟩ with G_k at the recorded noise and the timestep whose norm is the largest of the grid."""
    record, queries = get(RECORD), get(QUERIES)
    expected = torch.zeros(2, 8, dtype=torch.float64)
    for step in CHECKPOINTS:
        network = RECORD.network(get, step).double()
        drawn = tracin().draws.draw("query", queries.ids(), PROCESS.T)
        sides = draw_gradients(Loss(PROCESS), network, queries.x0().double(), drawn)
        Q = torch.cat([g.mean(1).flatten(1) for g in sides.values()], 1)
        gradients, _ = slow_gradients(get, step, timesteps=GRID)
        G = torch.stack([of_image[of_image.norm(dim=1).argmax()] for of_image in gradients])
        expected += record.learning_rate(step) * Q @ G.T
    np.testing.assert_allclose(scores_at(get, AtLargestNorm(GRID, CPU)), expected, rtol=1e-4, atol=1e-9)


def test_random_timesteps_cover_the_schedule(get):
    """Claim: timesteps are uniform in 1..T, differ between checkpoints and seeds, and are reproducible."""
    images = Blobs(n=500)
    drawn = AtRandom(3).timesteps(RECORD, images, CHECKPOINTS, get)
    assert drawn.shape == (2, 500)
    assert drawn.min() >= 1
    assert drawn.max() <= PROCESS.T
    assert abs(drawn.mean() - 50.5) < 3
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.15
    np.testing.assert_array_equal(drawn, AtRandom(3).timesteps(RECORD, images, CHECKPOINTS, get))
    assert (drawn != AtRandom(4).timesteps(RECORD, images, CHECKPOINTS, get)).any()


@pytest.fixture
def pipeline(tmp_path):
    """A randomly initialized DDPM for gray 8 × 8 images, as diffusers saves it."""
    torch.manual_seed(0)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.1)
    diffusers.DDPMPipeline(UNET(), scheduler).save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def test_norms_of_a_pretrained_pipeline(pipeline, get):
    """Claim: norms are those of the pipeline's network under its noise schedule, at draws given by the seed."""
    of = PipelineGradients(images=POOL, pipeline=Pipeline(str(pipeline)), scheme=Uniform(2, seed=5), execution=CPU)
    found, images = get(GradientNorms(of)), get(POOL)
    network = diffusers.DDPMPipeline.from_pretrained(pipeline).unet.double()
    draws = Uniform(2, seed=5).draw("norms", images.ids(), 100)
    slow = draw_norms(draw_gradients(Loss(PROCESS), network, images.x0().double()[:5], draws.rows(slice(0, 5))))
    np.testing.assert_allclose(found.norms[0, :5], slow, rtol=1e-3)
    np.testing.assert_array_equal(found.timestep[0], draws.timestep)


def test_a_pipeline_is_its_content(pipeline, tmp_path):
    """Claim: a copied pipeline has the same identity, another network has another; known schedules are recognized by their ᾱ."""
    pipeline.rename(tmp_path / "b")
    torch.manual_seed(1)
    diffusers.DDIMPipeline(UNET(), diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path / "c")
    copied, other = Pipeline(str(tmp_path / "b")), Pipeline(str(tmp_path / "c"))
    (tmp_path / "b" / "README.md").write_text("words")
    assert copied.description() == Pipeline(str(tmp_path / "b")).description() != other.description()
    assert (copied.process.schedule.kind, copied.process.T) == ("linear", 100)
    assert (other.process.schedule.kind, other.process.T) == ("cosine", 1000)


@pytest.mark.parametrize(
    ("scheduler", "kind", "prediction"),
    [
        ({"beta_schedule": "sigmoid"}, "sigmoid", "epsilon"),
        ({"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}, "scaled_linear", "v"),
        ({"trained_betas": [0.1, 0.02, 0.3], "prediction_type": "sample"}, None, "sample"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, None, "v"),
    ],
)
def test_the_process_of_a_pipeline(tmp_path, scheduler, kind, prediction):
    """Claim: it has the prediction and the ᾱ_t of the scheduler, by the name of a schedule or as given variances."""
    theirs = diffusers.DDPMScheduler(**scheduler)
    diffusers.DDPMPipeline(UNET(), theirs).save_pretrained(tmp_path / "a")
    process = Pipeline(str(tmp_path / "a")).process
    assert process.prediction == prediction
    np.testing.assert_allclose(process.schedule.alpha_bars[1:], theirs.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-6)
    assert (process.schedule.kind == kind) if kind else (process.schedule.trained_betas is not None)


def test_pipelines_that_are_no_use_are_refused(tmp_path):
    """Claim: no pipeline, and a prediction of the noise under zero terminal SNR, are errors in a sentence."""
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    diffusers.DDPMPipeline(UNET(), scheduler).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"DDPM\.prediction=epsilon: x_T is pure noise.* choose v or sample"):
        _ = Pipeline(str(tmp_path / "a")).process
    with pytest.raises(ValueError, match=r"^the pipeline .*nowhere"):
        _ = Pipeline(str(tmp_path / "nowhere")).process


def test_a_pipeline_for_other_images_is_refused(pipeline):
    """Claim: a pipeline for another number of channels or another size raises an error."""
    with pytest.raises(ValueError, match=r"1×8×8.*3×32×32"):
        Pipeline(str(pipeline)).check_shape((3, 32, 32))
