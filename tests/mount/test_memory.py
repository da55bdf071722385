"""Limits of memory: found in control groups, options that fit, and a mount that lives within 256 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nnfs.blockio.cold import specs
from nnfs.config import MIN_DIRTY, Options, as_texts, parse_own
from nnfs.errors import UsageError
from nnfs.mount import memory
from nnfs.mount.table import MountInfo
from tests.conftest import why_no_mount
from tests.harness import FULL, REPO, Mount, nnfs
from tests.mount.memorykit import MIB, Group, group

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
LIMIT = 256 * MIB
SIZE = 1024 if FULL else 320  # MiB, more than the limit

WORK = """
import os, random, sys
path, count = sys.argv[1], int(sys.argv[2])
noise, text = random.Random(1).randbytes(1 << 19), b"some text, again and again. " * 18725
def block(n): return n.to_bytes(8, "big") * 512 + noise[4096:] + text[: 1 << 19]
with open(path, "wb") as file:
    for n in range(count): file.write(block(n))
    os.fsync(file.fileno())
with open(path, "rb", buffering=0) as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for n in range(count):
        got = b""
        while len(got) < 1 << 20: got += file.read((1 << 20) - len(got))
        assert got == block(n), n
"""


@pytest.fixture
def small() -> Iterator[Group]:
    with group(LIMIT) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


def faults(pid: int) -> int:
    """Pages that a process has waited for the disk for."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


@needs_mount
@pytest.mark.mount
def test_much_is_written_and_read_in_little_memory(small: Group) -> None:
    with Mount(argv=small.mounting) as mount:
        mount.deadline()
        assert "memory is limited to 256M: cache=16M, dirty=12M; the network encodes nothing" in mount.log()
        words = small.argv(sys.executable, "-c", WORK, str(mount.path / "file"), str(SIZE))
        before = faults(mount.pid)
        subprocess.run(words, check=True)
        assert small.killed == 0
        pages = SIZE * MIB // 4096
        assert faults(mount.pid) - before < pages // 8, "it has not crawled: its own pages stayed in memory"
        options = json.loads(nnfs("set", str(mount.path), "--json").stdout)
        assert {name: options[name] for name in ("memory", "cache", "dirty", "neural")} == {
            "memory": "256M", "cache": "16M", "dirty": "12M", "neural": "off",
        }  # fmt: skip
        done = nnfs("set", str(mount.path), "cache=64M", check=False)
        assert (done.returncode, "cache is 16M at most: the mount may use 256M of memory" in done.stderr) == (2, True)
        nnfs("set", str(mount.path), "cache=8M")


@needs_mount
@pytest.mark.mount
@pytest.mark.skipif(not FULL, reason="half a minute; the reference fits by little, and fails where it does not")
def test_workers_find_room_beside_the_daemon(small: Group) -> None:
    """Recompression takes a worker, and the reference, which has numba."""
    text = b"".join(path.read_bytes() for path in sorted((REPO / "nnfs").glob("*/*.py")))[: 1 << 20]
    with Mount(argv=small.mounting, options=["compact=off,search=off"]) as mount:
        mount.deadline()
        (mount.path / "text").write_bytes(text)
        out = nnfs("compact", str(mount.path), "--all", "--quick", "--wait", "--json").stdout
        done = json.loads(out.splitlines()[-1])
        assert (done["state"], done["cold_chunks"], done["failed_chunks"]) == ("done", done["total_chunks"], 0)
        scores = [
            int(Path(f"/proc/{worker['pid']}/oom_score_adj").read_text())
            for worker in json.loads(nnfs("status", str(mount.path), "--json").stdout)["workers"]
            if worker["pid"]
        ]
        assert scores
        assert all(score >= 500 for score in scores), "the kernel kills a worker before the mount"
        mount.drop_caches()
        assert (mount.path / "text").read_bytes() == text


def test_options_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limit", lambda: 1 << 40)
    assert memory.within(Options()) == Options()
    held = memory.within(parse_own({"memory": "256M", "cache": "1G", "dirty": "8M"}))
    assert as_texts(held) == as_texts(Options()) | {
        "memory": "256M", "cache": "16M", "dirty": "8M", "neural": "off", "search_memory": "16M"
    }  # fmt: skip
    assert memory.within(held) == held
    assert memory.within(parse_own({"memory": "128M"})).dirty == 6 * MIB >= MIN_DIRTY
    assert memory.within(parse_own({"memory": "700M"})).neural
    monkeypatch.setattr(memory, "limit", lambda: 200 * MIB)
    assert memory.within(Options()).cache == 12 * MIB
    assert memory.within(parse_own({"memory": "1G"})) == parse_own({"memory": "1G"}), "what is given holds"


def test_workers_of_a_small_mount_leave_sooner() -> None:
    long, short = (specs(options) for options in (Options(), replace(Options(), memory=LIMIT)))
    assert all((one.idle_s or 0) < (other.idle_s or 0) for one, other in zip(short, long, strict=True))


@pytest.mark.parametrize("text", ["1M", "off", "-1", "127M"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match=f"memory={text}"):
        parse_own({"memory": text})


def limits(base: Path, groups: str, kind: str, options: str, root: str = "/") -> list[int]:
    mounts = [MountInfo("0:1", str(base), "", kind, kind, options, root), MountInfo("0:2", "/x", "", "ext4", "/", "")]
    return list(memory._limits(groups, mounts))


def test_the_limits_of_a_group_and_of_those_above_it(tmp_path: Path) -> None:
    inner = tmp_path / "system.slice" / "nnfs.service"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.high").write_text("1000\n")
    (inner.parent / "memory.max").write_text("500\n")
    (inner / "memory.limit_in_bytes").write_text("700\n")
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    groups = "3:cpu,memory:/system.slice/nnfs.service\n1:name=systemd:/\n0::/system.slice/nnfs.service\n"
    assert limits(tmp_path, groups, "cgroup2", "rw") == [1000, 500]
    assert limits(tmp_path, groups, "cgroup", "rw,cpu,memory") == [700, 9223372036854771712]
    assert limits(tmp_path, groups, "cgroup", "rw,cpu") == []
    assert limits(tmp_path, "0::/\n", "cgroup2", "rw") == []


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("700\n")
    assert limits(tmp_path, "3:memory:/docker/abc\n", "cgroup", "rw,memory", root="/docker/abc") == [700]
    assert limits(tmp_path, "3:memory:/docker/abc\n", "cgroup", "rw,memory") == [700]


def test_this_machine_has_a_limit() -> None:
    assert 0 < memory.limit() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
