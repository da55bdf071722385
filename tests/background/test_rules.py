"""Rules that recompression on a mount has to respect: readers, changed policies, findings of the reference."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from nnfs.blockio.cold import REFERENCE
from nnfs.errors import EnginesDisagree
from nnfs.fs import accesstimes, usage
from nnfs.fs.accesstimes import AccessTimes
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter, Swap
from nnfs.store.env import Store
from nnfs.store.schema import Inode
from tests.background.coding import NO_GAIN, Quick, text
from tests.background.coding import fingerprint as fingerprint_of
from tests.background.kit import COLD, Chaos
from tests.background.mountkit import Start, codecs, cold_read, done, end_of, mounts, sync, turn, write

HOUR = 3600


@pytest.mark.parametrize(("read_age", "hours"), [(24 * HOUR, 12), (7 * 24 * HOUR, 24), (2 * HOUR, 1), (0, 24)], ids=str)
def test_an_atime_is_never_so_old_that_a_file_looks_unread(
    read_age: int, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """relatime: at most half the age at which a file is taken for unread."""
    fs: Any = SimpleNamespace(touch=lambda _: None)
    under_test = AccessTimes(fs, "relatime", read_age)
    now = [0]
    monkeypatch.setattr(accesstimes, "time", SimpleNamespace(time_ns=lambda: now[0] * 10**9))
    inode = Inode(20, 0o100644, 0, 0, 0)
    now[0] = 60
    under_test.accessed(inode, may_store=True)
    assert inode.atime == 60 * 10**9
    now[0] += hours * HOUR
    under_test.accessed(inode, may_store=True)
    assert inode.atime == 60 * 10**9
    now[0] += 1
    under_test.accessed(inode, may_store=True)
    assert inode.atime == now[0] * 10**9


def test_what_is_known_of_use_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "KEPT", 3)
    fs: Any = None
    under_test = AccessTimes(fs, "noatime")
    for ino in (101, 102, 103, 101, 104):  # 2 to 15 are reserved
        under_test.accessed(Inode(ino, 0o100644, 0, 0, 0), may_store=True)
    assert [bool(under_test.last_read(ino)) for ino in range(101, 106)] == [True, False, True, True, False]


@mounts
def test_what_is_read_stays_hot_without_atimes(start: Start) -> None:
    mount = start(options=("write_age=0", "read_age=1h", "policy=cold", "noatime"))
    mount.ask("pause")
    for name in ("read", "unread"):
        write(mount.path / name, text(len(name)))
    sync(mount)
    assert cold_read(mount.path / "read") == text(4)
    mount.ask("resume")
    turn(mount, mount.path / "unread", "neural")
    mount.turn_round()
    assert codecs(mount, mount.path / "read") == {"zstd": 1}


@mounts
@pytest.mark.parametrize("where", [".", "d"])
def test_compact_sees_a_policy_that_has_changed(start: Start, where: str) -> None:
    mount = start(mode="none", options=("write_age=0", "read_age=0", "policy=hot"))
    (mount.path / "d").mkdir()
    write(mount.path / "d" / "f", text(1))
    done(mount, "compact", mount.path)
    assert done(mount, "compact", mount.path)["total_chunks"] == 0
    os.setxattr(mount.path / "d", "user.nnfs.policy", b"cold")
    assert done(mount, "compact", mount.path / where, dry_run=True)["result"]["chunks"] == 1
    assert done(mount, "compact", mount.path / where)["total_chunks"] == 1
    assert codecs(mount, mount.path) == {"neural": 1}
    write(mount.path / "d" / "g", os.urandom(20_000))
    done(mount, "compact", mount.path)
    assert done(mount, "compact", mount.path)["total_chunks"] == 0  # once is enough


@mounts
def test_what_is_written_again_is_kept_though_its_block_decodes_to_something_else(start: Start) -> None:
    """Its stored bytes have their checksum, so only a reader can tell."""
    mount = start(mode="none", options=COLD)
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    mount.unmount()
    store = Store.open(mount.store)
    with store.write() as txn:
        blocks = BlockWriter(txn, store.state, 0, 0)
        [number] = [schema.KEY.unpack(key)[0] for key, _ in txn.range("block", b"")]
        block = blocks.get(number)
        wrong = Quick(block.codec, fingerprint_of("default")).encode(text(2))
        blocks.swap(Swap(number, block.payload, (0, 0), block.codec, block.model, wrong))
        blocks.flush()
        txn.put_state(store.state)
    store.close()
    mount.mount()
    mount.deadline()
    mount.expect_log(r"block \d+")
    with pytest.raises(OSError, match="Input/output error"):
        cold_read(mount.path / "f")
    assert mount.ask("status")["damaged_blocks"] == 1
    write(mount.path / "again", text(1))
    sync(mount)
    assert mount.ask("status")["damaged_blocks"] == 0
    mount.remount()
    mount.deadline()
    for name in ("f", "again"):
        assert cold_read(mount.path / name) == text(1)


def remount(mount: Chaos, *options: str) -> None:
    """Mount it with other options, and do what is due."""
    mount.unmount()
    mount.options = list(options)
    mount.mount()
    mount.deadline()
    done(mount, "compact", mount.path)


@mounts
def test_other_options_reach_files_that_are_settled(start: Start) -> None:
    mount = start(mode="none", options=("write_age=0", "read_age=0", "neural=off", "policy=cold"))
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path) == {"cm": 1}
    assert done(mount, "compact", mount.path)["total_chunks"] == 0
    remount(mount, *COLD)
    assert codecs(mount, mount.path) == {"neural": 1}
    assert done(mount, "compact", mount.path)["total_chunks"] == 0
    remount(mount, "write_age=0", "read_age=0", "policy=hot")
    assert codecs(mount, mount.path) == {"zstd": 1}


@mounts
def test_auto_takes_the_network_where_it_has_become_quick_enough(start: Start) -> None:
    """Payloads of the classical codec are encoded anew once; with --all also chunks that were tried before."""
    ages = ("write_age=0", "read_age=0")
    mount = start(mode="none", options=(*ages, "thaw_limit=0.000001"))
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path) == {"zstd": 1}  # everything is too slow
    remount(mount, *ages, "neural=off", "policy=cold")
    assert codecs(mount, mount.path) == {"cm": 1}
    remount(mount, *ages, "thaw_limit=1h")
    assert codecs(mount, mount.path) == {"neural": 1}


@mounts
def test_all_tries_again_what_was_tried(start: Start) -> None:
    mount = start(mode="none", options=(*COLD, "neural=off"))
    write(mount.path / "f", NO_GAIN + text(1))
    for how in ({}, {"all": True}, {"all": True}):
        done(mount, "compact", mount.path, **how)
    remount(mount, *COLD)
    tried = done(mount, "compact", mount.path)["total_chunks"]
    assert (tried, done(mount, "compact", mount.path, all=True)["total_chunks"]) == (0, 1)


@mounts
def test_what_the_reference_refutes_is_not_stored(start: Start) -> None:
    mount = start(mode="none", wrong=REFERENCE)
    mount.expect_log("two engines disagree")
    for n in range(60):
        write(mount.path / f"f{n}", text(n))
    for n in range(2):
        write(mount.path / f"g{n}", text(n + 100))
        job = end_of(mount, mount.ask("compact", ino=1, all=True)["job"])
        assert (job["state"], job["exit"], job["cold_chunks"]) == ("failed", EnginesDisagree.exit_code, 0)
    assert codecs(mount, mount.path) == {"zstd": 62}
    assert "two engines disagree" in mount.ask("status")["compaction"]["last_error"]
    assert mount.log().count("CRITICAL") == 1
    mount.set(wrong="")
    mount.remount()
    mount.deadline()
    done(mount, "compact", mount.path)  # nothing was marked as done
    assert codecs(mount, mount.path) == {"neural": 62}


@mounts
def test_passes_end_when_the_engines_disagree(start: Start) -> None:
    mount = start(wrong=REFERENCE)
    mount.expect_log("two engines disagree")
    write(mount.path / "f", text(1))
    sync(mount)
    mount.turn_round(4)
    assert codecs(mount, mount.path) == {"zstd": 1}
    assert mount.ask("passes")["settled"] == 0
    assert "two engines disagree" in mount.ask("status")["compaction"]["last_error"]
