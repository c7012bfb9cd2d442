"""Devices without float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.double_precision import double, double_device
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


def test_float64_is_on_the_cpu_where_the_device_has_none():
    """Claim: MPS is the device without float64; tensors stay where they are on all others."""
    assert double_device(torch.device("mps")) == torch.device("cpu")
    assert double_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert double(torch.ones(2, device="meta")).device.type == "meta"
    assert double(torch.ones(2)).dtype == torch.float64
