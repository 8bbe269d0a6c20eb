"""Errors in a search that the user can fix, and of a trial that cannot go on."""


class SearchError(ValueError):
    """One sentence that names value, limit and fix."""


class TrialFailed(Exception):
    """The reason in one sentence. A restart of the trial would fail again."""
