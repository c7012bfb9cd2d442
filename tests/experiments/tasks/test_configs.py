"""Every shipped config composes, instantiates and works for a step."""

from dataclasses import MISSING, fields

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from attribution.curvature.vector_products import Hessian
from attribution.diffusion import denoiser
from attribution.estimators import Estimator
from attribution.estimators.clip import CLIP
from attribution.nodes import InMemory, describe
from attribution.training.checkpoints import CheckpointRule
from experiments.models.subsets import PublishedSubsets, RandomSubsets
from experiments.queries import HeldOutOfEach, Validation
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.compositions import CONF, composed, options

SLOW = ("tuned", "datamodels", "retraining", "half_trak", "lissa", "astra", "metagradient")
"""Estimators that train models or take many passes."""
TINY = [
    "data.n_train=24",
    "data.n_validation=12",
    "trainer.steps=6",
    "trainer.batch_size=8",
    "model.block_out_channels=[8,8]",
    "checkpoints.every=3",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
]


def test_every_folder_is_a_group_of_the_config():
    """Claim: no config folder is dead: each is chosen by config.yaml or by a group inside it.

    And only the command line sets ``hydra.mode``, so that tests need not compose a config to learn it.
    """
    contents = [OmegaConf.load(path) for path in CONF.rglob("*.yaml")]
    assert not [content for content in contents if OmegaConf.select(content, "hydra.mode") is not None]
    files = [path.relative_to(CONF) for path in CONF.rglob("*/*.yaml")]
    groups = {file.parts[0] for file in files} - {"hydra"}
    chosen = {
        key.split("@")[0].strip("/")
        for entry in OmegaConf.load(CONF / "config.yaml").defaults
        if entry != "_self_"
        for key in entry
    }
    inside = {
        key.split("@")[0].strip("/")
        for content in contents
        for entry in OmegaConf.select(content, "defaults") or ()
        if not isinstance(entry, str)
        for key in entry
        if key.startswith("/")
    }
    assert groups <= chosen | inside
    assert {str(file.parent) for file in files if file.parts[0] == "hydra"} == {"hydra/launcher", "hydra/sweeper", "hydra/help"}


