"""What a user's search can get wrong."""


class SearchError(ValueError):
    """One sentence that names the thing, the limit and the fix."""
