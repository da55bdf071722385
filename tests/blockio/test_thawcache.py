"""Copies of what was decoded from cold blocks: used, bounded, checked, never needed."""

from __future__ import annotations

import os
import random
from collections import namedtuple
from hashlib import blake2b
from pathlib import Path

import pytest

from nnfs.blockio.thawcache import Thawed
from nnfs.store.schema import Block

SIZE = 8192


def plain(number: int) -> bytes:
    """Content that does not get smaller."""
    return random.Random(number).randbytes(SIZE)


def block(number: int) -> Block:
    return Block(16, 0, SIZE, SIZE, 0, 0, number, 1, blake2b(plain(number)).digest())


PER_COPY = 3 * 4096  # a little more than `SIZE`, in whole pages


def filled(folder: Path, limit: int, *numbers: int) -> Thawed:
    copies = Thawed(folder, limit)
    for number in numbers:
        assert copies.put(number, plain(number))
    return copies


def kept(copies: Thawed) -> list[int]:
    return sorted(int(name, 16) for name in os.listdir(copies.folder))


def test_a_copy_is_used(tmp_path: Path) -> None:
    copies = filled(tmp_path / "thawed", 1 << 20, 1)
    assert copies.get(1, block(1)) == plain(1)
    assert copies.get(2, block(2)) is None
    assert (copies.hits, copies.misses, copies.bytes) == (1, 1, PER_COPY)
    assert not copies.put(1, plain(1))  # once is enough
    assert oct((tmp_path / "thawed").stat().st_mode)[-3:] == "700"


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    copies = filled(tmp_path, 3 * PER_COPY, 1, 2, 3)
    assert copies.get(1, block(1))
    assert copies.put(4, plain(4))
    assert kept(copies) == [1, 3, 4]
    assert copies.bytes == 3 * PER_COPY


def test_copies_outlive_a_mount(tmp_path: Path) -> None:
    first = filled(tmp_path, 1 << 20, 1, 2, 3)
    for age, number in enumerate((3, 1, 2)):
        os.utime(tmp_path / f"{number:016x}", (1000 - age, 1000 - age))
    first.get(2, block(2))  # the oldest by its first use, not by its last
    (tmp_path / f"{9:016x}.new").write_bytes(b"not finished")
    second = Thawed(tmp_path, 2 * PER_COPY)
    assert second.get(3, block(3)) == plain(3)  # also while nobody has looked yet
    second.scan()
    assert kept(second) == [2, 3]
    assert second.bytes == 2 * PER_COPY


def test_a_scan_passes_by_what_is_no_copy_and_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be a link to one that holds other things."""
    filled(tmp_path, 1 << 20, 1, 2)
    for name in ("0 a directory", "zz another", f"{7:016x}.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "thesis.new").write_text("somebody's")
    copies, rename = Thawed(tmp_path, 1 << 20), os.rename

    def slow(old: str, new: str) -> None:
        copies.scan()
        rename(old, new)

    monkeypatch.setattr("nnfs.blockio.thawcache.os.rename", slow)
    assert copies.put(3, plain(3))
    assert copies.bytes == 3 * PER_COPY
    assert [copies.get(number, block(number)) for number in (1, 2, 3)] == [plain(1), plain(2), plain(3)]
    assert (tmp_path / "thesis.new").read_text() == "somebody's"


@pytest.mark.parametrize("bad", [b"", b"no zstd", None])
def test_a_damaged_copy_is_removed(tmp_path: Path, bad: bytes | None) -> None:
    copies = filled(tmp_path, 1 << 20, 1, 2)
    path = tmp_path / f"{1:016x}"
    path.write_bytes((tmp_path / f"{2:016x}").read_bytes() if bad is None else bad)  # None: another block's
    assert copies.get(1, block(1)) is None
    assert (copies.damaged, copies.bytes, kept(copies)) == (1, PER_COPY, [2])
    assert copies.put(1, plain(1))
    assert copies.get(1, block(1)) == plain(1)


def test_somebody_removes_the_copies(tmp_path: Path) -> None:
    copies = filled(tmp_path / "thawed", 1 << 20, 1)
    os.unlink(tmp_path / "thawed" / f"{1:016x}")
    os.rmdir(tmp_path / "thawed")
    assert copies.get(1, block(1)) is None
    assert copies.bytes == 0
    assert copies.put(1, plain(1))
    copies.clear()
    assert (copies.bytes, kept(copies)) == (0, [])


def test_no_limit_no_copies(tmp_path: Path) -> None:
    filled(tmp_path, 1 << 20, 1)
    copies = Thawed(tmp_path, 0)
    assert not copies.put(2, plain(2))
    assert copies.get(1, block(1)) is None
    copies.scan()
    assert kept(copies) == []


def test_a_copy_larger_than_the_limit(tmp_path: Path) -> None:
    copies = Thawed(tmp_path, PER_COPY - 1)
    assert not copies.put(1, plain(1))
    assert kept(copies) == []


@pytest.mark.parametrize(("free_mib", "room"), [(99, False), (101, True)])
def test_a_filesystem_below_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, room: bool
) -> None:
    """Copies leave a tenth of 1,000 MiB free."""
    lower = namedtuple("lower", "f_bavail f_frsize f_blocks")  # noqa: PYI024 - as os.statvfs has it
    monkeypatch.setattr("nnfs.blockio.thawcache.os.statvfs", lambda _: lower(free_mib, 1 << 20, 1000))
    assert Thawed(tmp_path, 1 << 30).put(1, plain(1)) is room


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "thawed").write_bytes(b"a file")
    copies = Thawed(tmp_path / "thawed", 1 << 20)
    copies.scan()
    assert not copies.put(1, plain(1))
    assert copies.get(1, block(1)) is None
    assert len([record for record in caplog.records if "decoded each time" in record.message]) == 1
