"""Functions that become one kernel on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

MAX_VERSIONS = 64
"""Of one function: for lengths that are known and not, precisions, training and evaluation."""


@cache
def compile_kernel(function: F) -> F:
    """Compiled at its first call, as one whole graph.

    After 8 versions torch would run the function uncompiled from then on, with no more than a warning; here it takes
    VERSIONS, and then it raises.
    """
    how: dict[str, Any] = {"fullgraph": True, "recompile_limit": MAX_VERSIONS}
    return cast(F, torch.compile(function, **how))
