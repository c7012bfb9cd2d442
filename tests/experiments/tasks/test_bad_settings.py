"""Bad settings of benchmarks and estimators: errors name the setting when the nodes are listed, before anything runs."""

import re

import pytest

from attribution.checks import FieldError
from experiments.tasks.composition import experiment_of
from experiments.tasks.settings import build, by_setting
from tests.experiments.tasks.test_configs import composed

SMALL = ["data.n_train=24", "data.n_validation=12"]


def listed_nodes(*arguments: str) -> None:
    """List the nodes of the chosen estimator under the chosen benchmark, as the command line does."""
    config = composed(*arguments)
    try:
        estimators = {"chosen": build(config, "estimator")}
        build(config, "benchmark").nodes(experiment_of(config), estimators)
    except ValueError as error:
        raise by_setting(config, error) from error


POOLS = ["benchmark.queries.validation.n=8", "benchmark.queries.generated.n=8", "benchmark.n=4", "benchmark.k=[5]"]
NORMALIZATION = ["benchmark=normalization", "estimator=guided", *POOLS]
TARGETED = ["benchmark=targeted", "estimator=retrac", *POOLS]
BIAS = ["benchmark=timestep_bias", "estimator=tracin"]
SMALLER = ["benchmark.examples=20", "benchmark.correlated=10", "benchmark.k=5", "benchmark.queries.validation.n=4"]
LDS = ["benchmark=lds", "estimator=random", "benchmark.queries.validation.n=4"]


@pytest.mark.parametrize(
    ("chosen", "setting", "said"),
    [
        (NORMALIZATION, "benchmark.k=[5.5]", "benchmark.k[0]=5.5: must be a whole number"),
        (NORMALIZATION, "benchmark.strengths=0.5", "benchmark.strengths=0.5: must be a list of numbers"),
        (NORMALIZATION, "benchmark.strengths=[0,true]", "benchmark.strengths[1]=true: must be a number"),
        (NORMALIZATION, "estimator.timestep=true", "estimator.timestep=true: must be a whole number or null"),
        (NORMALIZATION, "estimator.strength=[0.5,2]", "estimator.strength[1]=2: must be a number, within 0..1"),
        (TARGETED, "benchmark.sets=1.5", "benchmark.sets=1.5: must be a whole number"),
        (LDS, "benchmark.rows=0", "benchmark.rows=0: must be a whole number, at least 1"),
        (LDS, "benchmark.seeds=1.5", "benchmark.seeds=1.5: must be a whole number"),
        (LDS, "benchmark.seeds=abc", "benchmark.seeds=abc: must be a whole number"),
        (LDS, "benchmark.repeats=50", "benchmark.repeats=50: must be a whole number, within 0..36"),
        (BIAS, "benchmark.examples=abc", "benchmark.examples=abc: must be a whole number"),
        (
            [*BIAS, *SMALLER],
            "benchmark.pretrained=nowhere/at_all",
            "benchmark.pretrained=nowhere/at_all: the pipeline nowhere/at_all",
        ),
    ],
)
def test_refused_by_name(chosen, setting, said):
    """Claim: the sentence begins with the setting as the command line has it, and says what it may be."""
    name = setting.partition("=")[0]
    arguments = [argument for argument in chosen if argument.partition("=")[0] != name]
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        listed_nodes(*SMALL, *arguments, setting)


def test_repeats_count_only_with_one_seed():
    """Claim: more repeats than subsets are no error where several seeds leave them out."""
    listed_nodes(*SMALL, *LDS, "benchmark.queries.generated.n=4", "benchmark.repeats=50", "benchmark.seeds=2")


def test_a_missing_device_is_refused_with_the_experiment():
    """Claim: a device that does not exist is refused when the experiment is built, before anything is trained."""
    config = composed(*SMALL, "execution.device=foo")
    with pytest.raises(FieldError) as refused:
        experiment_of(config)
    assert str(by_setting(config, refused.value)).startswith("execution.device=foo: not available")
