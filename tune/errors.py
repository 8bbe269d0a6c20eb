"""Errors in a search that the user can fix."""


class SearchError(ValueError):
    """One sentence that names value, limit and fix."""
