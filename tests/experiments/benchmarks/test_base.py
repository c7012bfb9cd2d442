"""What all benchmarks check."""

import re

import pytest

from attribution.checks import FieldError
from experiments.benchmarks.image_tracing import ImageTracing
from experiments.benchmarks.normalization import Normalization
from experiments.benchmarks.sparse_timesteps import SparseTimesteps
from experiments.benchmarks.targeted import Targeted
from experiments.benchmarks.timestep_bias import TimestepBias


@pytest.mark.parametrize("benchmark", [ImageTracing, Normalization, SparseTimesteps, Targeted, TimestepBias])
def test_a_benchmark_needs_queries(benchmark):
    """Claim: without queries a benchmark is refused when it is made, with the name of the setting."""
    settings = {"sources": {0: "digits"}} if benchmark is ImageTracing else {}
    with pytest.raises(FieldError, match=re.escape(f"{benchmark.__name__}.queries={{}}: name at least one kind of queries")):
        benchmark(queries={}, **settings)