@pytest.mark.parametrize(("preset", "plugin"), [("local", "hydra_joblib_launcher"), ("slurm", "hydra_submitit_launcher")])
def test_launcher_presets_extend_the_plugins(preset, plugin):
    """Claim: where its plugin is installed, each preset composes; the plugin's structured config refuses settings that it lacks."""
    pytest.importorskip(f"hydra_plugins.{plugin}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launcher = compose("config", [f"hydra/launcher={preset}"], return_hydra_config=True).hydra.launcher
    changed = OmegaConf.load(CONF / "hydra" / "launcher" / f"{preset}.yaml")
    assert launcher._target_.startswith(f"hydra_plugins.{plugin}")
    assert all(launcher[key] == changed[key] for key in changed if key != "defaults")


def test_the_search_extends_the_plugin():
    """Claim: where Optuna's sweeper is installed, the preset composes and maximizes, and the plugin has all its settings."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        sweeper = compose("config", ["hydra/sweeper=search"], return_hydra_config=True).hydra.sweeper
    changed = OmegaConf.load(CONF / "hydra" / "sweeper" / "search.yaml")
    assert sweeper._target_.startswith("hydra_plugins.hydra_optuna_sweeper")
    assert sweeper.direction == "maximize"
    assert sweeper.sampler.seed == changed.sampler.seed
    assert {*changed} - {"defaults"} <= {*sweeper}


def test_an_experiment_with_another_benchmark():
    """Claim: an experiment that chooses no benchmark takes any."""
    assert experiment_of(composed("experiment=digits_1000", "benchmark=targeted")).trained.fingerprint


def test_queries_from_the_command_line():
    """Claim: a number and a kind of queries are changed, and a kind is left out, without saying the rest again."""
    queries = composed("benchmark.queries.validation.n=24", "~benchmark.queries.generated", "seed=5").benchmark.queries
    assert instantiate(queries, _convert_="all") == {"validation": Validation(n=24, seed=5)}
    queries = composed("benchmark=targeted", "queries@benchmark.queries.validation=held_out_of_each").benchmark.queries
    assert instantiate(queries.validation) == HeldOutOfEach(n=48, seed=0)
    assert list(queries) == ["validation", "generated"]


@pytest.mark.parametrize(("at", "seed"), [("benchmark", 1), ("estimator", 10001)])
def test_subsets_from_the_command_line(at, seed):
    """Claim: random subsets by default, a datamodel's by another seed than the truth's; published ones need their file alone."""
    config = composed("estimator=datamodels", "seed=1")[at]
    assert instantiate(config.subsets) == RandomSubsets(count={"benchmark": 36, "estimator": 64}[at], seed=seed)
    config = composed("estimator=datamodels", f"subsets@{at}.subsets=published", f"{at}.subsets.path=masks.npy")[at]
    assert instantiate(config.subsets) == PublishedSubsets(path="masks.npy")


def test_lds_and_lds_by_timestep_retrain_the_same_models():
    """Claim: what is retrained, and how it is measured, is the same by default."""
    lds, by_timestep = (composed(f"benchmark={name}").benchmark for name in ("lds", "lds_timesteps"))
    own = {"_target_", "compare", "queries", "rows", "shown", "timesteps", "predictors", "trainings"}
    assert {k: v for k, v in lds.items() if k not in own} == {k: v for k, v in by_timestep.items() if k not in own}


def test_choices_inside_a_benchmark_or_an_estimator():
    """Claim: the curvature of LiSSA and the embedding of regenerated images are chosen by name; there is none unasked."""
    lissa = composed("estimator=lissa", "product@estimator.product=hessian").estimator
    assert instantiate(lissa, _convert_="all").product == Hessian()
    assert composed("benchmark=counterfactual").benchmark.embedding is None
    chosen = composed("benchmark=counterfactual", "embedding@benchmark.embedding=clip", "benchmark.embedding.weights=folder")
    assert instantiate(chosen.benchmark, _convert_="all").embedding == CLIP("folder")


@pytest.mark.parametrize(
    ("group", "name"),
    [*(("benchmark", name) for name in options("benchmark")),
     *(("estimator", name) for name in ("kfac", "lissa", "guided", "rescaled_kfac", "retrac", "source", "tracin", "random"))],
)  # fmt: skip
def test_configurations_and_classes_have_the_same_defaults(group, name):
    """Claim: what a class does unasked is what the command line does unasked.

    A benchmark compares nothing unasked; objects and what is the run's are the command line's business.
    """
    config = composed(f"{group}={name}")[group]
    defaults = {f.name: f.default for f in fields(get_class(config._target_)) if f.default is not MISSING}
    said = {key: tuple(value) if OmegaConf.is_list(value) else value for key, value in config.items()}
    compared = defaults.keys() & {key for key, value in said.items() if not OmegaConf.is_dict(value)} - {"compare"}
    assert not {key for key in compared if said[key] != defaults[key]}


@pytest.fixture(scope="module")
def memory():
    """Artifacts that the estimators share: the training, its samples, the basis of a curvature."""
    return InMemory()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(SLOW) else ())
        for name in options("estimator")
        if not name.endswith("_average")  # of estimators by name (test_rank_averages)
    ],
)
@pytest.mark.slow
def test_every_estimator_scores(name, memory, tmp_path):
    """Claim: each estimator's config gives finite scores of the right shape after a training of six steps."""
    settings = composed(f"estimator={name}", "queries=generated").estimator
    changed = ["estimator.checkpoints=[3,6]"] if settings.get("checkpoints") is not None else []
    changed += ["estimator.segments=2", "estimator.per_segment=1"] if "segments" in settings else []
    changed += ["estimator.draws.n=2"] if "draws" in settings else []
    changed += ["estimator.subsets.count=4"] if OmegaConf.is_dict(settings.get("subsets")) and name != "retraining" else []
    changed += ["estimator.pool=8"] if "pool" in settings else []
    changed += ["estimator.depth=5", "estimator.batch_size=32", "estimator.scale=1000"] if "depth" in settings else []
    if name.startswith(("clip", "dino")):
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        small = transformers.CLIPConfig(text_config=sizes, vision_config={**sizes, "image_size": 8, "patch_size": 4})
        token = transformers.ViTConfig(**sizes, image_size=224, patch_size=112)
        model = transformers.CLIPModel(small) if name.startswith("clip") else transformers.ViTModel(token)
        model.save_pretrained(tmp_path)
        changed.append(f"estimator.embedding.weights={tmp_path}")
    if name.startswith("sscd"):
        with pytest.warns(DeprecationWarning, match="jit"):
            torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())).save(tmp_path / "sscd.pt")
        changed.append(f"estimator.embedding.weights={tmp_path / 'sscd.pt'}")
    config = composed(*TINY, f"estimator={name}", "queries=generated", "diffusion.sampler.steps=4", *changed)
    estimator = instantiate(config.estimator, _convert_="all")
    assert isinstance(estimator, Estimator)
    experiment = experiment_of(config)
    queries = instantiate(config.queries, n=3, _convert_="all").node(experiment)
    scores = estimator.score(experiment.trained, experiment.train, queries, memory)
    for _, variant in estimator.variants(scores):
        assert variant.values.shape == (3, 24)
        assert np.isfinite(variant.values).all()


