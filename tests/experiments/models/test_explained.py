"""Models that were trained elsewhere (``explained=pipeline`` and ``explained=checkpoint``)."""

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.models.given import GivenModel
from attribution.models.pipeline import Pipeline
from attribution.models.trained import FinalParameters, Trained
from attribution.nodes import InMemory
from attribution.training import RecordError
from experiments.models.experiment import Experiment
from experiments.models.rehearsal import check_sampler, rehearse
from experiments.models.trained import TrainedModel
from experiments.tasks.composition import experiment_of, named
from experiments.tasks.settings import build
from tests.conditional_networks import DIT, EMBEDDED_UNET, PIXART, POOLED, SD3, SIZE
from tests.experiments.tasks.compositions import composed
from tests.worlds import UNET

NETWORK: Any = functools.partial(UNET, dropout=0.0)
SMALL = ("data.n_train=6", "data.n_validation=4", "queries.n=2", "execution.device=cpu", "hardware.accelerator=cpu")
SIZES = ("estimator.draws.n=2", "curvature.draws.n=2")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder with a DDPM pipeline."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("pipeline")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(NETWORK(), scheduler).save_pretrained(path)
    return path


def scores(experiment: Experiment, config: Any) -> np.ndarray:
    queries = build(config, "queries").node(experiment)
    return build(config, "estimator").score(experiment.trained, experiment.train, queries, InMemory()).values


@pytest.mark.parametrize("estimator", ["kfac", "trak", "grad_cos"])
def test_the_scores_of_a_pipeline_are_those_of_its_network(pipeline, estimator):
    """Claim: network, weights and process are the pipeline's: scores equal those of a training result with these parameters."""
    config = composed("explained=pipeline", f"explained.path={pipeline}", *SMALL, *SIZES, f"estimator={estimator}")
    experiment = experiment_of(config)
    assert experiment.trained.process.T == 50
    found = scores(experiment, config)

    class Loaded(Trained):
        NAME = "Loaded"

        def network(self, get, step=None):
            return diffusers.UNet2DModel.from_pretrained(pipeline / "unet").eval()

        def compute(self, get):
            return FinalParameters(pipeline / "unet")  # whose folder identifies it

    loaded = Loaded(model=NETWORK, objective=experiment.objective)
    queries = build(config, "queries").node(experiment)
    expected = build(config, "estimator").score(loaded, experiment.train, queries, InMemory()).values
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_class_conditional_pipeline_is_explained(kind, tmp_path):
    """Claim: a U-Net with classes, or a DiT beside an autoencoder, is rehearsed and sampled with the classes of the data."""
    torch.manual_seed(1)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, beta_schedule="linear")
    if kind == "unet":
        made = diffusers.DDPMPipeline(NETWORK(num_class_embeds=11), scheduler)
    else:
        autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
        made = diffusers.DiTPipeline(DIT(num_embeds_ada_norm=10, out_channels=2), autoencoder, scheduler)
    made.save_pretrained(tmp_path)
    arguments = ["explained=pipeline", f"explained.path={tmp_path}", *SMALL, "diffusion.sampler.steps=2"]
    experiment = experiment_of(composed(*arguments, "condition=labels", "diffusion.sampler.guidance=2"))
    rehearse(experiment)
    samples = InMemory()(experiment.samples(3, 0))
    assert samples.label.tolist() == np.unique(experiment.data.load().train.label)[:3].tolist()
    assert np.isfinite(samples.pixels).all()
    with pytest.raises(FieldError, match="needs a condition of each image"):
        rehearse(experiment_of(composed(*arguments)))


def text_to_image(**settings: Any) -> diffusers.StableDiffusionPipeline:
    """A pipeline of texts without its text encoder, whose embeddings are vectors."""
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.PNDMScheduler(num_train_timesteps=50, skip_prk_steps=True, steps_offset=1)
    parts = {"vae": autoencoder, "unet": EMBEDDED_UNET(**settings), "scheduler": scheduler}
    return diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)


