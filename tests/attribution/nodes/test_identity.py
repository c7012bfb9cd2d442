"""Claims about identities: what changes a fingerprint and what does not."""

import functools
import importlib
import sys
import textwrap
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from attribution.images.draws import Uniform
from attribution.nodes import SOURCE, added, class_identity, describe, execution, fingerprint_of, key, short_name, source
from attribution.training.fit import Recipe
from experiments.models.trained import TrainedModel
from tests.worlds import Blobs, trained


class Packages:
    """Imports a package of a user, written anew each time, as a new process would."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.number = folder, monkeypatch, 0

    def __call__(self, **files: str) -> Any:
        """The module ``usernets.net`` of a package with these files, e.g. ``net="..."`` and ``lab__blocks="..."``."""
        self.number += 1
        root = self.folder / str(self.number)
        for name, text in files.items():
            path = root / "usernets" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        for name in [name for name in sys.modules if name.split(".")[0] == "usernets"]:
            del sys.modules[name]
        source._spec.cache_clear()
        importlib.invalidate_caches()
        with self.monkeypatch.context() as patch:
            patch.syspath_prepend(str(root))
            module = importlib.import_module("usernets.net")
            for value in vars(module).values():  # digests are computed while the package can be found
                if getattr(value, "__module__", None) == "usernets.net":
                    describe(value)
        return module


@pytest.fixture
def package(tmp_path, monkeypatch):
    yield Packages(tmp_path, monkeypatch)
    source._spec.cache_clear()


NET = """
import torch
from torch import nn
from .blocks import scale

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return torch.relu(self.a(scale(x)))
"""
SAME = '''
"""A network."""
import torch
from torch import nn
from .blocks import scale


class Net(nn.Module):
    """It has a docstring now."""

    def __init__(self, width=4):
        super().__init__()
        self.a = nn.Conv2d(
            1, 1, 3,
            padding=1,
        )  # a comment

    def forward(self, x, t):
        """And so has this."""
        return torch.relu(self.a(scale(x)))
'''
BLOCKS = "from usernets.constants import FACTOR\ndef scale(x): return FACTOR * x\n"
FILES = {"net": NET, "blocks": BLOCKS, "constants": "FACTOR = 2\n"}


def fingerprint(module: Any) -> str:
    return trained(model=functools.partial(module.Net, width=4)).fingerprint


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"net": SAME}, True),
        ({"blocks": BLOCKS.replace("FACTOR * x", "(FACTOR*x)  # brackets")}, True),
        ({"unrelated": "VALUE = 1\n"}, True),
        ({"net": NET.replace("relu", "tanh")}, False),
        ({"net": NET.replace("width=4", "width=5")}, False),
        ({"blocks": BLOCKS.replace("FACTOR * x", "FACTOR + x")}, False),
        ({"constants": "FACTOR = 3\n"}, False),
    ],
    ids=["copied", "reformatted", "helper reformatted", "new file", "forward", "default", "helper", "helper's helper"],
)
def test_a_model_is_another_one_if_and_only_if_its_code_changes(package, changes, same):
    """Claim: the network's module and the modules it imports enter; comments, docstrings, formatting and places do not."""
    assert (fingerprint(package(**FILES)) == fingerprint(package(**{**FILES, **changes}))) == same


def test_every_form_of_import_is_followed(package):
    """Claim: absolute, relative, aliased, nested and local imports all count; an import that fails is ignored."""
    helpers = [f"h{i}" for i in range(7)]
    net = """
    import usernets.h0
    import usernets.h1 as one
    from usernets import h2
    from . import h3
    from .sub import h4
    from .h5 import *
    try:
        import no_such_package
    except ImportError:
        pass

    def net():
        from usernets.h6 import VALUE
    """
    files = {"net": net, **{name: "VALUE = 1\n" for name in helpers if name != "h4"}}
    files |= {"sub____init__": "", "sub__h4": "from ..deep import VALUE\n", "deep": "VALUE = 1\n", "__init__": "", "other": ""}
    first = describe(package(**files).net)
    for name in [*(name for name in helpers if name != "h4"), "deep", "sub__h4"]:
        assert describe(package(**{**files, name: files[name] + "VALUE = 2\n"}).net) != first, name
    assert describe(package(**{**files, "other": "VALUE = 2\n"}).net) == first


