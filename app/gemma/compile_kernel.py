"""Compile a function into one GPU kernel."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])

MAX_VERSIONS = 64
"""Most versions of one function: static and dynamic lengths, precisions, training, evaluation."""


@cache
def compile_kernel(function: F) -> F:
    """Return the function, to be compiled at its first call as one whole graph.

    By default torch compiles 8 versions, then warns and runs the function uncompiled. This one
    allows MAX_VERSIONS, and then it raises. Each value of a Python float is a version of its own.
    """
    compiled = torch.compile(function, fullgraph=True)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            _configure_thread()
        return compiled(*args, **kwargs)

    return cast(F, run)


def _configure_thread() -> None:
    """Set the options of torch's compiler in this thread, if they are not set yet.

    Each thread has options of its own, and autograd recomputes layers in its own threads. By
    default torch makes the second value of a captured float an input of the kernel, which
    FlexAttention cannot compile. torch.compile has an argument for the limit since torch 2.12 only.
    """
    config: Any = torch._dynamo.config
    if not config.specialize_float:
        config.specialize_float = True
        config.recompile_limit = MAX_VERSIONS