@pytest.mark.parametrize("draws", options("draws"))
def test_every_draw_scheme_is_an_estimator_s(draws):
    """Claim: draws@estimator.draws chooses the scheme, and the seed is the run's."""
    scheme = instantiate(composed("estimator=retrac", f"draws@estimator.draws={draws}", "seed=5").estimator.draws, _convert_="all")
    assert scheme.seed == 5
    assert scheme.draw("query", torch.arange(2), 1000).timestep.shape == (2, scheme.count)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("unet_64", "unet_128") else ())
        for name in options("model")
        if name not in ("pipeline", "lora")  # tests/experiments/models/test_explained.py, tests/attribution/models/test_lora.py
    ],
)
def test_every_model_makes_a_training_step(name):
    """Claim: each network takes its data's images and gives every parameter a gradient."""
    data = "digits" if "digits" in name else {"unet_64": "artbench2", "unet_128": "celeba"}.get(name, "cifar10")
    classes, embedding = ["condition=labels"], ["condition=embeddings", "condition.path=x.npz", "condition.size=6"]
    of_classes, of_embeddings = ("dit_digits", "unet_digits_classes"), ("pixart_digits", "unet_digits_embeddings", "sd3_digits")
    chosen = classes if name in of_classes else embedding if name in of_embeddings else []
    chosen, size = ([*chosen, "condition.pooled=2"], (1, 5, 8)) if name == "sd3_digits" else (chosen, (1, 6))
    config = composed(f"model={name}", f"data={data}", *chosen)
    network = instantiate(config.model, _convert_="all")()
    x0 = torch.zeros(1, config.data.channels, config.data.size, config.data.size)
    condition = torch.tensor([-1]) if chosen == classes else torch.ones(size) if chosen else None
    objective = instantiate(config.objective, _convert_="all")
    objective(denoiser(network), x0, torch.tensor([5]), torch.ones_like(x0), condition).mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "choice",
    [f"{group}={name}" for group in ("optimizer", "diffusion") for name in options(group) if not name.startswith("pipeline")],
)
def test_every_optimizer_and_diffusion_trains(choice):
    """Claim: each trains for a few steps and records them."""
    config = composed(*TINY, choice)
    get = InMemory()
    assert get(experiment_of(config).trained).steps == [3, 6]


@pytest.mark.parametrize("trainer", options("trainer"))
@pytest.mark.parametrize("checkpoints", options("checkpoints"))
def test_every_recipe_and_checkpoint_rule(trainer, checkpoints):
    """Claim: the checkpoints of a rule lie within the steps of every shipped recipe."""
    config = composed(f"checkpoints={checkpoints}")
    config.trainer = composed(f"trainer={trainer}").trainer
    rule = instantiate(config.checkpoints, _convert_="all")
    assert isinstance(rule, CheckpointRule)
    steps = instantiate(config.trainer).steps
    assert rule.candidates(steps, 16)[-1] == steps


def test_the_sampler_retrains_nothing():
    """Claim: sampling by DDPM or DDIM, or by more steps, is no part of the trained model's identity."""
    records = {experiment_of(composed(*o)).trained.fingerprint for o in ((), ("diffusion=ddpm",), ("diffusion.sampler.steps=10",))}
    assert len(records) == 1
    assert experiment_of(composed("diffusion.schedule.kind=cosine")).trained.fingerprint not in records


def test_defaults_written_out_change_no_fingerprint():
    """Claim: identity is content: the same settings said in another way are the same node."""
    plain = experiment_of(composed()).trained
    said = experiment_of(composed("seed=0", "trainer.warmup=1e-1", "optimizer.lr=0.001", "hardware.interval=7")).trained
    assert plain.fingerprint == said.fingerprint
    assert describe(plain)["data"]["content"] == describe(said)["data"]["content"]