def test_a_text_to_image_pipeline_is_explained(tmp_path):
    """Claim: its U-Net takes the embeddings of the images in place of those of texts; its other networks are not used."""
    torch.manual_seed(1)
    text_to_image().save_pretrained(tmp_path / "pipeline")
    np.save(tmp_path / "texts.npy", np.random.default_rng(0).standard_normal((1797, 3, SIZE)).astype(np.float32))
    arguments = ["explained=pipeline", f"explained.path={tmp_path / 'pipeline'}", *SMALL, *SIZES, "diffusion.sampler.steps=2"]
    given = ["condition=embeddings", f"condition.path={tmp_path / 'texts.npy'}", f"condition.size={SIZE}", "estimator=trak"]
    config = composed(*arguments, *given)
    experiment = experiment_of(config)
    rehearse(experiment)
    assert np.isfinite(InMemory()(experiment.samples(2, 0)).pixels).all()
    assert np.isfinite(scores(experiment, config)).all()
    with pytest.raises(FieldError, match="needs a condition of each image"):
        rehearse(experiment_of(composed(*arguments)))


def diffusion_transformer(kind: str) -> tuple[diffusers.DiffusionPipeline, dict[str, np.ndarray]]:
    """A pipeline of texts without its text encoders, and the embeddings of all digits."""
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
    embeddings = np.random.default_rng(0).standard_normal((1797, 3, SIZE + POOLED)).astype(np.float32)
    arrays = {"embeddings": embeddings[..., :SIZE], "pooled": embeddings[:, 0, SIZE:]}
    if kind == "pixart":
        scheduler = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=50)
        parts = {"transformer": PIXART(), "vae": autoencoder, "scheduler": scheduler}
        return diffusers.PixArtSigmaPipeline(**parts, tokenizer=None, text_encoder=None), arrays
    names = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    parts = {"transformer": SD3(), "vae": autoencoder, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return diffusers.StableDiffusion3Pipeline(**parts, **dict.fromkeys(names)), arrays


@pytest.mark.parametrize("kind", ["pixart", "sd3"])
def test_a_diffusion_transformer_of_texts_is_explained(kind, tmp_path):
    """Claim: PixArt, and Stable Diffusion 3 with its second embedding and its flow, are sampled and scored."""
    torch.manual_seed(1)
    made, arrays = diffusion_transformer(kind)
    made.save_pretrained(tmp_path / "pipeline")
    np.savez(tmp_path / "texts.npz", **arrays)
    arguments = ["explained=pipeline", f"explained.path={tmp_path / 'pipeline'}", *SMALL, *SIZES, "estimator=trak"]
    arguments += ["condition=embeddings", f"condition.path={tmp_path / 'texts.npz'}", f"condition.size={SIZE}"]
    if kind == "sd3":
        with pytest.raises(
            FieldError, match=r"choose both by one diffusion= \(with explained=pipeline, a rectified flow: pipeline_flow\)"
        ):
            check_sampler(experiment_of(composed(*arguments, f"condition.pooled={POOLED}")))
        arguments += ["diffusion=pipeline_flow"]
        with pytest.raises(FieldError, match="takes sequences of 4 numbers, each followed by the 5 numbers of a pooled embedding"):
            rehearse(experiment_of(composed(*arguments)))
        arguments += [f"condition.pooled={POOLED}"]
    config = composed(*arguments, "diffusion.sampler.steps=2", "diffusion.sampler.guidance=2")
    experiment = experiment_of(config)
    if kind == "sd3":
        levels = torch.tensor([100, 500, 501, 900])
        u = torch.sigmoid(torch.special.ndtri((levels.double() - 0.5) / 1000))
        torch.testing.assert_close(experiment.trained.process.level(levels, torch.float64), 3 * u / (1 + 2 * u), rtol=1e-12, atol=0)
    rehearse(experiment)
    assert np.isfinite(InMemory()(experiment.samples(2, 0)).pixels).all()
    assert np.isfinite(scores(experiment, config)).all()


def test_flows_that_are_refused(tmp_path):
    """Claim: a shift that depends on the resolution, and another number of timesteps, are named."""
    made, _ = diffusion_transformer("sd3")
    for i, (settings, message) in enumerate(
        [({"use_dynamic_shifting": True}, "use_dynamic_shifting"), ({"num_train_timesteps": 50}, "has 50")]
    ):
        made.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
        made.save_pretrained(tmp_path / str(i))
        with pytest.raises(ValueError, match=message):
            _ = Pipeline(str(tmp_path / str(i))).process


def test_a_network_with_further_inputs_is_refused(tmp_path):
    """Claim: as that of SDXL, which also takes the size of the image."""
    further = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8}
    text_to_image(**further).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"takes further inputs \(addition_embed_type=text_time\)"):
        _ = Pipeline(str(tmp_path)).network
    made, _ = diffusion_transformer("pixart")
    made.transformer = PIXART(sample_size=128, use_additional_conditions=None)  # which diffusers then takes as true
    made.save_pretrained(tmp_path / "pixart")
    with pytest.raises(ValueError, match=r"takes further inputs \(use_additional_conditions=True\)"):
        _ = Pipeline(str(tmp_path / "pixart")).network


