"""What goes wrong with data."""


class DataError(ValueError):
    """Data that is missing, damaged or not as configured; the message names the path or the setting, and the mend."""
