"""Where a result came from: versions, git revision and machine, as plain JSON. No host, user or path."""

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
    """``versions`` of what computes, ``git`` revision of this code, and the ``machine``'s kind of device and threads."""
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
        # Not installed but imported from a checkout; its git revision says more anyway.
        return getattr(sys.modules.get(package), "__version__", None)


@functools.cache
def _git() -> dict[str, Any] | None:
    """The revision of the checkout that this file belongs to, and whether tracked files differ from it; None outside of one."""
    here = Path(__file__)
    # An installed copy may lie inside somebody else's repository, whose revision would say nothing: is this file tracked?
    if _ask_git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    revision = _ask_git(here.parent, "rev-parse", "HEAD")
    changes = _ask_git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": bool(changes)}


def _ask_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
