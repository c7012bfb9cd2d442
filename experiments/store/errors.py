"""The errors of the store."""

from experiments.disk import DiskError


class StoreError(DiskError):
    """The store cannot return an artifact. The message names the folder or the setting, and the remedy."""