def test_exchanged_helpers_are_another_model(package):
    """Claim: which module has which code matters."""
    files = {"net": "from . import a, b\ndef net(): ...\n", "a": "VALUE = 1\n", "b": "VALUE = 2\n"}
    assert describe(package(**files).net) != describe(package(**{**files, "a": files["b"], "b": files["a"]}).net)


def test_functions_lambdas_and_closures_are_told_apart(package):
    """Claim: two lambdas of one module differ by their code, two closures by what they captured, partials by their arguments."""
    module = package(
        net="""
        def make(width):
            def build():
                return width
            return build

        narrow, wide = make(1), make(2)
        first = lambda: 1
        second = lambda: 2
        defaults = [lambda width=width: width for width in (1, 2)]

        def of(width):
            class Local:
                def size(self):
                    return width
            return Local

        one, two = of(1), of(2)
        twins = [lambda: 1, lambda: 2]
        """
    )
    values = [module.narrow, module.wide, module.first, module.second, *module.defaults, module.one, module.two, module.make]
    values += [functools.partial(module.make, 3), functools.partial(module.make, 4)]
    assert len({fingerprint_of(describe(value)) for value in values}) == len(values)
    assert describe(module.make(1)) == describe(module.narrow)
    with pytest.raises(ValueError, match=r"net\.py line .* has 2 different lambdas: define the function with def"):
        describe(module.twins[0])


def test_code_without_a_source_is_an_error_that_says_what_to_do():
    """Claim: nothing that was typed at a prompt or made by exec gets an identity."""
    scope: dict[str, Any] = {}
    exec("class Net: pass\ndef build(): ...", scope)
    named: dict[str, Any] = {"__name__": __name__}
    exec("class Typed: pass", named)
    for value in (scope["Net"], scope["build"], named["Typed"], make_dataclass("Made", ["x"])):
        with pytest.raises(ValueError, match=r"source of .* cannot be read.*put it into a Python file"):
            describe(value)


def test_a_script_has_the_same_classes_whether_it_is_run_or_imported(monkeypatch):
    """Claim: ``__main__`` is read from its file, and named after it."""
    imported = class_identity(Blobs)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["tests.worlds"])
    monkeypatch.setattr(Blobs, "__module__", "__main__")
    assert class_identity(Blobs) == imported


def test_classes_of_this_project_are_identified_by_name_and_version(monkeypatch):
    """Claim: the module does not enter, so a class may move; its VERSION does."""
    assert class_identity(TrainedModel) == {"class": "TrainedModel", "version": 1}
    before = trained().fingerprint
    monkeypatch.setattr(Recipe, "__module__", "attribution.elsewhere")
    monkeypatch.setattr("attribution.nodes.identity._claimed", {})
    assert trained().fingerprint == before
    monkeypatch.setattr(Recipe, "VERSION", Recipe.VERSION + 1)
    assert trained().fingerprint != before


def test_a_class_of_this_project_without_a_name_is_an_error(monkeypatch):
    """Claim: it names the class and what it lacks; an inherited NAME does not count."""
    nameless = type("Nameless", (Uniform,), {"__module__": "attribution.elsewhere"})
    with pytest.raises(TypeError, match=r"attribution\.elsewhere\.Nameless .*NAME and a VERSION"):
        describe(nameless(3))


def test_two_classes_of_one_name_are_an_error(monkeypatch):
    """Claim: whichever enters an identity second is refused."""
    monkeypatch.setattr("attribution.nodes.identity._claimed", {})
    describe(Uniform(3))
    with pytest.raises(TypeError, match=r"Uniform and .*Copy have the same NAME"):
        describe(Copy(3))


class Copy(Uniform):
    NAME = "Uniform"


class Renamed(Uniform):
    NAME = "OwnScheme"


class Unnamed(Uniform):
    pass


