"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: golden payloads, damage, impossible arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nnfs.kernels import build
from tests.harness import FULL


def runtime(name: str) -> str | None:
    """Return where the compiler has a sanitizer's library, None where it has none."""
    found = subprocess.run([*build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None


@pytest.mark.parametrize("variant", ["sanitized-", "emulated-sanitized-"])
def test_no_level_leaves_its_memory_or_the_language(variant: str) -> None:
    if variant.startswith("emulated") and not FULL:
        pytest.skip("two minutes: the levels of other processors, with tools/test --full")
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if None in libraries:
        pytest.skip("this compiler has no sanitizers")
    environment = {
        **os.environ, "LD_PRELOAD": " ".join(map(str, libraries)), "ASAN_OPTIONS": "detect_leaks=0,abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1,halt_on_error=1",
    }  # fmt: skip
    build.build(variant)
    command = [sys.executable, "-m", "tests.kernels.exercise", variant]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("payloads") >= (5 if variant.startswith("emulated") else 1)


def test_the_sanitizer_sees_an_overflow() -> None:
    """The check can fail: a call with too little room for its output is caught."""
    if runtime("libasan.so") is None:
        pytest.skip("this compiler has no sanitizers")
    build.build("sanitized-")
    code = (
        "import numpy as np\nfrom nnfs.mixer import native\nfrom tests.kernels.kit import library\n"
        "k = native.Kernels(library('sanitized-'), 'portable')\ns = native.MixState(1, 4096, 1)\n"
        "s.start(0, b'a' * 4096, 1)\nk.encode_path(s, 0, np.zeros(0, np.uint16), np.zeros(64, np.uint16))\n"
    )
    environment = {
        **os.environ, "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
