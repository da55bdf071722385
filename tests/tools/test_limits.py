"""Tests of tools/lib/limits.py: what exceeds a limit is told, and what has a reason is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.kit import lib

limits = lib("limits")
BODY = "    x = 1\n"


def names(source: str) -> list[str]:
    return [name for name, _, _ in limits.exceeded(source)]


@pytest.mark.parametrize("lines", [400, 401])
def test_a_module_has_400_lines(lines: int) -> None:
    assert names("x = 1\n" * lines) == ([""] if lines > 400 else [])


@pytest.mark.parametrize("body", [49, 50])
def test_a_function_has_50_lines(body: int) -> None:
    wrong = body > 49  # and its first line
    assert names("async def f():\n" + BODY * body) == (["f"] if wrong else [])
    method = "class A:\n    def g(self):\n" + f"    {BODY}" * body
    assert names(method) == (["A.g"] if wrong else [])


@pytest.mark.parametrize("mark", ["njit", "njit(cache=True)", "numba.njit(inline='always')", "intrinsic"])
def test_a_kernel_may_be_longer(mark: str) -> None:
    assert names(f"@{mark}\ndef f():\n" + BODY * 60) == []


@pytest.mark.parametrize("mark", ["cache", "property", "functools.wraps(njit)"])
def test_other_marks_exempt_nothing(mark: str) -> None:
    assert names(f"@{mark}\ndef f():\n" + BODY * 60) == ["f"]


def test_a_function_within_a_function_counts_too() -> None:
    inner = "    def g():\n" + "        x = 1\n" * 50
    assert names("def f():\n" + inner) == ["f", "f.g"]


@pytest.mark.parametrize("given", ["a, b, c, d, e, f, g", "a, b, c, *, d, e, f, g", "a, b, c, d, e, *f, **g"])
def test_a_constructor_has_seven_parameters(given: str) -> None:
    assert names(f"class A:\n    def __init__(self, {given}): ...\n") == []
    assert names(f"class A:\n    def __init__(self, z, {given}): ...\n") == ["A.__init__"]
    assert names(f"class A:\n    def work(self, z, {given}): ...\n") == []


def test_tests_and_tools_keep_the_limits_too(tmp_path: Path) -> None:
    for name in ("nnfs/a.py", "tests/store/test_a.py", "tools/lib/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n" * 401)
    (tmp_path / "tools" / "draw").write_text("#!/usr/bin/env python3\n" * 401)
    (tmp_path / "tools" / "check").write_text("#!/usr/bin/env bash\n" * 401)
    told = [line.partition(":")[0] for line in limits.complaints(tmp_path, {})]
    assert told == ["nnfs/a.py", "tests/store/test_a.py", "tools/lib/a.py", "tools/draw"]


def test_a_reason_excuses_and_a_needless_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "nnfs").mkdir()
    (tmp_path / "nnfs" / "long.py").write_text("x = 1\n" * 401)
    assert len(list(limits.complaints(tmp_path, {}))) == 1
    assert list(limits.complaints(tmp_path, {"nnfs/long.py": "one table"})) == []
    assert len(list(limits.complaints(tmp_path, {"nnfs/long.py": "one table", "nnfs/gone.py": "it was long"}))) == 1
