"""Weights in files that other programs wrote."""

import functools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attribution.models.given import GivenModel
from attribution.models.weights import WeightsFile
from attribution.nodes import describe
from tests.golden import LOSS


class Small(nn.Module):
    """A layer and a buffer."""

    def __init__(self, out: int = 3):
        super().__init__()
        self.layer = nn.Linear(2, out)
        self.register_buffer("count", torch.zeros(()))


STATE = Small().state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (STATE, ""),
        ({"state_dict": prefixed("network."), "epoch": 3, "optimizer_states": [{"x": torch.ones(2)}]}, "state_dict.network."),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "step": 5}, "model."),
        (prefixed("module.model."), "module.model."),
        ({**prefixed("unet."), "vae.weight": torch.ones(1)}, "unet."),
        ({**STATE, "metric": torch.ones(1), "ema.layer.weight": torch.ones(1)}, ""),
        ({**STATE, **prefixed("ema.")}, ""),
    ],
    ids=["plain", "lightning", "nested", "prefix", "others", "extra", "average"],
)
def test_the_weights_of_a_network_are_found(tmp_path, content, prefix):
    """Claim: a state dict is found in nested dicts and under a prefix, and nothing else of the file is taken."""
    path = str(tmp_path / "weights.pt")
    torch.save(content, path)
    with torch.device("meta"):
        network = Small()
    found = WeightsFile(path).of_network(network)
    assert found.prefix == prefix
    assert found.tensors().keys() == STATE.keys()
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in found.tensors().items())


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (STATE, None),
        ({**STATE, **prefixed("ema.")}, None),
        ({"state_dict": prefixed("network."), "optimizer_states": [{"x": torch.ones(2)}]}, None),
        ({**prefixed("unet."), "vae.weight": torch.ones(1)}, None),
        ({**STATE, "class_embedding.weight": torch.ones(3, 2)}, "class_embedding.weight, which"),
        ({**prefixed("unet."), "unet.a": torch.ones(1), "unet.b": torch.ones(1)}, "unet.a, unet.b, which"),
    ],
)
def test_weights_that_the_network_does_not_have_are_noted(tmp_path, content, more):
    """Claim: results name tensors beside those of the network, which may be of another one, but no average or other part."""
    path = str(tmp_path / "weights.pt")
    torch.save(content, path)
    weights = WeightsFile(path).of_network(Small())
    model = GivenModel(model=Small, objective=LOSS, weights=weights)
    about = [note for note in model.notes(replayed=False) if "The file of the weights has" in note]
    assert about == [] if more is None else [more in note for note in about] == [True]


def test_the_identity_is_the_content(tmp_path):
    """Claim: the same weights under another path, prefix and format are the same; one changed number makes others."""
    torch.save({"model": STATE}, tmp_path / "a.pt")
    save_file(STATE, tmp_path / "b.safetensors")
    changed = {**STATE, "count": torch.ones(())}
    torch.save(changed, tmp_path / "c.pt")
    first, second, third = (
        describe(WeightsFile(str(tmp_path / name)).of_network(Small())) for name in ("a.pt", "b.safetensors", "c.pt")
    )
    assert first == second != third


def test_half_precision_is_read_as_float32(tmp_path):
    """Claim: float16 and bfloat16 weights become float32; other types stay."""
    torch.save({"layer.weight": torch.ones(2, dtype=torch.bfloat16), "n": torch.ones(1, dtype=torch.int64)}, tmp_path / "a.pt")
    found = WeightsFile(str(tmp_path / "a.pt")).tensors()
    assert found["layer.weight"].dtype == torch.float32
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": STATE, "ema": STATE}, r"under several prefixes: set prefix to one of model\., ema\."),
        ({"layer.weight": STATE["layer.weight"]}, r"count, layer\.bias of 3 tensors are not in the file, which has layer\.weight"),
        ({"other": torch.ones(1)}, "has no weights of Small"),
        (Small(4).state_dict(), r"layer\.weight of the shape \[4, 2\], but the network has \[3, 2\]"),
        ({"epoch": 3}, "has no tensors"),
        (functools.partial(print), "cannot be read as weights only"),
    ],
    ids=["several", "incomplete", "others", "shape", "empty", "code"],
)
def test_files_that_are_refused(tmp_path, content, message):
    """Claim: one sentence says what is wrong and what to do; nothing of a file is executed."""
    path = str(tmp_path / "weights.pt")
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        WeightsFile(path).of_network(Small())


def test_a_prefix_chooses_among_several(tmp_path):
    """Claim: the averaged weights are taken where the prefix says so."""
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "ema": averaged}, tmp_path / "a.pt")
    found = WeightsFile(str(tmp_path / "a.pt"), "ema").of_network(Small())
    assert found.prefix == "ema."
    assert torch.equal(found.tensors()["layer.bias"], averaged["layer.bias"])


def test_a_prefix_that_the_file_lacks(tmp_path):
    """Claim: the message names the prefixes that there are; one that is given exactly is taken although it begins another."""
    torch.save({"model": STATE, "module": {"ema": STATE, **STATE}}, tmp_path / "a.pt")
    path = str(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"under the prefix average, but under model\., module\.ema\., module\."):
        WeightsFile(path, "average").of_network(Small())
    assert WeightsFile(path, "module.").of_network(Small()).prefix == "module."


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_paths_that_are_no_files(tmp_path, name):
    """Claim: a missing file or a folder is refused."""
    with pytest.raises(ValueError, match="is not a file"):
        WeightsFile(str(tmp_path / name)).of_network(Small())


def test_damaged_files(tmp_path):
    """Claim: damaged files are refused in a sentence in both formats."""
    for name, content in (("a.pt", b"no weights"), ("b.pt", b"hello"), ("a.safetensors", b"no weights")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as weights only"):
            WeightsFile(str(tmp_path / name)).of_network(Small())
