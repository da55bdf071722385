"""The import contracts of pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.tools.kit import REPO


def test_every_import_contract_can_break(tmp_path: Path) -> None:
    """tools/check sees them kept; here each is broken on purpose."""
    shutil.copytree(REPO / "nnfs", tmp_path / "nnfs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    (tmp_path / "nnfs/fs/planted.py").write_text("import jax, lmdb, trio, pyfuse3, torch, xxhash\nimport nnfs.cli\n")
    lint = Path(sys.executable).parent / "lint-imports"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, env=env, capture_output=True, text=True)
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert done.returncode == 1
    assert [c["name"] for c in contracts if f"{c['name']} BROKEN" not in done.stdout] == []
