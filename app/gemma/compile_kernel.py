"""Compile a function into one GPU kernel."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

MAX_VERSIONS = 64
"""Most versions of one function: static and dynamic lengths, precisions, training, evaluation."""


@cache
def compile_kernel(function: F) -> F:
    """Return the function, to be compiled at its first call as one whole graph.

    By default torch compiles 8 versions, then warns and runs the function uncompiled. This one
    allows MAX_VERSIONS, and then it raises.
    """
    options: dict[str, Any] = {"fullgraph": True, "recompile_limit": MAX_VERSIONS}
    return cast(F, torch.compile(function, **options))
