"""Error that a user of the application can correct."""


class UserError(ValueError):
    """One sentence that names the value, the limit and the fix.

    The command line prints the sentence and exits with 2.
    """
