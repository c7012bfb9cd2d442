"""The house stands as docs/architecture.md has it: imports flow one way, and every file keeps to its own business."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([ROOT / "run.py", *(ROOT / "attribution").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])
ALLOWED = {"attribution": {"attribution"}, "experiments": {"attribution", "experiments"}, "run.py": {"attribution", "experiments"}}

ROOMS = {
    "attribution": (
        "checks", "double_precision", "precision", "transfers", "device_memory", "execution", "nodes", "images", "diffusion",
        "measurements", "models", "training", "retraining", "gradients", "projection", "curvature", "features", "estimators",
        "scoring",
    ),
    "experiments": (
        "disk", "parent", "metrics", "report", "store", "datasets", "models", "queries", "figures", "estimators", "speed",
        "benchmarks", "judging",
        "tasks",
    ),
}  # fmt: skip
"""The rooms of each package. A room imports only from itself and from rooms before it."""


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    """Claim: run → experiments → attribution; the science knows no Hydra and no W&B; wandb is imported in one file."""
    package = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert names & {"run", "experiments", "attribution", "tests"} <= ALLOWED[package]
    if package == "attribution":
        assert not names & {"hydra", "omegaconf", "wandb", "rich", "matplotlib"}
    assert "wandb" not in names or path.name == "trackers.py"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small(path):
    """Claim: no file passes 400 lines."""
    assert len(path.read_text().splitlines()) <= 400


def test_hooks_live_in_one_place():
    """Claim: only per-example gradients put hooks on modules."""
    users = {p.name for p in FILES if "register_forward" in p.read_text() or "register_full_backward" in p.read_text()}
    assert len(users) <= 1, users


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def arrows(module: str) -> set[str]:
    """The modules of the project that ``module`` imports, anywhere in its file. ``from package import module`` is the module."""
    targets = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets |= {name if name in MODULES else node.module for name in names}
    return targets & MODULES.keys() - {module}


@pytest.mark.parametrize("package", ROOMS)
def test_files_import_no_circles(package):
    """Claim: no file of a package leads back to itself along imports, including those for type checkers and inside functions."""
    graph = {module: arrows(module) for module in MODULES if module.split(".")[0] == package}
    while ends := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in ends}
    assert not graph, f"these modules lie on circles of imports, or lead to one: {', '.join(sorted(graph))}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package):
    """Claim: between the rooms of a package all arrows go the same way, in the order of ROOMS."""
    rooms = ROOMS[package]
    pairs = [(module, target) for module in MODULES for target in arrows(module)]
    inside = [(a.split("."), b.split(".")) for a, b in pairs if a.startswith(f"{package}.") and b.startswith(f"{package}.")]
    up = {(".".join(a), ".".join(b)) for a, b in inside if rooms.index(b[1]) > rooms.index(a[1])}
    assert not up, f"imports against the order of rooms: {sorted(up)}"


def test_errors_of_attribution_name_no_setting():
    """Claim: errors of the library name classes and fields; settings of the command line are the business of experiments/tasks."""
    groups = "|".join(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
    setting = re.compile(rf"\b({groups}|trainer|hardware|execution|samples)(\.\*?[a-z_]+=|@|=[a-z])")
    found = []
    for path in (ROOT / "attribution").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                words = "".join(str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))
                found += [f"{path.name}: {words}"] if setting.search(words) else []
    assert not found
