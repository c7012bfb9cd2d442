"""Errors that a user can mend: shown as one sentence, without a traceback (HYDRA_FULL_ERROR=1 brings it back)."""

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

EXPECTED = (ValueError, FloatingPointError, OSError, HydraException, OmegaConfBaseException)
