"""What a user's data can get wrong."""


class DataError(ValueError):
    """One sentence that names the thing, the limit and the fix."""
