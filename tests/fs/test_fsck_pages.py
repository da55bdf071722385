"""fsck of files that LMDB could not have written: damaged pages, meta pages, cut files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnfs.constants import DATA_FILE
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import Inode
from tests.fs.kit import FIFO, edit_inode, kinds, make_store, noise, run
from tests.harness import FULL


def page_flags(page: bytes) -> int:
    return int.from_bytes(page[10:12], "little")


@pytest.mark.parametrize("which", [0x01, 0x02])
def test_damaged_pages_are_found_and_nothing_is_repaired(tmp_path: Path, which: int) -> None:
    """A branch or leaf page whose header says that it is something else."""
    store = make_store(tmp_path / "s")
    with store.write() as txn:
        for number in range(2000):  # enough for branch pages
            key = schema.inode_key(15) + b"user.%d" % number
            txn.put("xattr", key, schema.pack_xattr(key, b"v" * 40, 1))
    store.close()
    file = tmp_path / "s" / DATA_FILE
    content = bytearray(file.read_bytes())
    assert kinds(run(tmp_path / "s")) == {"xattr"}  # there is no inode 15
    broken = 0
    for start in range(2 * 4096, len(content), 4096):
        if page_flags(bytes(content[start : start + 4096])) == which:
            content[start + 10] ^= 0x10
            broken += 1
    assert broken
    file.write_bytes(content)
    report = run(tmp_path / "s", repair=True)
    assert report.exit_code == 4
    assert "page" in kinds(report)
    assert not any(problem.fixed for problem in report.problems)
    assert any("were not repaired" in note for note in report.notes)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 8192, noise(1)])
def test_files_that_are_no_store_at_all(tmp_path: Path, content: bytes) -> None:
    make_store(tmp_path / "s").close()
    (tmp_path / "s" / DATA_FILE).write_bytes(content)
    report = run(tmp_path / "s")
    assert report.exit_code == 4


def test_a_truncated_file(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    file = tmp_path / "s" / DATA_FILE
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)
    assert run(tmp_path / "s").exit_code == 4


def committed_uid(path: Path) -> int:
    """Return the records that the last commits of `meta_pages` wrote."""
    store = Store.open(path)
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FIFO))
    snapshot.close()
    store.close()
    assert record is not None
    return Inode.unpack(FIFO, record).uid


META_FIELDS = {  # offset and length; what a flip of it is to fsck
    "page number": (0, 8, "repaired"), "unused header": (8, 2, "no matter"), "page type": (10, 1, "either"),
    "unused bounds": (12, 4, "no matter"), "magic": (16, 4, "repaired"), "version": (20, 4, "repaired"),
    "address": (24, 8, "no matter"), "map size": (32, 8, "no matter"), "page size": (40, 4, "repaired"),
    "freeDB flags": (44, 2, "repaired"), "freeDB counts": (46, 34, "pages"), "freeDB root": (80, 8, "root"),
    "main pad": (88, 4, "pad"), "main flags": (92, 2, "repaired"), "main counts": (94, 34, "pages"),
    "main root": (128, 8, "root"), "last page": (136, 8, "pages"), "txnid": (144, 8, "repaired"),
    "behind it": (152, 16, "no matter"),
}  # fmt: skip


@pytest.mark.parametrize("is_newer", [True, False])
@pytest.mark.parametrize("field", META_FIELDS)
def test_meta_pages(tmp_path: Path, field: str, is_newer: bool) -> None:
    """One byte of LMDB's meta pages: found and repaired, or found, or of no matter; never a commit lost in silence."""
    store = make_store(tmp_path / "s")
    for uid in (1, 2):
        with store.write() as txn:
            edit_inode(txn, FIFO, uid=uid)
    store.close()
    file = tmp_path / "s" / DATA_FILE
    sound = file.read_bytes()
    txnids = [int.from_bytes(sound[n * 4096 + 144 :][:8], "little") for n in (0, 1)]
    page = txnids.index(max(txnids) if is_newer else min(txnids))
    start, length, expected = META_FIELDS[field]
    for flip in (0x01, 0x02, 0x40, 0xFF) if FULL else (0x01, 0xFF):
        for byte in range(start, start + length):
            content = bytearray(sound)
            content[page * 4096 + byte] ^= flip
            file.write_bytes(content)
            look_at_a_meta_page(tmp_path / "s", expected, is_newer, f"byte {byte} ^ {flip:#x}")


def look_at_a_meta_page(path: Path, expected: str, is_newer: bool, story: str) -> None:
    before = (path / DATA_FILE).read_bytes()
    found, after = run(path), (path / DATA_FILE).read_bytes()
    repaired = run(path, repair=True)
    assert after == before, f"{story}: changed without being asked to"
    if "meta" in kinds(found):
        assert expected in ("repaired", "either", "root"), story
        assert any("--repair" in note for note in found.notes)
        assert [problem.fixed for problem in repaired.problems] == [True], story
        assert (found.exit_code, repaired.exit_code) == (4, 1), story
        told = repaired.problems[0].message
        assert committed_uid(path) == (2 if "nothing is lost" in told else 1), story
        assert "nothing is lost" in told or expected == "root", story
        assert run(path, data=True).problems == [], story
    elif found.problems:
        assert is_newer, f"{story}: the older page is of no matter"
        assert expected in ("pages", "pad", "root"), story
        assert repaired.exit_code == 4
        assert (path / DATA_FILE).read_bytes() == before, f"{story}: nothing to repair it from"
    else:
        assert expected in ("no matter", "either", "pad") or not is_newer, story
        assert committed_uid(path) == 2, story


def test_damage_beside_a_meta_page_is_found_after_its_repair(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    file = tmp_path / "s" / DATA_FILE
    content = bytearray(file.read_bytes())
    content[16] ^= 1
    for start in range(8192, len(content), 4096):
        if page_flags(bytes(content[start : start + 16])) == 0x02:
            content[start] ^= 0x10  # number of the leaf page
    file.write_bytes(content)
    report = run(tmp_path / "s", repair=True)
    assert kinds(report) >= {"meta", "page"}
    assert report.exit_code == 4
    assert [problem.kind for problem in report.problems if problem.fixed] == ["meta"]
    assert any("restore a backup" in note for note in report.notes)
