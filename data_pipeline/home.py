"""The home folder in a path: `~/x` and `~user/x`."""

import os

from data_pipeline.errors import DataError


def expand_home(path: str) -> str:
    """Return the path with `~` or `~user` at its start replaced by the home folder.

    Raises DataError if this machine has no such user: the path would name a folder called `~user`.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise DataError(
            f"{path}: this machine has no user {user[1:]!r} with a home folder; correct the name, "
            f"or write ./{path} for a folder named {user}"
        )
    return expanded
