"""tools/bench_codec: what it measures, what it skips, what it refuses."""

from __future__ import annotations

import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "path codec plain_bytes stored_bytes bits_per_byte encode_kbps decode_kbps peak_mb".split()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A large text, small ones, one that does not compress, and what is no file."""
    drawn = random.Random(1)
    words = [drawn.randbytes(3).hex() for _ in range(500)]
    (tmp_path / "large").write_text(" ".join(drawn.choices(words, k=10_000)))
    for number in range(20):
        (tmp_path / f"small{number:02}").write_text(" ".join(drawn.choices(words, k=50)))
    (tmp_path / "random").write_bytes(drawn.randbytes(3000))
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("large")
    return tmp_path


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        [ROOT / "tools/bench_codec", *arguments], env=environment, capture_output=True, text=True, timeout=WAIT_S
    )


def rows(tmp_path: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    done = bench(*arguments, "--json", out)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return found


def test_rows(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = rows(tmp_path_factory.mktemp("out"), files, "--codecs", "raw,xz,zstd-19", "--chunk", "16384")
    plain = sum(path.stat().st_size for path in files.iterdir() if not path.is_symlink())
    assert [(row["codec"], row["plain_bytes"]) for row in found] == [("raw", plain), ("xz", plain), ("zstd-19", plain)]
    for row in found:
        assert list(row)[: len(COLUMNS)] == COLUMNS
        assert row["bits_per_byte"] == pytest.approx(8 * row["stored_bytes"] / plain)
        assert min(row["encode_kbps"], row["decode_kbps"], row["peak_mb"], row["passes"]) > 0
    assert found[0]["stored_bytes"] == plain


def test_first_bytes_as_one_chunk(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (row,) = rows(tmp_path_factory.mktemp("out"), files / "large", "--codecs", "xz", "--first", "20000")
    text = (files / "large").read_bytes()[:20000]
    assert row["stored_bytes"] == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert (row["plain_bytes"], row["chunks"]) == (20000, 1)


def test_samples(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out")

    def drawn(seed: str) -> list[tuple[int, int]]:
        found = rows(out, files, "--codecs", "raw,zstd-19", "--chunk", "4096", "--sample", "12", "--seed", seed)
        assert [row["chunks"] for row in found] == [12, 12]
        assert found[0]["plain_bytes"] == found[1]["plain_bytes"]
        return [(row["plain_bytes"], row["stored_bytes"]) for row in found]

    assert drawn("1") == drawn("1")
    assert drawn("1") != drawn("2")


def test_what_is_missing_is_skipped(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = bench(files / "random", files / "empty", "--codecs", "raw,nonsense,neural:/nowhere")
    assert done.returncode == 0, done.stderr
    assert "- nonsense: skipped: no codec nonsense" in done.stdout
    assert "- neural:/nowhere: skipped: " in done.stdout
    assert "empty: nothing to measure" in done.stdout
    assert bench(files / "not there").returncode == 2


def test_what_competes_in_nnfs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = rows(tmp_path_factory.mktemp("out"), files / "large", files / "random", "--codecs", "raw,zstd")
    stored = {(Path(row["path"]).name, row["codec"]): row["stored_bytes"] for row in found}
    assert stored["random", "zstd"] == stored["random", "smallest"] == 3000
    assert stored["large", "smallest"] == stored["large", "zstd"] < stored["large", "raw"]
