"""Limits of size that the code keeps, for tools/check: nnfs/, tests/ and tools/, scripts without a suffix included.

A module has at most 400 lines, a function 50, a constructor 7 parameters besides self. Exempt are kernels
(functions that numba compiles, marked `@njit` or `@intrinsic`: a loop is one function for the compiler's sake) and the
constructors that `@dataclass` writes (a record has the fields that it has). Anything else that exceeds a limit is named
in `[tool.limits]` of pyproject.toml, with the reason; a name there that keeps the limits is an error, too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 50, 7
COMPILED = {"njit", "intrinsic"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def compiled(function: Function) -> bool:
    """Return whether numba compiles the function."""
    marks = (mark.func if isinstance(mark, ast.Call) else mark for mark in function.decorator_list)
    return any(ast.unparse(mark).rpartition(".")[2] in COMPILED for mark in marks)


def parameters(function: Function) -> int:
    """Return the number of parameters besides self; *args and **kwargs count as one each."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return len(named) - 1 + (given.vararg is not None) + (given.kwarg is not None)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield every function with its dotted name within the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def exceeded(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield each excess of a limit: the name within the module ("" for the module), its line, the fault."""
    if (lines := len(source.splitlines())) > MODULE_LINES:
        yield "", 1, f"a module of {lines} lines, and the limit is {MODULE_LINES}"
    for name, function in functions(ast.parse(source)):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES and not compiled(function):
            yield name, function.lineno, f"a function of {lines} lines, and the limit is {FUNCTION_LINES}"
        if function.name == "__init__" and (count := parameters(function)) > PARAMETERS:
            yield name, function.lineno, f"a constructor of {count} parameters, and the limit is {PARAMETERS}"


def modules(root: Path) -> Iterator[Path]:
    """Yield the Python files that keep the limits: `*.py`, and files of tools/ whose first line names Python."""
    for folder in ("nnfs", "tests", "tools"):
        yield from sorted((root / folder).rglob("*.py"))
    for path in sorted((root / "tools").glob("*")):
        if path.is_file() and not path.suffix and b"python" in path.read_bytes().partition(b"\n")[0]:
            yield path


def complaints(root: Path, reasons: dict[str, str]) -> Iterator[str]:
    """Yield a line for each excess without a reason, and for each reason without an excess."""
    unused = dict(reasons)
    for path in modules(root):
        place = path.relative_to(root).as_posix()
        for name, line, problem in exceeded(path.read_text(encoding="utf-8")):
            label = f"{place}:{name}" if name else place
            if unused.pop(label, None) is None and label not in reasons:
                yield f"{place}:{line}: {f'{name} is ' if name else ''}{problem}"
    yield from (f"pyproject.toml: [tool.limits] names {label}, which keeps all limits" for label in unused)


def main() -> int:
    """Print all excesses of limits. Return 1 if there are any."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        reasons: dict[str, str] = tomllib.load(file)["tool"].get("limits", {})
    found = list(complaints(ROOT, reasons))
    for complaint in found:
        print(complaint)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
