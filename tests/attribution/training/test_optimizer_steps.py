"""Steps of optimizers written as functions, against ``torch.optim`` and autograd."""

import functools

import pytest
import torch

from attribution.training.optimizer_steps import GRADIENT, PARAMETERS, optimizer_settings, pulled_back, state_names, step_after

P, RATES = 5, (0.0, 0.3, 0.1)
OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=1.0, weight_decay=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True, maximize=True),
    "adam": functools.partial(torch.optim.Adam, lr=1.0, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, lr=1.0, weight_decay=0.1, maximize=True),
    "amsgrad": functools.partial(torch.optim.AdamW, lr=1.0, betas=(0.5, 0.5), amsgrad=True),
}


def randomly(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name):
    """Claim: three steps, the first with a learning rate of 0, give the parameters and the state of ``torch.optim``."""
    kind, settings = optimizer_settings(OPTIMIZERS[name])
    parameter, gradients = torch.nn.Parameter(randomly(P)), randomly(3, P)
    optimizer, state = OPTIMIZERS[name]([parameter]), {PARAMETERS: randomly(P)}
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"], parameter.grad = rate, gradients[step].clone()
        optimizer.step()
        state = step_after(kind, settings, rate, step, state, gradients[step])
    torch.testing.assert_close(state.pop(PARAMETERS), parameter.detach(), rtol=1e-12, atol=0)
    assert set(state) == set(state_names(kind, settings))
    for of, tensor in state.items():
        torch.testing.assert_close(tensor, optimizer.state[parameter][of], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_products_are_those_of_the_jacobian(name):
    """Claim: vector-Jacobian products of a first and a later step are those of autograd, for each of several vectors."""
    kind, settings = optimizer_settings(OPTIMIZERS[name])
    names = (PARAMETERS, *state_names(kind, settings))
    adjoints = {of: randomly(3, P) + place for place, of in enumerate(names)}
    first = {PARAMETERS: randomly(P)}
    for step, before in ((0, first), (4, {of: randomly(P + place).abs()[:P] for place, of in enumerate(names)})):
        found = pulled_back(kind, settings, 0.3, step, before, randomly(P), adjoints)
        assert set(found) == {*before, GRADIENT}
        for q in range(3):

            def total(*inputs, before=before, step=step, q=q):
                after = step_after(kind, settings, 0.3, step, dict(zip(before, inputs, strict=False)), inputs[-1])
                return sum((adjoints[of][q] * tensor).sum() for of, tensor in after.items())

            expected = torch.autograd.functional.jacobian(total, (*before.values(), randomly(P)))
            for of, derivative in zip((*before, GRADIENT), expected, strict=True):
                torch.testing.assert_close(found[of][q], derivative, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_parameters_without_a_gradient_have_derivatives(name):
    """Claim: where all gradients were 0, the derivative by the gradient is that of a tiny gradient, and that of the root is 0."""
    kind, settings = optimizer_settings(OPTIMIZERS[name])
    settings["weight_decay"] = 0
    zero, names = torch.zeros(1, dtype=torch.float64), (PARAMETERS, *state_names(kind, settings))
    adjoints = {of: torch.zeros(1, 1, dtype=torch.float64) for of in names} | {PARAMETERS: torch.ones(1, 1, dtype=torch.float64)}
    found = pulled_back(kind, settings, 0.3, 0, {PARAMETERS: zero}, zero, adjoints)
    moved = [step_after(kind, settings, 0.3, 0, {PARAMETERS: zero}, zero + g)[PARAMETERS] for g in (-1e-14, 1e-14)]
    torch.testing.assert_close(found[GRADIENT][0], (moved[1] - moved[0]) / 2e-14, rtol=1e-4, atol=0)
    later = pulled_back(kind, settings, 0.3, 3, dict.fromkeys(names, zero), zero, adjoints)
    assert all(tensor.isfinite().all() for tensor in later.values())
