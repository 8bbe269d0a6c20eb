"""Import bitsandbytes without PyTorch's compiler.

bitsandbytes calls `torch.compile` on four functions while it is imported. That imports the
compiler, which takes 2 s of each command and of each worker process. The functions serve devices
without a kernel of bitsandbytes, so hardly any process calls one.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_COMPILING = "bitsandbytes.backends.default.ops"
"""The module that compiles while it is imported."""


def compile_lazily() -> None:
    """Let the functions of bitsandbytes be compiled at their first call."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the one module as Python does, and runs it with a `torch.compile` that waits."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COMPILING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None

        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            import torch

            compile_now = torch.compile
            torch.compile = functools.partial(_compile_at_first_call, compile_now)
            try:
                run(module)
            finally:
                torch.compile = compile_now

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _compile_at_first_call(
    compile_now: Callable[..., Any], function: Callable[..., Any], **options: Any
) -> Callable[..., Any]:
    """Return the function, to be compiled at its first call."""
    compiled = functools.cache(lambda: compile_now(function, **options))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return run
