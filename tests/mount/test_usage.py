"""Files that are used while the daemon hears nothing of it: reads from the page cache, mappings, open files."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from nnfs.fs import accesstimes, usage
from nnfs.fs.accesstimes import AccessTimes
from nnfs.fs.candidates import Ages
from nnfs.fs.usage import Usage
from nnfs.mount.ops import Operations
from nnfs.store.schema import Inode
from tests.harness import Mount, nnfs

HOUR = 3600 * 10**9
DAY = 24 * HOUR


class Clock:
    """Time stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000 * DAY

    def __call__(self) -> int:
        return self.now


def test_an_open_file_is_never_cold() -> None:
    clock = Clock()
    uses, inode = Usage(clock), Inode(20, 0o100644, 0, 0, 0)
    ages = Ages(HOUR, DAY, uses.last)
    assert ages.cold(inode, clock.now)
    uses.opened(20)
    uses.opened(20, reads=False)
    clock.now += 100 * DAY
    assert not ages.cold(inode, clock.now)
    assert not uses.closed(20)  # the other handle is left
    clock.now += 100 * DAY
    assert not ages.cold(inode, clock.now)
    assert uses.closed(20)
    clock.now += DAY - 1
    assert not ages.cold(inode, clock.now)
    clock.now += 1
    assert ages.cold(inode, clock.now)
    assert Ages(HOUR, 0, Usage(clock).last).cold(inode, clock.now)  # read_age=0: whoever reads it


def test_only_what_could_be_read_counts_as_read() -> None:
    uses = Usage(Clock())
    uses.opened(20, reads=False)
    assert not uses.closed(20)
    uses.opened(20)
    assert uses.closed(20)
    uses.opened(20, reads=False)
    assert not uses.closed(20)  # forgotten with the last handle


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "KEPT", 2)
    uses = Usage(Clock())
    for ino in (1, 2, 3):
        uses.used(ino)
    assert [bool(uses.last(ino)) for ino in (1, 2, 3)] == [False, True, True]
    uses.opened(1)
    assert uses.last(1)  # what is open always counts
    uses.closed(1)
    assert [bool(uses.last(ino)) for ino in (1, 2, 3)] == [True, False, True]


class Kernel:
    """An `Operations` on one inode, and what the kernel is told of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, atime: str, *, read_only: bool = False) -> None:
        self.clock = Clock()
        self.inode = Inode(20, 0o100644, 0, 0, 0)
        self.inode.nlink = 1
        self.told = 0
        fs: Any = SimpleNamespace(touch=lambda _: None, inode=lambda _: self.inode, quotas=SimpleNamespace())
        monkeypatch.setattr(accesstimes, "time", SimpleNamespace(time_ns=self.clock))
        monkeypatch.setattr("nnfs.mount.ops.pyfuse3.invalidate_inode", self.tell)
        admission = SimpleNamespace(has_room_to_spare=lambda: True)
        committer: Any = SimpleNamespace(failure=None, admission=admission)
        self.times = AccessTimes(fs, atime, 24 * 3600)
        self.times.usage = Usage(self.clock)
        self.ops = Operations(fs, None, None, committer, self.times, read_only=read_only)  # type: ignore[arg-type]

    def tell(self, ino: int, *, attr_only: bool) -> None:
        self.told += 1
        raise OSError(errno.ENOENT, "the kernel does not know it")  # which is no harm

    def open(self, flags: int) -> None:
        ctx: Any = None
        trio.run(self.ops.open, 20, flags, ctx)

    def close(self) -> None:
        trio.run(self.ops.release, 20)


@pytest.mark.parametrize(
    ("atime", "flags", "moves"),
    [
        ("relatime", os.O_RDONLY, [True, False, True]),
        ("relatime", os.O_RDONLY | os.O_NOATIME, [False, False, False]),
        ("strictatime", os.O_RDONLY, [True, True, True]),
        ("noatime", os.O_RDONLY, [False, False, False]),
    ],
    ids=["relatime", "O_NOATIME", "strictatime", "noatime"],
)
def test_an_open_for_reading_moves_the_atime(
    monkeypatch: pytest.MonkeyPatch, atime: str, flags: int, moves: list[bool]
) -> None:
    """The first time, a minute later, and half a day and a minute later."""
    kernel = Kernel(monkeypatch, atime)
    found = []
    for minutes in (0, 1, 12 * 60 + 1):
        kernel.clock.now += minutes * HOUR // 60
        before = kernel.inode.atime, kernel.told
        kernel.open(flags)
        kernel.close()
        found.append(kernel.inode.atime > before[0])
        assert (kernel.told > before[1]) == found[-1]
    assert found == moves


def test_the_last_close_tells_the_next_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, "relatime")
    kernel.open(os.O_RDONLY)
    kernel.clock.now += 30 * DAY
    assert kernel.times.last_read(20) == kernel.clock.now
    kernel.close()
    assert kernel.inode.atime == kernel.clock.now
    kernel.open(os.O_WRONLY | os.O_NOATIME)
    kernel.clock.now += 30 * DAY
    kernel.close()
    assert kernel.inode.atime == kernel.clock.now - 30 * DAY
    assert kernel.times.last_read(20) == kernel.inode.atime


def test_a_read_only_mount_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, "relatime", read_only=True)
    kernel.open(os.O_RDONLY)
    kernel.clock.now += 30 * DAY
    kernel.close()
    assert (kernel.inode.atime, kernel.told) == (0, 0)


@pytest.mark.mount
def test_reads_from_the_page_cache_move_the_atime(tmp_path: Path) -> None:
    """After a change a read moves the atime, also one from the page cache (xfstests generic/003)."""
    with Mount(tmp_path / "store") as mount:
        file = mount.path / "f"
        file.write_bytes(b"written, so the kernel has it in its page cache")
        born = file.stat()
        assert file.read_bytes()
        read = file.stat()
        assert read.st_atime_ns > born.st_atime_ns
        with file.open("ab") as more:
            more.write(b", and more")
        assert file.read_bytes()
        again = file.stat()
        assert again.st_atime_ns > read.st_atime_ns


@pytest.mark.mount
def test_a_mapping_outlives_its_descriptor(tmp_path: Path) -> None:
    """The daemon knows of the handle for as long as the mapping is there: nothing of it is recompressed."""
    options = ("write_age=0", "read_age=1h", "compact=off")
    with Mount(tmp_path / "store", options=options) as mount:
        file = mount.path / "f"
        file.write_bytes(b"text " * 10_000)
        os.utime(file, ns=(0, 0))
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        assert mapped[:4] == b"text"
        os.utime(file, ns=(0, 0))
        assert "nothing is due" in nnfs("compact", str(file), "--wait").stdout
        mapped.close()
