"""Error that a user of the application can correct."""

from data_pipeline.masking import mask_secrets


class UserError(ValueError):
    """One sentence that names the value, the limit and the fix.

    The command line prints the sentence and exits with 2. Credentials in it are masked, so that
    every process may log it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_secrets(message))
