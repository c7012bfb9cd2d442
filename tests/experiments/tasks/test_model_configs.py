"""The shipped configurations of data, diffusion and models: each composes, instantiates and runs one step."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue
from PIL import Image

from attribution.diffusion import DDPM, NoiseSchedule, denoiser
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.measurements import Loss
from experiments.datasets import CIFAR10, CIFARMNIST, MNIST, DataError, Digits, Folder, Source
from experiments.datasets.selection import random_order
from tests.experiments.datasets.fake_data import write_cifar, write_mnist


def configuration(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose(overrides=list(overrides))


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar2", "cifar_mnist"])
def test_data_sets_load_from_their_configurations(tmp_path, name):
    """Every data set takes ``data.root``; its channels and size are those of its images."""
    write_cifar(tmp_path, per_batch=20)
    write_mnist(tmp_path / "MNIST" / "raw", n=40)
    sizes = {"cifar2": ["data.n_train=10", "data.n_validation=null"], "cifar_mnist": ["data.zeros=2"]}
    config = configuration(f"+data={name}", f"data.root={tmp_path}", *sizes.get(name, [])).data
    source: Source = instantiate(config)
    train = source.load().train
    assert train.shape == (config.channels, config.size, config.size)
    assert len(train) == {"digits": 256, "mnist": 40, "cifar10": 100, "cifar2": 10, "cifar_mnist": 12}[name]


@pytest.mark.parametrize(
    ("name", "source"), [("digits", Digits()), ("mnist", MNIST()), ("cifar10", CIFAR10()), ("cifar_mnist", CIFARMNIST())]
)
def test_configurations_and_classes_have_the_same_defaults(name, source):
    """What the library does unasked is what the command line does unasked."""
    assert instantiate(configuration(f"+data={name}").data) == source


def test_images_of_one_s_own_load_from_their_configuration(tmp_path):
    """The class does unasked what the command line does unasked; sizes may be lists; root and size are asked for."""
    for number in range(10):
        Image.new("L", (12, 8), number).save(tmp_path / f"{number}.png")
    config = configuration("+data=folder", f"data.root={tmp_path}", "data.size=[8,12]").data
    source = instantiate(config)
    assert source == Folder(root=str(tmp_path), size=[8, 12])
    assert source.load().train.shape == source.shape == (3, 8, 12)
    with pytest.raises(MissingMandatoryValue, match=r"data\.size"):
        instantiate(configuration("+data=folder", f"data.root={tmp_path}").data)


def test_lists_from_the_command_line_make_usable_sources(tmp_path):
    write_mnist(tmp_path)
    source = instantiate(configuration("+data=mnist", f"data.root={tmp_path}", "data.classes=[2,5]").data)
    assert set(source.load().train.label) == {2, 5}
    with pytest.raises(DataError, match=r"data\.n_train=5000 takes 2500"):
        instantiate(configuration("+data=mnist", f"data.root={tmp_path}", "data.classes=[2,5]", "data.n_train=5000").data).load()


@pytest.mark.parametrize(("name", "sampler"), [("ddpm", DDPMSampler()), ("ddim", DDIMSampler(steps=50, eta=0.0))])
def test_diffusion_configurations(name, sampler):
    """Ho et al.'s schedule with either sampler; ``diffusion.schedule.kind=cosine`` is the other schedule."""
    diffusion = instantiate(configuration(f"+diffusion={name}").diffusion)
    assert diffusion["schedule"] == NoiseSchedule(T=1000, kind="linear", beta_start=1e-4, beta_end=0.02)
    assert diffusion["process"] == DDPM(diffusion["schedule"])
    assert diffusion["sampler"] == sampler
    cosine = configuration(f"+diffusion={name}", "diffusion.schedule.kind=cosine").diffusion.schedule
    assert instantiate(cosine) == NoiseSchedule(kind="cosine")


@pytest.mark.parametrize(
    ("name", "data", "fewest", "most"),
    [("unet_digits", "digits", 80e3, 130e3), ("unet_small", "cifar10", 1e6, 2e6), ("unet_cifar", "cifar2", 35e6, 38e6)],
)
def test_models_have_their_size_and_run_one_step(name, data, fewest, most):
    """Built to the data's channels and size, with as many parameters as they say; all of these get a gradient."""
    config = configuration(f"+data={data}", f"+model={name}")
    model = instantiate(config.model)()
    assert fewest < sum(parameter.numel() for parameter in model.parameters()) < most
    shape = (config.data.channels, config.data.size, config.data.size)
    x0, noise = torch.randn(2, 1, *shape).unbind()
    Loss(DDPM(NoiseSchedule()))(denoiser(model), x0, torch.tensor([500]), noise).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_samples_of_a_network_do_not_depend_on_the_batch():
    """The default model's samples for some seeds, alone or among others and in another order, agree to float tolerance."""
    torch.manual_seed(0)
    model = instantiate(configuration("+data=digits", "+model=unet_digits").model)()
    sampler, seeds = DDIMSampler(steps=5, eta=1.0), torch.arange(7)
    together = sampler.sample(model, DDPM(NoiseSchedule()), (1, 8, 8), seeds)
    order = torch.from_numpy(random_order(0, "batch", seeds.numpy()))
    for part in order.split(3):
        alone = sampler.sample(model, DDPM(NoiseSchedule()), (1, 8, 8), seeds[part])
        torch.testing.assert_close(alone, together[part], rtol=1e-4, atol=1e-4)
