"""Errors that the user can correct end a run with one line instead of a traceback (HYDRA_FULL_ERROR=1 shows the traceback)."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from experiments.disk import DiskError, is_full
from experiments.tasks.suggestions import composition_error, group_error

EXPECTED = (ValueError, FloatingPointError, OSError, HydraException, OmegaConfBaseException)
"""Errors that the user can correct."""


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn ``EXPECTED`` errors in the body into a one-line exit; Hydra's own reporting is disabled."""
    with patch("hydra._internal.utils.run_and_report", _call):
        try:
            yield
        except EXPECTED as error:
            exit_with(error)


def exit_with(error: BaseException) -> NoReturn:
    """Exit with "error: " and the message, or raise the error if HYDRA_FULL_ERROR=1."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    sys.exit(f"error: {' '.join(sentence(error).split())}")


def sentence(error: BaseException) -> str:
    """Return what an error says to the user: its message, after the name of its class if it is not ``EXPECTED``."""
    if isinstance(error, InstantiationException):
        error = error.__cause__ or error
    if isinstance(error, HydraException | OmegaConfBaseException):
        return composition_error(error)
    if isinstance(error, ValueError) and (message := group_error(error)):
        return message
    if isinstance(error, OSError) and not isinstance(error, DiskError) and is_full(error):
        return f"{error}: free some space, or set hydra.run.dir (in a sweep hydra.sweep.dir) to another disk, then run again"
    return str(error) if isinstance(error, EXPECTED) and str(error) else f"{type(error).__name__}: {error}"


def _call(function: Callable[[], Any]) -> Any:
    return function()
