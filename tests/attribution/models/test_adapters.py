"""Trained adapters in a file, without the network that they adapt."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attribution.checks import FieldError
from attribution.models.adapters import AdapterWeights
from attribution.models.lora import LoRA
from attribution.models.weights import WeightsFile
from experiments.models.explained import FromCheckpoint
from experiments.models.trained import TrainedModel
from tests.worlds import UNET, trained

peft = pytest.importorskip("peft")

ADAPTED = LoRA(model=UNET, targets=("to_q", "to_v"), rank=2, alpha=4.0)
TRAINING: TrainedModel = trained(model=ADAPTED)
OLDER = {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Trained adapters by the names that peft gives them in files."""
    network = ADAPTED()
    generator = torch.Generator().manual_seed(5)
    for p in network.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator)
    return {name: tensor.clone().contiguous() for name, tensor in peft.get_peft_model_state_dict(network).items()}


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
@pytest.mark.parametrize("older", [False, True])
def test_adapters_are_found_by_the_names_of_their_modules(tensors, prefix, older, tmp_path):
    """Claim: files of peft and of diffusers give the frozen network with these adapters; its output is that of the trained one."""
    names = {name: name for name in tensors}
    if older:
        names = {name: name.replace(".lora_A.", OLDER[".lora_A."]).replace(".lora_B.", OLDER[".lora_B."]) for name in names}
    path = tmp_path / "adapters.safetensors"
    save_file({f"{prefix}{name}": tensors[old] for old, name in names.items()}, path)
    given = FromCheckpoint(str(path)).of(TRAINING)
    assert isinstance(given.weights, AdapterWeights)
    expected = ADAPTED()
    peft.set_peft_model_state_dict(expected, tensors)
    found = given.weights.tensors()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_the_identity_is_the_content(tensors, tmp_path):
    """Claim: the same adapters in another file are the same model; others, and others of the frozen parameters, are another."""
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("one", "copy", "other")]
    for path in paths[:2]:
        save_file(tensors, path)
    save_file({**tensors, next(iter(tensors)): 2 * tensors[next(iter(tensors))]}, paths[2])
    one, copy, other = (FromCheckpoint(path).of(TRAINING).fingerprint for path in paths)
    assert one == copy != other
    frozen = dataclasses.replace(TRAINING, model=dataclasses.replace(ADAPTED, seed=1))
    assert FromCheckpoint(paths[0]).of(frozen).fingerprint != one


def test_a_whole_network_with_adapters_is_given_too(tmp_path):
    """Claim: a file with all parameters, as checkpoints of this program have them, is read as such."""
    save_file(ADAPTED().state_dict(), tmp_path / "whole.safetensors")
    assert isinstance(FromCheckpoint(str(tmp_path / "whole.safetensors")).of(TRAINING).weights, WeightsFile)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("to_q",)}, r"also has .*to_v.*: add its module to model\.targets"),
        ({"targets": ("to_q", "to_k", "to_v")}, r"has no adapter .*to_k.*: choose the model\.targets"),
        ({"rank": 3}, r"of the shape \[2, \d+\], but the network has \[3, \d+\]: set model\.rank"),
    ],
)
def test_other_adapters_are_refused(tensors, changes, message, tmp_path):
    """Claim: the sentence names the setting that differs from training."""
    save_file(tensors, tmp_path / "adapters.safetensors")
    training = dataclasses.replace(TRAINING, model=dataclasses.replace(ADAPTED, **changes))
    with pytest.raises(FieldError, match=message):
        FromCheckpoint(str(tmp_path / "adapters.safetensors")).of(training)