def test_a_users_class_has_its_own_name_if_it_sets_one_and_its_source(monkeypatch):
    """Claim: it never takes the NAME of the class that it extends, but the VERSION, as it calls that one's code."""
    assert (describe(Renamed(3))["class"], describe(Unnamed(3))["class"]) == ("OwnScheme", f"{__name__}.Unnamed")
    assert len(describe(Unnamed(3))[SOURCE]) == 20
    assert (short_name(Renamed), short_name(Unnamed), short_name(Uniform)) == ("OwnScheme", "Unnamed", "Uniform")
    before = describe(Unnamed(3))
    monkeypatch.setattr(Uniform, "VERSION", 2)
    assert describe(Unnamed(3)) != before


def test_installed_classes_and_functions_have_their_public_names():
    """Claim: the shortest path to import them from, as in a configuration, and no version of the package."""
    names = {
        diffusers.UNet2DModel: "diffusers.UNet2DModel",
        torch.optim.AdamW: "torch.optim.AdamW",
        torch.nn.GroupNorm: "torch.nn.GroupNorm",
        torch.nn.functional.silu: "torch.nn.functional.silu",
        torch.tanh: "torch.tanh",
        np.tanh: "numpy.tanh",
        np.mean: "numpy.mean",
        functools.partial: "functools.partial",
        dict: "dict",
        len: "len",
    }
    assert {value: describe(value) for value in names} == names
    assert describe(diffusers.UNet2DModel.from_config) == {"method": "from_config", "of": "diffusers.UNet2DModel"}
    assert describe(functools.partial(torch.optim.SGD, lr=0.5)) == {
        "call": "torch.optim.SGD", "args": [], "keywords": {"lr": 0.5}
    }  # fmt: skip


class Callable:
    def __call__(self):
        return 1


def test_objects_whose_content_is_unknown_are_an_error():
    """Claim: an instance that is callable but no dataclass has no identity, nor has a set, whose order is not defined."""
    for value in (Callable(), {1, 2}, object()):
        with pytest.raises(TypeError, match="cannot be part of an identity"):
            describe(value)


@dataclass(frozen=True)
class Before:
    NAME = "Settings"
    VERSION = 1

    n: int = 3


@dataclass(frozen=True)
class After:
    NAME = "Settings"
    VERSION = 1

    n: int = 3
    time: str = added(default="uniform")
    weights: tuple = added(default_factory=tuple)
    array: np.ndarray = added(default_factory=lambda: np.zeros(2))
    device: str = execution(default="cpu")


def test_a_field_that_was_added_later_enters_only_with_another_value(monkeypatch):
    """Claim: with its default, given or not, the identity is that of the class without the field."""
    monkeypatch.setattr("attribution.nodes.identity._claimed", {})
    before = describe(Before())
    monkeypatch.setattr("attribution.nodes.identity._claimed", {})
    assert describe(After()) == before
    assert describe(After(time="uniform", weights=(), array=np.zeros(2), device="cuda")) == before
    assert describe(After(time="logit_normal")) == {**before, "time": "logit_normal"}
    assert describe(After(weights=(0.5,))) == {**before, "weights": [0.5]}
    assert "array" in describe(After(array=np.ones(2)))
    with pytest.raises(TypeError, match="needs a default"):
        added()


@dataclass(frozen=True)
class Settings:
    values: Any = field(default=None)


def test_equal_content_is_one_identity():
    """Claim: 1 and 1.0, NumPy and Python scalars, lists and tuples are the same; True and 1 are not in JSON."""
    assert fingerprint_of(describe(Settings(1))) == fingerprint_of(describe(Settings(1.0)))
    assert describe(Settings([np.float64(0.5), np.int64(2)])) == describe(Settings((0.5, 2)))
    assert fingerprint_of(describe(Settings(True))) != fingerprint_of(describe(Settings(1)))
    assert fingerprint_of(describe(Settings(float("nan")))) == fingerprint_of(describe(Settings(float("nan"))))


def test_a_key_takes_nodes_by_their_fingerprints():
    """Claim: it tells nodes and values apart, and is short."""
    node = trained()
    assert key(node, 3) == f'["{node.fingerprint}", 3]'
    assert key(Blobs(), None) != key(Blobs(n=5), None)
