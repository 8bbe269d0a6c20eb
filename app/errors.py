"""What a user of the application can get wrong."""


class UserError(ValueError):
    """One sentence that names the thing, the limit and the fix; the command line prints it and exits with 2."""
