"""`nnfs top`: rates between two answers of the daemon, its lines, and a real mount."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nnfs.cli import top
from nnfs.cli.topview import View
from nnfs.mount.meter import SUM, histogram, quantile
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon
from tests.conftest import why_no_mount
from tests.harness import Mount, command, environment, nnfs

FIGURES = {
    "errors": 0, "read_bytes": 0, "written_bytes": 0, "cache_hits": 0, "cache_misses": 0, "decoded_bytes": 0,
    "reads_waiting": 0, "queue": 0, "dirty_bytes": 0,
}  # fmt: skip


def counts(*values: int) -> list[int]:
    found = histogram()
    for value in values:
        found[value.bit_length()] += 1
        found[SUM] += value
    return found


def answer(uptime: float, nanoseconds: dict[str, list[int]], **figures: int) -> dict[str, Any]:
    return {"uptime": uptime, "nanoseconds": nanoseconds, **FIGURES, **figures}


BEFORE = answer(10.0, {"read": counts(5)}, read_bytes=1000, cache_hits=4, errors=1)
NOW = answer(
    12.0, {"read": counts(5, *[1000] * 98, 60_000), "open": counts(1000)}, read_bytes=3001, cache_hits=7,
    cache_misses=1, errors=3, dirty_bytes=2048, decoded_bytes=4 << 20, reads_waiting=2, queue=9,
)  # fmt: skip


def test_rates_are_those_between_two_answers() -> None:
    assert top.rates(BEFORE, NOW) == {
        "requests": 50.0, "by_operation": {"read": 49.5, "open": 0.5}, "p99_seconds": 1024e-9,
        "p99_by_operation": {"read": 65536e-9, "open": 1024e-9}, "read_bytes": 1000.5,
        "written_bytes": 0.0, "cache_hit_share": 0.75, "decoded_bytes": float(2 << 20), "reads_waiting": 2, "queue": 9,
        "dirty_bytes": 2048, "errors": 2,
    }  # fmt: skip
    idle = top.rates(NOW, NOW)
    assert (idle["requests"], idle["p99_seconds"], idle["cache_hit_share"]) == (0.0, 0.0, None)


@pytest.mark.parametrize(("share", "bound"), [(0.5, 1024), (0.99, 1024), (0.995, 65536), (1.0, 65536)])
def test_quantiles(share: float, bound: int) -> None:
    assert quantile(counts(*[1000] * 99, 60_000), share) == bound
    assert quantile(histogram(), share) == 0


def test_lines(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.cli.top.time.sleep", lambda _: None)
    with FakeDaemon(store, counters=[BEFORE, NOW, NOW]):
        status, out, err = run("top", store, "--count", "2")
    assert (status, err) == (0, "")
    head, first, second = out.splitlines()
    assert head.split("  ")[0] == "requests/s"
    assert first.split() == "50 1.02 us read 50 1000 B 0 B 75% 2.00 MiB 2 9 2.00 KiB 2".split()
    assert second.split() == "0 - - 0 B 0 B - 0 B 2 9 2.00 KiB 0".split()
    assert len(head) == len(first) == len(second)


def test_a_view_on_a_terminal() -> None:
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, width=140, height=12, legacy_windows=False)
    view = View("nnfs top /mnt", top.HEADINGS, top.shown, screen)
    for _ in range(9):
        view(top.rates(BEFORE, NOW))
    view(top.rates(NOW, NOW))
    view.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).split("nnfs top /mnt")[-1]
    lines = last.split("\n")
    assert "requests/s" in lines[1]
    assert lines[2].split() == "50 1.02 us read 50 1000 B 0 B 75% 2.00 MiB 2 9 2.00 KiB 2".split()
    assert len([line for line in lines if line.strip()]) <= 12, "the view fits the terminal"
    assert "99 % in" in last
    view = View("nnfs top /mnt", top.HEADINGS, top.shown, screen)
    view(top.rates(BEFORE, NOW))
    view.close()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).split("nnfs top /mnt")[-1]
    assert re.search(r"read +50 +65.5 us", last)


@pytest.mark.skipif(why_no_mount() is not None, reason="needs a mount")
def test_a_terminal_gets_the_view_and_a_pipe_gets_lines(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store") as mount:
        words = [*command("top", str(mount.path), "--interval", "0.01", "--count", "2")]
        ours, theirs = os.openpty()
        with subprocess.Popen(words, stdout=theirs, env={**environment(), "TERM": "xterm"}) as child:
            os.close(theirs)
            text = b"".join(iter(functools.partial(_read, ours), b""))
        os.close(ours)
        assert (child.returncode, b"^C ends it" in text, b"\x1b[" in text) == (0, True, True)
        piped = subprocess.run(words, capture_output=True, env=environment(), check=True).stdout
        assert len(piped.splitlines()) == 3
        assert b"\x1b" not in piped


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side is closed
        return b""


def test_an_interval_that_makes_no_sense(store: Path, run: Run) -> None:
    for text in ("0", "x", "-1"):
        status, _, err = run("top", store, f"--interval={text}")
        assert (status, "is not a number of seconds: write 0.5, 10 or 1m" in err) == (2, True)


@pytest.mark.skipif(why_no_mount() is not None, reason="needs a mount")
def test_a_mount(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store") as mount:
        lines = nnfs("top", str(mount.path), "--interval", "0.01", "--count", "3", "--json").stdout.splitlines()
    assert [json.loads(line)["errors"] for line in lines] == [0, 0, 0]
