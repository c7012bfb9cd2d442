"""The origin of a result as plain JSON: versions, git revision and machine. It names no host, user or path."""

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "numpy", "diffusers", "lightning", "diffusion-attribution")


def provenance() -> dict[str, Any]:
    """``versions`` of Python and packages, ``git`` revision of this code, and device and threads of the ``machine``."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.cuda.get_device_name() if cuda else platform.machine()
    return {"versions": _versions(), "git": _git(), "machine": {"device": device, "threads": torch.get_num_threads()}}


@functools.cache
def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # The package is imported from a checkout without being installed.
        return getattr(sys.modules.get(package), "__version__", None)


@functools.cache
def _git() -> dict[str, Any] | None:
    """The revision of the checkout that contains this file, and whether tracked files differ from it; None without a checkout."""
    here = Path(__file__)
    # An installed copy may lie inside an unrelated repository, so the file has to be tracked.
    if _run_git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    revision = _run_git(here.parent, "rev-parse", "HEAD")
    changes = _run_git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": bool(changes)}


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