def test_the_final_model_is_the_last_checkpoint(pipeline):
    """Claim: TracInCP at the last checkpoint of a pipeline is the inner product of gradients, and the same node."""
    settings = ("explained=pipeline", f"explained.path={pipeline}", *SMALL, *SIZES)

    def fingerprint(*estimator: str) -> str:
        config = composed(*settings, *estimator)
        experiment = experiment_of(config)
        queries = build(config, "queries").node(experiment)
        return build(config, "estimator").scores(experiment.trained, experiment.train, queries).fingerprint

    assert fingerprint("estimator=tracincp", "estimator.checkpoints=last") == fingerprint("estimator=grad_dot")


def test_the_identity_of_a_pipeline_is_its_content(pipeline, tmp_path):
    """Claim: a copy elsewhere is the same model; another weight or another schedule makes another one."""

    def fingerprint(path: Path) -> str:
        return experiment_of(composed("explained=pipeline", f"explained.path={path}", *SMALL)).trained.fingerprint

    network = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    for name, betas, change in (("copy", "squaredcos_cap_v2", 0), ("weights", "squaredcos_cap_v2", 1), ("betas", "linear", 0)):
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, beta_schedule=betas)
        with torch.no_grad():
            network.conv_out.bias += change
        diffusers.DDPMPipeline(network, scheduler).save_pretrained(tmp_path / name)
        with torch.no_grad():
            network.conv_out.bias -= change
    assert fingerprint(pipeline) == fingerprint(tmp_path / "copy")
    assert len({fingerprint(path) for path in (pipeline, tmp_path / "weights", tmp_path / "betas")}) == 3


def test_a_checkpoint_of_a_model_trained_here(tmp_path):
    """Claim: the parameters of a recorded training, given as a file, have the scores of the recorded model."""
    small = (*SMALL, *SIZES, "trainer.steps=4", "trainer.batch_size=3", "checkpoints.every=2", "model.block_out_channels=[8,8]")
    config, get = composed(*small), InMemory()
    experiment = experiment_of(config)
    record = get(experiment.trained)
    torch.save({"state_dict": {f"net.{k}": v for k, v in record.final_parameters().items()}}, tmp_path / "model.ckpt")
    given = composed(*small, "explained=checkpoint", f"explained.path={tmp_path / 'model.ckpt'}")
    explained = experiment_of(given)
    assert isinstance(explained.trained, GivenModel)
    np.testing.assert_array_equal(scores(explained, given), scores(experiment, config))


def test_retraining_uses_the_recipe_of_the_run(pipeline):
    """Claim: retrained models have the pipeline's network and process, and the recipe, optimizer and data of the run."""
    config = composed("explained=pipeline", f"explained.path={pipeline}", *SMALL, "trainer.steps=7")
    experiment = experiment_of(config)
    rehearse(experiment)
    training = experiment.training
    assert isinstance(training, TrainedModel)
    assert training.recipe.steps == 7
    assert training.process == experiment.trained.process
    assert training.model().conv_in.weight.shape == (8, 1, 3, 3)


