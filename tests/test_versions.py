"""A stored number must not silently come from older code: whoever changes its source decides what that means for the store."""

import ast
import hashlib
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import attribution
import experiments
from attribution.diffusion import Process
from attribution.diffusion.samplers import Sampler
from attribution.estimators import Estimator
from attribution.gradients.compression import Compression
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Node
from attribution.projection import Projection

ROOT = Path(__file__).parent.parent
LEDGER = Path(__file__).parent / "versions.json"
HELP = """
The source that {name} depends on changed. Decide:
- its results change, or may: raise VERSION in the class, so that stored artifacts are not found any more;
- they do not (a comment, a name, speed): acknowledge.
Then run: python -m tests.test_versions
"""


BASES = (Node, Estimator, Measure, Process, DrawScheme, Sampler, Projection, Compression)
"""Kinds of classes that carry a VERSION: nodes, and what their descriptions are made of."""


def versioned() -> list[type]:
    """All concrete classes of these kinds in the project."""
    for package in (attribution, experiments):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found, queue = [], list(BASES)
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if cls.__module__.split(".")[0] in ("attribution", "experiments") and not getattr(cls, "__abstractmethods__", None):
            found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__qualname__)


def sources(module: str) -> set[str]:
    """The project's modules that ``module`` imports, directly or not, and itself."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(Path(sys.modules[name].__file__ or "").read_text())):
            candidates = []
            if isinstance(node, ast.ImportFrom) and node.module:
                candidates = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                candidates = [alias.name for alias in node.names]
            queue += [c for c in candidates if c.split(".")[0] in ("attribution", "experiments") and c in sys.modules]
    return seen


def digest(cls: type) -> str:
    """Of the code, without comments, docstrings and layout."""
    sha = hashlib.sha256()
    for name in sorted(sources(cls.__module__)):
        tree = ast.parse(Path(sys.modules[name].__file__ or "").read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:]  # pyright: ignore[reportAttributeAccessIssue]
        sha.update(ast.dump(tree).encode())
    return sha.hexdigest()[:16]


def current() -> dict[str, list]:
    return {f"{cls.__module__}.{cls.__qualname__}": [cls.VERSION, digest(cls)] for cls in versioned()}


def test_somebody_decided():
    """Claim: the ledger holds the version and source of every versioned class as they are."""
    recorded = json.loads(LEDGER.read_text())
    now = current()
    changed = [name for name in now if recorded.get(name) != now[name]]
    assert not changed, HELP.format(name=", ".join(changed))
    assert recorded.keys() == now.keys()


if __name__ == "__main__":
    LEDGER.write_text(json.dumps(current(), indent=1) + "\n")
