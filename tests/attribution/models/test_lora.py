"""LoRA adapters: only they are trained, on parameters that are the same in every training."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attribution.checks import FieldError
from attribution.models.lora import LoRA
from attribution.models.weights import WeightsFile
from attribution.nodes import key
from attribution.retraining.modes import Together
from tests.attribution.gradients.test_gradients import assert_right, batch
from tests.attribution.retraining.test_together import SELECTIONS, Small, assert_close, by_fit, members, trained
from tests.experiments.test_docs_run import TINY, TINY_LDS, command
from tests.worlds import UNET

peft = pytest.importorskip("peft")

ADAPTED = LoRA(model=UNET, targets=("to_q", "to_v"), rank=2, alpha=4.0)
ATTENTION = partial(nn.TransformerEncoderLayer, 4, 2, 8)


def state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters by the names that they have without adapters."""
    return {name.replace(".base_layer", ""): p for name, p in network.state_dict().items() if "lora" not in name}


def built(lora: LoRA, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return lora()


def test_only_adapters_are_trained():
    """Claim: every target has two trainable matrices of the given rank, and nothing else is trainable; gradients are correct."""
    network = built(ADAPTED, 0)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    targets = [name for name, _ in UNET().named_modules() if name.endswith((".to_q", ".to_v"))]
    assert set(trained) == {f"{name}.lora_{side}.default.weight" for name in targets for side in "AB"}
    assert {min(p.shape) for p in trained.values()} == {2}
    for p in trained.values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    assert_right(network.double(), *batch(3, 2, size=8, channels=1))


def test_frozen_parameters_do_not_depend_on_the_seed_of_training():
    """Claim: trainings start from the same frozen parameters, other adapters, and the output of the base."""
    one, other = built(ADAPTED, 0), built(ADAPTED, 1)
    assert all(torch.equal(p, state(other)[name]) for name, p in state(one).items())
    a = next(name for name in one.state_dict() if "lora_A" in name)
    assert not torch.equal(one.state_dict()[a], other.state_dict()[a])
    base = UNET().eval()
    base.load_state_dict(state(one))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    torch.testing.assert_close(one.eval()(x, t).sample, base(x, t).sample)


def test_frozen_parameters_come_from_a_file(tmp_path):
    """Claim: they are those of the file; its content is the identity, not its path."""
    network = UNET()
    for name in ("a", "b"):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    first, second = (
        LoRA(model=UNET, targets=("to_q",), rank=2, alpha=2.0, weights=WeightsFile(str(tmp_path / f"{name}.safetensors")))
        for name in ("a", "b")
    )
    assert all(torch.equal(p, network.state_dict()[name]) for name, p in state(first()).items())
    assert key(first) == key(second) != key(LoRA(model=UNET, targets=("to_q",), rank=2, alpha=2.0))
    with torch.device("meta"):
        assert {p.device.type for p in first().parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "LoRA.rank=0: must be a whole number, at least 1"),
        ({"targets": ()}, r"LoRA.targets=\(\): give a list of the modules"),
        ({"alpha": 0.0}, "LoRA.alpha=0.0: must be above 0"),
        ({"targets": ("to_q", "query")}, "no module has the name query: names end in .*to_k, to_q"),
        ({"targets": ("norm1",)}, "peft cannot adapt one of them .*: choose Linear or Conv2d"),
        ({"model": ATTENTION, "targets": ("linear1", "out_proj")}, "self_attn.out_proj is a part of nn.MultiheadAttention"),
        ({"weights": WeightsFile("nowhere.pt")}, "LoRA.weights=nowhere.pt: is not a file"),
    ],
    ids=["rank", "no targets", "alpha", "unknown target", "a norm", "attention of torch", "no file"],
)
def test_bad_settings_are_errors(changes, message):
    """Claim: each raises an error that names the field and a remedy."""
    with pytest.raises(FieldError, match=message):
        LoRA(**{"model": UNET, "targets": ("to_q",), "rank": 2, "alpha": 2.0, **changes})()


def test_weights_of_another_network_are_an_error(tmp_path):
    """Claim: a file that lacks parameters of the frozen network raises an error that names the field."""
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FieldError, match=r"LoRA.weights=.*other.safetensors: has no weights of UNet2DModel"):
        LoRA(model=UNET, targets=("to_q",), rank=2, alpha=2.0, weights=WeightsFile(str(tmp_path / "other.safetensors")))()


def test_training_leaves_the_base_as_it_is(tmp_path):
    """Claim: models trained side by side agree with training alone, and their frozen parameters equal those of the base."""
    lora = LoRA(model=Small, targets=("first", "time"), rank=2, alpha=4.0)
    of, base = members(tmp_path / "together", SELECTIONS[:2], [3, 5]), state(built(lora, 0))
    for m, parameters in enumerate(trained(of, Together(), lora)):
        alone = by_fit(of[m], tmp_path / f"alone{m}", lora)
        assert_close(parameters, alone)
        for found in (parameters, alone):
            frozen = {name.replace(".base_layer", ""): p for name, p in found.items() if "lora" not in name}
            assert frozen.keys() == base.keys()
            assert all(torch.equal(p, base[name].to(p)) for name, p in frozen.items())
            assert all(p.abs().sum() > 0 for name, p in found.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["alone", "together"])
def test_lds_of_adapters_from_the_command_line(mode, tmp_path, shared_store):
    """Claim: training, K-FAC, TRAK and TracInCP of adapters, and retraining on subsets, work from the command line."""
    data = ["data.n_train=40", "data.n_validation=24", "model.base.block_out_channels=[8,8]"]
    compare = ["benchmark.compare=[trak,tracincp]", f"mode@benchmark.mode={mode}"]
    printed = command(tmp_path, "model=lora", "estimator=kfac", *compare, *data, *TINY, *TINY_LDS, store=shared_store)
    assert all(name in printed for name in ("kfac", "trak", "tracincp"))
