"""Build the reference of all modules from their docstrings: python docs/reference.py [FOLDER] (default: build/api)."""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

ROOT = Path(__file__).parent.parent
PACKAGES = ("attribution", "experiments")


def forget_exports() -> None:
    """Drop ``__all__`` of all packages, to which pdoc would limit the modules that it documents."""
    for name in PACKAGES:
        for module in [name, *(info.name for info in pkgutil.walk_packages([str(ROOT / name)], f"{name}.") if info.ispkg)]:
            vars(importlib.import_module(module)).pop("__all__", None)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    forget_exports()
    # A subclass of Tensor has attributes that no class declares.
    warnings.filterwarnings("ignore", message=r"Cannot determine where attribution\.gradients\.uses\.Traced")
    pdoc.pdoc(*PACKAGES, output_directory=Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "api"))
