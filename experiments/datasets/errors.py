"""The error for unusable data."""


class DataError(ValueError):
    """The data is missing, damaged or not as configured. The message names the path or the setting, and the remedy."""
