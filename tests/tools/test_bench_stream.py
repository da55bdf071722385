"""tools/bench_codec --stream: the Weissman score, and how a stream is cut by its limits."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPO, WAIT_S

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench.codec import stream
from bench.codec.stream import Streamed, weissman


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """1,200,000 bytes that compress to about a third."""
    drawn = random.Random(1)
    words = [drawn.randbytes(2).hex() for _ in range(300)]
    (tmp_path / "file").write_text("\n".join(drawn.choices(words, k=240_000)))
    return tmp_path / "file"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    command = [REPO / "tools/bench_codec", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S)


def rows(out: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    done = run(*arguments, "--json", out)
    assert done.returncode == 0, done.stderr
    assert "2.981" in done.stdout  # the page says what the score cannot be compared with
    found: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return found


def test_the_score_of_the_reference_is_one() -> None:
    own = Streamed(1000, 250, 20.0)
    assert weissman(own, own, 1.0) == pytest.approx(1)


def test_a_ratio_twice_as_good_in_the_same_time_scores_two() -> None:
    assert weissman(Streamed(1000, 125, 20.0), Streamed(1000, 250, 20.0), 1.0) == pytest.approx(2)


def test_the_unit_of_time_changes_the_score() -> None:
    one, reference = Streamed(1000, 125, 100.0), Streamed(1000, 250, 10.0)
    assert weissman(one, reference, 1.0) == pytest.approx(2 * 1 / 2)  # logarithms of 10 and 100
    assert weissman(one, reference, 0.001) == pytest.approx(2 * 4 / 5)


@pytest.mark.parametrize("times", [(0.5, 10.0), (10.0, 1.0)])
def test_a_time_no_longer_than_the_unit_has_no_score(times: tuple[float, float]) -> None:
    assert weissman(Streamed(1000, 125, times[0]), Streamed(1000, 250, times[1]), 1.0) is None


def test_the_reference_is_gzip_9(file: Path) -> None:
    plain = file.read_bytes()
    for size in (1000, len(plain)):
        found = stream.reference(file, size)
        assert (found.plain, found.stored) == (size, len(gzip.compress(plain[:size], 9)))


def test_a_file_at_growing_sizes(file: Path, tmp_path: Path) -> None:
    found = rows(tmp_path / "out", file, "--stream", "1,2,9", "--codecs", "raw,zstd-19", "--chunk", "65536")
    size = file.stat().st_size
    assert [(row["codec"], row["plain"]) for row in found] == [
        (name, plain) for plain in (1_000_000, size) for name in ("gzip -9", "raw", "zstd-19")
    ]
    for row in found:
        assert row["W (1 ms)"] is None or row["W (1 ms)"] > 0
        assert row["reference_stored"] < row["plain"]
    assert found[0]["W (1 ms)"] == pytest.approx(1)
    assert found[1]["stored"] == 1_000_000


def test_a_codec_whose_time_is_over_ends_there_and_is_scored_by_the_same_bytes(file: Path, tmp_path: Path) -> None:
    found = rows(
        tmp_path / "out", file, "--stream", "1,2", "--codecs", "zstd-19", "--chunk", "1000", "--limit", "0"
    )  # fmt: skip
    cut = 1000 * stream.GROUP
    assert [(row["codec"], row["plain"]) for row in found[:2]] == [("gzip -9", 1_000_000), ("zstd-19", cut)]
    assert found[1]["reference_stored"] == len(gzip.compress(file.read_bytes()[:cut], 9))
    assert [row["codec"] for row in found[2:]] == ["gzip -9"]  # no larger size for it


def test_a_folder_is_not_streamed(tmp_path: Path) -> None:
    done = run(tmp_path, "--stream", "1", "--codecs", "raw")
    assert "a file is streamed, and this is none" in done.stdout


@pytest.mark.parametrize("sizes", ["0", "1,x", ""])
def test_sizes_are_whole_numbers(file: Path, sizes: str) -> None:
    done = run(file, "--stream", sizes)
    assert done.returncode == 2
    assert "--stream" in done.stderr
