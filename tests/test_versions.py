"""A stored number must not silently come from older code: a change of the code behind it needs a decision.

The ledger holds, for every class that enters identities, its VERSION and a digest of the code that its results come from: the
module of the class, and the modules that this one names in ``SHARED``, e.g. ``SHARED = ("attribution.images.philox",)``.
"""

import ast
import hashlib
import importlib
import inspect
import json
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attribution
import experiments
from attribution.curvature.kfac import KroneckerCurvature
from attribution.curvature.vector_products import CurvatureProduct
from attribution.diffusion import Process
from attribution.diffusion.samplers import Sampler
from attribution.estimators import Estimator
from attribution.estimators.embedding import Embedding
from attribution.estimators.retiming import Timing
from attribution.gradients.compression import Compression
from attribution.gradients.gradient_sets import GradientSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Node
from attribution.projection import Projection
from attribution.retraining.modes import Mode
from attribution.training.checkpoints import CheckpointRule
from experiments.datasets import Source
from experiments.models.subsets import Subsets

LEDGER = Path(__file__).parent / "versions.json"
HELP = """
The code behind these classes changed: {names}. Decide for each:
- its results change, or may: raise VERSION in the class, so that stored artifacts are no longer found;
- they do not (a name, a message, speed): leave VERSION as it is.
Then run: python -m tests.test_versions
"""
GONE = """
These names are in the ledger, but no class has them: {names}. Results that were stored under a NAME are no longer found.
- If the class was renamed, let it keep its old NAME.
- If the class was deleted, run: python -m tests.test_versions
"""

KINDS = (
    Node, Estimator, Measure, Process, DrawScheme, Sampler, Projection, Compression, KroneckerCurvature, CurvatureProduct,
    Embedding, Timing, GradientSet, Mode, CheckpointRule, Source, Subsets,
)  # fmt: skip
"""Base classes of what enters identities. Other classes that do so without a NAME are refused when they are described."""

NUMERICAL = {
    f"attribution.{room}"
    for room in (
        "curvature", "diffusion", "estimators", "features", "gradients", "images", "measurements", "projection", "retraining",
        "training",
    )
}  # fmt: skip
"""Packages whose code computes what the store keeps."""
UNSTORED = {
    "attribution.estimators.by_name",
    *(f"attribution.training.{name}" for name in ("replay", "loop_recorder", "loop_callback")),
}
"""Modules of these packages on which nothing stored depends. Settings and the record that a loop leaves are part of identities."""


def modules() -> Iterator[ModuleType]:
    """All modules of the project."""
    for package in (attribution, experiments):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                yield importlib.import_module(module.name)


def classes() -> list[type]:
    """All classes of the project."""
    return [
        cls for module in modules() for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__
    ]


def named() -> dict[str, type]:
    """The classes that have a NAME of their own."""
    return {cls.__dict__["NAME"]: cls for cls in classes() if "NAME" in cls.__dict__}


def shared(module: str) -> set[str]:
    """The module and all that its results depend on, by its ``SHARED`` and that of these modules."""
    seen: set[str] = set()
    queue = [module]
    while queue:
        if (name := queue.pop()) not in seen:
            seen.add(name)
            queue += getattr(importlib.import_module(name), "SHARED", ())
    return seen


def code(module: str) -> str:
    """A module's code without comments, docstrings, imports, errors and formatting."""
    tree = ast.parse(Path(sys.modules[module].__file__ or "").read_text())
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_silent(line)]  # pyright: ignore[reportAttributeAccessIssue]
    return ast.unparse(tree)


def _is_silent(line: ast.stmt) -> bool:
    text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    return text or isinstance(line, ast.Import | ast.ImportFrom | ast.Raise)


def digest(cls: type) -> str:
    """The digest of the code of a class's module and of the modules in its SHARED, wherever they lie."""
    parts = sorted(hashlib.sha256(code(name).encode()).hexdigest() for name in shared(cls.__module__))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def current() -> dict[str, list]:
    return {name: [cls.VERSION, digest(cls)] for name, cls in sorted(named().items())}  # pyright: ignore[reportAttributeAccessIssue]


def test_changed_code_needs_a_decision():
    """Claim: version and code of every class in the ledger are as they were. A new class needs no entry."""
    recorded, now = json.loads(LEDGER.read_text()), current()
    changed = [name for name in recorded if name in now and recorded[name] != now[name]]
    assert not changed, HELP.format(names=", ".join(changed))
    gone = [name for name in recorded if name not in now]
    assert not gone, GONE.format(names=", ".join(gone))


def is_numerical(module: str) -> bool:
    return module.rpartition(".")[0] in NUMERICAL and module not in UNSTORED


def used(module: ModuleType) -> Iterator[str]:
    """The modules whose functions a module imports, and those of the classes that its own classes inherit from."""
    for value in vars(module).values():
        if inspect.ismodule(value):
            yield value.__name__
        elif inspect.isfunction(inspect.unwrap(value)):
            yield value.__module__
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from (base.__module__ for base in value.__mro__)


def test_every_numerical_module_is_in_a_digest():
    """Claim: no numbers are computed by code whose change the ledger would not see."""
    digested = {name for cls in named().values() for name in shared(cls.__module__)}
    numerical = {module.__name__ for module in modules() if is_numerical(module.__name__)}
    unseen = sorted(numerical - digested)
    assert not unseen, f"name these modules in SHARED of the modules that use them: {', '.join(unseen)}"


def test_digests_hold_the_functions_and_base_classes_in_use():
    """Claim: a module in a digest has in its SHARED, or theirs, the numerical modules whose functions or base classes it uses."""
    digested = sorted({name for cls in named().values() for name in shared(cls.__module__)})
    lacking = {
        name: missing
        for name in digested
        if (missing := sorted({other for other in used(sys.modules[name]) if is_numerical(other)} - shared(name)))
    }
    assert not lacking, f"add to SHARED of each module: {lacking}"


def test_every_class_that_enters_identities_has_a_name_and_a_version():
    """Claim: concrete classes of the kinds above set both themselves, instead of inheriting those of another class."""
    concrete = [cls for cls in classes() if issubclass(cls, KINDS) and not inspect.isabstract(cls)]
    lacking = [cls.__qualname__ for cls in concrete if not {"NAME", "VERSION"} <= cls.__dict__.keys()]
    assert not lacking, f"set NAME and VERSION in {', '.join(lacking)}"
    versionless = [name for name, cls in named().items() if "VERSION" not in cls.__dict__]
    assert not versionless, f"set VERSION in {', '.join(versionless)}"


def test_no_two_classes_have_one_name():
    """Claim: a NAME says which class it is."""
    count = Counter(cls.__dict__["NAME"] for cls in classes() if "NAME" in cls.__dict__)
    assert {name: number for name, number in count.items() if number > 1} == {}


def test_nodes_have_a_title():
    """Claim: progress bars name the work of every class of nodes in words of their own."""
    nodes = [cls for cls in named().values() if issubclass(cls, Node)]
    assert [cls.__qualname__ for cls in nodes if "TITLE" not in cls.__dict__] == []


if __name__ == "__main__":
    LEDGER.write_text(json.dumps(current(), indent=1) + "\n")
