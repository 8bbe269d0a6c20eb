"""Errors in the data that a user supplies."""

from data_pipeline.masking import mask_secrets


class DataError(ValueError):
    """An error in the user's data: one sentence that names the value, the limit and the fix.

    Credentials in it are masked, so that every process may log it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))
