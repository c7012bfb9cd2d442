"""The weights of the measurements by timestep, their shares and the task that shows them."""

import numpy as np
import pytest

from attribution.diffusion import DDPM, NoiseSchedule
from experiments import figures
from experiments.figures.loss_weights import weights_by_timestep
from experiments.tasks.loss_weights import weight_shares
from tests.experiments.tasks.test_cli import rows, run


def slow_weight(betas: list[float], t: int, small: bool) -> float:
    """What KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)) is of (ε - ε_θ)² for a single pixel, both posteriors by Bayes' rule.

    ``small``: both have the posterior's variance; otherwise p_θ, of which only the term of the means counts, has β_t.
    """
    x0, noise, predicted = 0.3, 0.8, -0.4
    alpha_bar = {s: float(np.prod([1 - beta for beta in betas[:s]])) for s in (t - 1, t)}
    x_t = alpha_bar[t] ** 0.5 * x0 + (1 - alpha_bar[t]) ** 0.5 * noise
    seen_x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * predicted) / alpha_bar[t] ** 0.5
    beta = betas[t - 1]
    if t == 1:  # x_0 itself: no spread, the mean is the image
        means, variance = (x0, seen_x0), 0.0
    else:
        # N(x_t; √α x, β) · N(x; √ᾱ' x_0, 1-ᾱ') as a function of x: precisions add, means are weighted by them.
        precision = (1 - beta) / beta + 1 / (1 - alpha_bar[t - 1])
        ends = [x_t * (1 - beta) ** 0.5 / beta + alpha_bar[t - 1] ** 0.5 * x / (1 - alpha_bar[t - 1]) for x in (x0, seen_x0)]
        means, variance = tuple(end / precision for end in ends), 1 / precision
    return (means[0] - means[1]) ** 2 / (2 * (variance if small else beta)) / (noise - predicted) ** 2


@pytest.mark.parametrize("schedule", [NoiseSchedule(), NoiseSchedule(T=60, kind="cosine"), NoiseSchedule(T=2)], ids=str)
def test_weights_are_those_of_the_bound(schedule):
    """Claim: elbo counts the square error as its KL terms do, elbo_weighted as with variance β_t, loss everywhere alike."""
    betas = [float(beta) for beta in schedule.betas]
    found = weights_by_timestep(DDPM(schedule))
    assert list(found) == ["loss", "elbo", "elbo_weighted"]
    assert (found["loss"] == 1).all()
    T = schedule.T
    for name, first in (("elbo", 2), ("elbo_weighted", 1)):
        expected = np.array([slow_weight(betas, t, small=name == "elbo") for t in range(first, T + 1)])
        np.testing.assert_allclose(found[name][first - 1 :], expected / expected.mean(), rtol=1e-6)
        assert np.isnan(found[name][: first - 1]).all()


@pytest.mark.parametrize(
    ("T", "stretches"), [(1000, [(1, 10), (11, 100), (101, 1000)]), (100, [(1, 10), (11, 100)]), (5, [(1, 5)])]
)
def test_shares_are_sums_of_weights(T, stretches):
    """Claim: stretches cover 1..T once; each share is the sum of its weights over that of all."""
    schedule = NoiseSchedule(T=T)
    betas = [float(beta) for beta in schedule.betas]
    found = list(weight_shares(DDPM(schedule)))
    assert len(found) == 3 * len(stretches)
    shares = {(row.swept["measurement"], row.metric): row.estimate.value for row in found}
    for name, weight in {"loss": lambda t: 1.0, "elbo": lambda t: slow_weight(betas, t, True) if t > 1 else 0.0}.items():
        total = sum(weight(t) for t in range(1, T + 1))
        for first, last in stretches:
            share = sum(weight(t) for t in range(first, last + 1)) / total
            assert shares[name, f"weight_share[{first},{last}]"] == pytest.approx(share, rel=1e-6)


def test_figure_says_what_the_curves_are():
    """Claim: each curve carries the measurement's name, which the legend explains."""
    figure = figures.loss_weights(DDPM(NoiseSchedule(T=20)))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [word.partition(" – ")[0] for word in words] == [str(line.get_label()) for line in figure.axes[0].get_lines()]


def test_the_task_trains_nothing(tmp_path):
    """Claim: task=loss_weights leaves rows of the run's schedule and the figure, and no store."""
    printed = run(tmp_path, "task=loss_weights", "diffusion.schedule.T=200", f"hydra.run.dir={tmp_path / 'out'}")
    found = rows(tmp_path / "out")
    assert {row["metric"] for row in found} == {"weight_share[1,10]", "weight_share[11,100]", "weight_share[101,200]"}
    for name in ("loss", "elbo", "elbo_weighted"):
        assert sum(row["value"] for row in found if row["swept"]["measurement"] == name) == pytest.approx(1)
        assert name in printed
    assert (tmp_path / "out" / "loss_weights.png").stat().st_size > 5000
    assert not (tmp_path / "store").exists()
