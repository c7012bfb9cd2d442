"""Bad inputs end in one sentence that names the setting, before anything is computed."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.experiments.tasks.bad_inputs import STORED, BadInput, contexts, generated, outcome, store
from tests.experiments.tasks.bad_inputs_written import written

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # of wandb-workspaces


def wrong(inputs: Iterable[BadInput], folder: Path) -> list[str]:
    """The inputs that do not end right, with how they end."""
    results = [(given, outcome(given, folder)) for given in inputs]
    return [f"{given.argument}: {result.outcome}: {result.said}" for given, result in results if result.outcome != "right"]


def test_some_bad_inputs(tmp_path):
    """Claim: one sentence, exit code 1 and nothing computed, for a sample of the inputs of the slow test."""
    inputs = [given for given in written() if not given.stored]
    assert not wrong(inputs[::17], tmp_path)


def test_generated_bad_inputs_of_some_settings(tmp_path):
    """Claim: the same for wrong types and ranges of the settings of a run, of its samples and of where it runs."""
    inputs = generated([context for context in contexts() if context[0] in ("", "samples", "execution")])
    assert len(inputs) > 80
    assert not wrong(inputs[::4], tmp_path)


@pytest.mark.slow
def test_all_written_bad_inputs(tmp_path):
    """Claim: no traceback, no sentence without the setting, and nothing wrong is accepted, over all inputs written down."""
    store(STORED, tmp_path)
    assert not wrong(written(), tmp_path)


@pytest.mark.slow
def test_all_generated_bad_inputs(tmp_path):
    """Claim: the same over all settings of all choices."""
    inputs = generated()
    assert len(inputs) > 2000
    assert not wrong(inputs, tmp_path)


@pytest.mark.slow
def test_the_rest_of_a_bad_input_is_valid(tmp_path):
    """Claim: without its one wrong setting, each command line of the generated inputs reaches a computation."""
    for arguments in dict.fromkeys(arguments for _, arguments in contexts()):
        valid = BadInput("seed=0", arguments, ("seed",), "config")
        result = outcome(valid, tmp_path)
        assert result.outcome == "accepted", (arguments[-3:], result.said)
