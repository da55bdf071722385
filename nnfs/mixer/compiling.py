"""`njit`: numba compiles a function when it is first called, and numba itself is imported then.

A worker with native kernels (`nnfs.kernels`) decodes without calling any of these functions, and so without numba,
whose import takes longer than all the rest of its start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any


def njit(*, cache: bool = True, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as numba's `njit(**options)` does, when it is first called; `cache`: keep the result."""
    return lambda function: Kernel(function, cache, options)


class Kernel:
    """A function that numba compiles. To numba it shows the dispatcher of the function."""

    def __init__(self, function: Callable[..., Any], cache: bool, options: dict[str, Any]) -> None:
        self._function, self._cache, self._options = function, cache, options

    @cached_property
    def _dispatcher(self) -> Any:
        import numba

        from nnfs.mixer.kernelfiles import KernelCache

        made = numba.njit(**self._options)(self._function)
        if self._cache and hasattr(made, "_cache"):  # not if the user has disabled numba's compiler
            made._cache = KernelCache(self._function)
        return made

    def __call__(self, *arguments: Any) -> Any:
        return self._dispatcher(*arguments)

    def __getattr__(self, name: str) -> Any:  # numba asks a callee for its type, and for its source to inline it
        return getattr(self._dispatcher, name)
