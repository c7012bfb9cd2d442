"""Arguments before Hydra reads them, its errors, and what a start imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from experiments.tasks.suggestions import composition_error
from experiments.tasks.sweep_arguments import sweepable
from tests.experiments.tasks.test_configs import CONF

ROOT = Path(__file__).parents[3]


def test_settings_are_swept_with_a_group():
    """Claim: where a group is swept, plain settings become sweeps of one value; choices, deletions and Hydra's own do not."""
    arguments = ["-m", "estimator=tracin,retrac", "estimator.checkpoints=3", "benchmark.k=[1,2]", "a.b='q,r'"]
    untouched = ["benchmark=targeted", "seed=1", "~estimator.draws.n", "estimator.draws.n=2,4", "hydra.sweep.dir=/tmp/x", "--cfg"]
    swept = ["-m", "estimator=tracin,retrac", "estimator.checkpoints=choice(3)", "benchmark.k=choice([1,2])", "a.b=choice('q,r')"]
    assert sweepable([*arguments, *untouched]) == [*swept, *untouched]


@pytest.mark.parametrize("arguments", [["-m", "estimator.draws.n=2,4", "estimator.damping=1"], ["estimator.damping=1"], ["a.b=["]])
def test_other_arguments_stay(arguments):
    """Claim: without a swept group, and where Hydra cannot read an argument, nothing changes."""
    assert sweepable(arguments) == arguments


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("trainer.stepz=3", "trainer.stepz: no such setting; did you mean trainer.steps?"),
        ("estimater=kfac", "estimater: no such setting; did you mean estimator?"),
        ("estimator.zzz=3", "estimator.zzz: no such setting; choose from estimator.balance, estimator.compression"),
        ("estimator=retrack", "estimator=retrack: no such choice; did you mean retrac?"),
        ("scale=abc", "scale=abc: no such choice; choose from digits, paper, small"),
        ("data=abc", "data=abc: no such choice; choose from arrays, artbench2, celeba, cifar10, cifar10_16, cifar2"),
        ("experiment=retrac/tabel1", "experiment=retrac/tabel1: no such choice; did you mean retrac/table1 or retrac/table5?"),
        ("experiment=retrac_table1", "experiment=retrac_table1: no such choice; did you mean retrac/table1 or retrac/table5?"),
        ("optimizer=lion", "optimizer=lion: no such choice; choose from adam, adamw, sgd"),
        ("hydra/launcher=locl", "hydra/launcher=locl: no such choice; did you mean local?"),
        ("modes@benchmark.mode=alone", "Override modes@benchmark.mode=alone looks like a config group override, but config group "
                                       "'modes' does not exist; did you mean mode or model?"),
        ("draws@estimator.drawz=even", "Could not override 'draws@estimator.drawz'. Did you mean to override one of"),
    ],
)  # fmt: skip
def test_misspelled_arguments(argument, said):
    """Claim: one sentence names what is wrong and the nearest existing names."""
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as raised:
        compose("config", [argument], return_hydra_config=True)
    sentence = composition_error(raised.value)
    assert sentence.startswith(said)
    assert "\n" not in sentence


def test_misspelled_arguments_end_the_program_with_a_sentence(tmp_path):
    """Claim: the shell sees 1, and stderr one line."""
    command = [sys.executable, str(ROOT / "run.py"), "trainer.stepz=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: trainer.stepz: no such setting; did you mean trainer.steps?\n"


def imported(code: str, *names: str) -> list[str]:
    """Those of the modules that a process has after ``code``."""
    silent = "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
    program = f"import sys, io, contextlib\n{silent}\n    {code}\n"
    program += f"print(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_help_imports_no_torch():
    """Claim: the help text takes no library of numbers."""
    code = "sys.argv = ['run.py', '--help']; import run; run.main()"
    assert imported(code, "torch", "numpy", "pydantic", "hydra") == ["hydra"]


@pytest.mark.slow
def test_a_stored_run_imports_no_lightning():
    """Claim: the task that evaluates, and all that the default config names, take neither Lightning nor W&B."""
    code = "import experiments.tasks.evaluate, experiments.tasks.settings as s; "
    code += "from tests.experiments.tasks.test_command_line import composed_default; s.check(composed_default())"
    assert imported(code, "torch", "diffusers", "lightning", "wandb", "torchmetrics") == ["torch", "diffusers"]


def composed_default():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")
