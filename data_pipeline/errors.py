"""Errors in the data that a user supplies."""


class DataError(ValueError):
    """An error in the user's data: one sentence that names the value, the limit and the fix."""
