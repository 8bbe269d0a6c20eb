"""The error of a full disk, as Python, pyarrow and safetensors raise it."""

import errno

from app.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def find_full_disk(error: BaseException) -> UserError | None:
    """Return the error for the user if `error` says that a disk or a quota is full, else None."""
    # safetensors, written in Rust, raises no OSError: its text ends in "(os error 28)"
    is_full = (isinstance(error, OSError) and error.errno in _FULL) or any(
        f"(os error {code})" in str(error) for code in _FULL
    )
    if not is_full:
        return None
    reason = " ".join(str(error).split())
    return UserError(
        f"no space is left ({reason}): free some where train.output_dir or the temporary folder "
        "(TMPDIR) is, and start the job again; it continues from its newest checkpoint"
    )
