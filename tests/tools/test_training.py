"""tools/train stops a run and lets it go on."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.tools.kit import REPO

PAUSE = "pause"  # of nnfs.train.trainer, which wants torch


def train(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([REPO / "tools/train", *words], capture_output=True, text=True, check=False)


def test_a_run_is_paused_and_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        assert train("--work", str(tmp_path), "--pause").returncode == 0
        assert (tmp_path / PAUSE).exists()
    for _ in range(2):
        assert train("--work", str(tmp_path), "--resume").returncode == 0
        assert not (tmp_path / PAUSE).exists()


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    done = train("--work", str(tmp_path / "none"), "--pause")
    assert done.returncode != 0
    assert "no run in" in done.stderr
