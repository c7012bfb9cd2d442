"""Errors that the user can correct end a run with one sentence instead of a traceback (HYDRA_FULL_ERROR=1 shows the traceback)."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from experiments.tasks.suggestions import composition_error

EXPECTED = (ValueError, FloatingPointError, OSError, HydraException, OmegaConfBaseException)


@contextmanager
def sentences() -> Iterator[None]:
    """Exits with "error: ..." where the body raises one of ``EXPECTED``; Hydra prints none of its own errors meanwhile."""
    with patch("hydra._internal.utils.run_and_report", _call):
        try:
            yield
        except EXPECTED as error:
            exit_with(error)


def exit_with(error: BaseException) -> NoReturn:
    """Exits with the error's sentence."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if isinstance(error, InstantiationException):
        error = error.__cause__ or error
    sys.exit(f"error: {composition_error(error) if isinstance(error, HydraException) else error}")


def _call(function: Callable[[], Any]) -> Any:
    return function()
