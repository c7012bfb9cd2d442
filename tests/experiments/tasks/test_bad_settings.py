"""Settings of benchmarks and estimators that cannot be: refused by their names when the nodes are listed, nothing being run."""

import re

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.test_configs import composed

SMALL = ["data.n_train=24", "data.n_validation=12"]


def listed_nodes(*arguments: str) -> None:
    """Lists the nodes of the chosen estimator under the chosen benchmark."""
    config = composed(*arguments)
    estimators = {"chosen": instantiate(config.estimator, _convert_="all")}
    instantiate(config.benchmark, _convert_="all").nodes(experiment_of(config), estimators)


POOLS = ["benchmark.queries.validation.n=8", "benchmark.queries.generated.n=8", "benchmark.n=4", "benchmark.k=[5]"]
NORMALIZATION = ["benchmark=normalization", "estimator=guided", *POOLS]
TARGETED = ["benchmark=targeted", "estimator=retrac", *POOLS]
BIAS = ["benchmark=timestep_bias", "estimator=tracin"]
SMALLER = ["benchmark.examples=20", "benchmark.correlated=10", "benchmark.k=5", "benchmark.queries.validation.n=4"]
LDS = ["benchmark=lds", "estimator=random", "benchmark.queries.validation.n=4"]


@pytest.mark.parametrize(
    ("chosen", "setting", "said"),
    [
        (NORMALIZATION, "benchmark.k=[5.5]", "benchmark.k[0]=5.5: must be a whole number, within 1..24"),
        (NORMALIZATION, "benchmark.strengths=0.5", "benchmark.strengths=0.5: must be a list"),
        (NORMALIZATION, "benchmark.strengths=[0,true]", "benchmark.strengths[1]=True"),
        (NORMALIZATION, "estimator.timestep=true", "estimator.timestep=True: must be a whole number, within 1..1000"),
        (NORMALIZATION, "estimator.strength=[0.5,2]", "estimator.strength[1]=2: must be a number, within 0..1"),
        (TARGETED, "benchmark.sets=1.5", "benchmark.sets=1.5: must be a whole number, at least 1"),
        (LDS, "benchmark.rows=0", "benchmark.rows=0: must be a whole number, at least 1"),
        (LDS, "benchmark.seeds=1.5", "benchmark.seeds=1.5: must be a whole number, at least 1"),
        (LDS, "benchmark.seeds=abc", "benchmark.seeds=abc: must be a whole number, at least 1"),
        (LDS, "benchmark.repeats=50", "benchmark.repeats=50: must be a whole number, within 0..36"),
        (BIAS, "benchmark.examples=abc", "benchmark.examples=abc: must be a whole number, at least 2"),
        (
            [*BIAS, *SMALLER],
            "benchmark.pretrained=nowhere/at_all",
            "benchmark.pretrained=nowhere/at_all: the pipeline nowhere/at_all",
        ),
    ],
)
def test_refused_by_name(chosen, setting, said):
    """Claim: the sentence names the setting as the command line has it, and what it may be."""
    name = setting.partition("=")[0]
    arguments = [argument for argument in chosen if argument.partition("=")[0] != name]
    with pytest.raises((ValueError, InstantiationException), match=re.escape(said)):
        listed_nodes(*SMALL, *arguments, setting)


def test_repeats_count_only_with_one_seed():
    """Claim: more repeats than subsets are no error where several seeds leave them out."""
    listed_nodes(*SMALL, *LDS, "benchmark.queries.generated.n=4", "benchmark.repeats=50", "benchmark.seeds=2")
