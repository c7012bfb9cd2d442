"""Which devices have float64. ``tests/test_devices.py`` runs computations on one that has none."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.double_precision import double, double_device, has_float64, on_device
from attribution.measurements import Elbo, ElboWeighted, Loss

PROCESS = DDPM(NoiseSchedule(T=20))


class NoFloat64(TorchDispatchMode):
    """Refuse every float64 tensor on the meta device, as MPS does. Values are read as true, because there are none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return True
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type == "meta" and value.dtype == torch.float64:
                raise TypeError(f"{function}: the device has no float64")
        return result


def denoise(x_t, t, condition=None):
    return 0.5 * x_t


@pytest.fixture
def meta() -> Iterator[torch.device]:
    """A device without float64."""
    has_float64.cache_clear()
    with NoFloat64():
        yield torch.device("meta")
    has_float64.cache_clear()


def test_the_stand_in_refuses_float64():
    """Claim: the tests below can fail."""
    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.ones(2, dtype=torch.float64).to("meta")


@pytest.mark.parametrize("measure", [Loss(PROCESS), ElboWeighted(PROCESS), Elbo(PROCESS, levels=16)], ids=lambda m: m.NAME)
def test_measures_need_no_float64(measure):
    """Claim: noise is added and costs are computed without float64 on the device."""
    x0, t, noise = (tensor.to("meta") for tensor in (torch.zeros(3, 1, 4, 4), torch.arange(1, 4), torch.ones(3, 1, 4, 4)))
    with NoFloat64():
        costs = measure(denoise, x0, t, noise)
    assert costs.shape == (3,)
    assert costs.dtype == torch.float32


@pytest.mark.parametrize("sampler", [DDIMSampler(steps=5), DDPMSampler()], ids=lambda s: s.NAME)
def test_samplers_need_no_float64(sampler):
    """Claim: images are sampled without float64 on the device."""
    with NoFloat64():
        images = sampler.sample(denoise, PROCESS, (1, 4, 4), torch.arange(2, device="meta"))
    assert images.shape == (2, 1, 4, 4)


def test_float64_is_on_the_cpu_where_the_device_has_none(meta):
    """Claim: a device that refuses float64 is found by trying, and what needs float64 is computed on the CPU."""
    assert not has_float64(meta)
    assert double_device(meta) == torch.device("cpu")
    assert next(on_device(nn.Linear(2, 2), meta).parameters()).device == meta
    with pytest.raises(ValueError, match="has no float64: choose the CPU, or float32"):
        on_device(nn.Linear(2, 2).double(), meta)


def test_float64_stays_on_a_device_that_has_it():
    """Claim: CPUs and CUDA GPUs are not tried; tensors stay where they are, as float64."""
    for name in ("cpu", "cuda:1", "meta"):
        assert double_device(torch.device(name)) == torch.device(name)
    assert double(torch.ones(2, device="meta")).device.type == "meta"
    assert double(torch.ones(2)).dtype == torch.float64
