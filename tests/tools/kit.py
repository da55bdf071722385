"""Helpers of the tests of tools/: its modules, and a checkout with stand-ins for the programs that set-up calls."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def lib(name: str) -> Any:
    """Return the module of a file in tools/lib, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPO / "tools" / "lib" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Writes its arguments to calls/NAME, one line per call.
RECORDER = """#!/bin/sh
echo "$*" >>"{calls}/{name}"
exit {status}
"""


# Stand-ins for what set-up would do to the machine; each notes that it was called.
STAND_INS = """
. tools/lib/setup.sh
note() { echo "$*" >>calls/setup; }
missing_packages() { :; }
has_gpu() { [[ -e gpu ]]; }
has_cuda_build() { :; }
make_venv() { note venv && mkdir -p .venv/bin && cp fake-python .venv/bin/python && echo "$root" >.venv/place; }
pip() { note pip "$@" && [[ ! -e offline || $* != *torch=* ]]; }
"""


class Checkout:
    """A copy of what set-up needs, at *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.calls.mkdir(parents=True)
        shutil.copytree(REPO / "tools", root / "tools")
        shutil.copytree(REPO / "nnfs/kernels/src", root / "nnfs/kernels/src")
        shutil.copytree(REPO / "nnfs/cli/sbin", root / "nnfs/cli/sbin")
        shutil.copy(REPO / "nnfs/kernels/build.py", root / "nnfs/kernels")
        shutil.copy(REPO / "pyproject.toml", root)
        self.recorder(root / "fake-python", "python")
        script = root / "tools/lib/setup.sh"
        text, links = script.read_text(), "helper_links=(/sbin/{u,}mount{.fuse,}.nnfs /usr/local/bin/nnfs)"
        assert links in text
        script.write_text(text.replace(links, f"helper_links=('{root}/sbin/mount.nnfs' '{root}/sbin/umount.nnfs')"))

    def recorder(self, path: Path, name: str, status: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER.format(calls=self.calls, name=name, status=status))
        path.chmod(0o755)

    def set_up(self, *args: str) -> list[str]:
        """The steps that `set_up ARGS` took."""
        log = self.calls / "setup"
        log.unlink(missing_ok=True)
        script = STAND_INS + f"set_up {' '.join(args)}"
        subprocess.run(["bash", "-c", script], cwd=self.root, check=True, stderr=subprocess.DEVNULL)
        return log.read_text().splitlines() if log.exists() else []

    def calls_of(self, name: str) -> list[str]:
        path = self.calls / name
        return path.read_text().splitlines() if path.exists() else []