def test_weights_that_change_are_not_stored_under_their_old_identity(tmp_path):
    """Claim: a file that another program overwrites between the start of a run and its use is refused."""
    small = (*SMALL, "model.block_out_channels=[8,8]", "explained=checkpoint", f"explained.path={tmp_path / 'model.pt'}")
    network = experiment_of(composed(*SMALL, "model.block_out_channels=[8,8]")).model()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    trained = experiment_of(composed(*small)).trained
    assert trained.fingerprint
    torch.save({name: tensor + 1 for name, tensor in network.state_dict().items()}, tmp_path / "model.pt")
    os.utime(tmp_path / "model.pt", ns=(1, 1))
    with pytest.raises(ValueError, match="changed since the run began"):
        InMemory()(trained)


def test_pipelines_that_are_refused(pipeline, tmp_path):
    """Claim: a latent pipeline, whose U-Net sees no images, is refused; so is a damaged folder, by what is wrong with it."""
    vae = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=4)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    diffusers.LDMPipeline(vae, unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has further networks \(vqvae\)"):
        _ = Pipeline(str(tmp_path)).process
    shutil.rmtree(tmp_path / "unet")
    with pytest.raises(ValueError, match="cannot be read"):
        _ = Pipeline(str(tmp_path)).process


def test_what_needs_a_record_is_refused(pipeline):
    """Claim: estimators that replay training, and benchmarks of the record, refuse a given model before anything is computed."""
    config = composed("explained=pipeline", f"explained.path={pipeline}", *SMALL, "estimator=tracin")
    experiment = experiment_of(config)
    with pytest.raises(RecordError, match="TracIn needs the record"):
        scores(experiment, config)
    several = composed("explained=pipeline", f"explained.path={pipeline}", *SMALL, "estimator=tracincp")
    with pytest.raises(RecordError, match="at several checkpoints needs the record"):
        scores(experiment, several)
    with pytest.raises(RecordError, match="this benchmark needs the record"):
        _ = experiment.recorded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("explained=pipeline", "explained.path=nowhere"), "explained.path=nowhere: the pipeline nowhere does not exist"),
        (("explained=checkpoint", "explained.path=nowhere.pt"), "explained.path=nowhere.pt: is not a file"),
        (("explained=pipeline", "explained.path=PIPELINE", "diffusion=ddpm"), "the pipeline has its own network and process"),
        (("explained=pipeline", "explained.path=PIPELINE", "model=unet_digits"), "the pipeline has its own network and process"),
        (("explained=pipeline", "explained.path=PIPELINE", "data=cifar10"), "takes images of 1×8×8"),
    ],
)
def test_wrong_settings(pipeline, settings, message):
    """Claim: a missing path, and a network or a process beside the pipeline's own, are refused by the setting's name."""
    config = composed(*(setting.replace("PIPELINE", str(pipeline)) for setting in settings), *SMALL)
    with pytest.raises(ValueError, match=r"pipeline|file") as refused:
        _ = experiment_of(config).trained
    assert message in str(named(config, refused.value))


def test_adapters_of_a_text_to_image_pipeline_are_explained(tmp_path):
    """Claim: LoRA weights as diffusers writes them, on the U-Net of a pipeline: gradients are those of the adapters."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    made = text_to_image()
    made.save_pretrained(tmp_path / "pipeline")
    made.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapters = peft.get_peft_model_state_dict(made.unet)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=adapters)
    np.save(tmp_path / "texts.npy", np.random.default_rng(0).standard_normal((1797, 3, SIZE)).astype(np.float32))
    folder = tmp_path / "pipeline"
    config = composed(
        *("explained=checkpoint", f"explained.path={tmp_path / 'pytorch_lora_weights.safetensors'}"),
        *("model=lora", "model@model.base=pipeline", f"model.base.path={folder}", "model.rank=2", "model.targets=[to_q,to_v]"),
        f"model.weights={folder / 'unet' / 'diffusion_pytorch_model.safetensors'}",
        *("diffusion=pipeline", f"diffusion.process.path={folder}", "diffusion.sampler.steps=2", *SMALL, *SIZES),
        *("condition=embeddings", f"condition.path={tmp_path / 'texts.npy'}", f"condition.size={SIZE}", "estimator=trak"),
    )
    experiment = experiment_of(config)
    rehearse(experiment)
    network = experiment.trained.network(InMemory())
    for name, tensor in made.unet.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert experiment.trained.parameter_count == sum(tensor.numel() for tensor in adapters.values())
    assert np.isfinite(scores(experiment, config)).all()
