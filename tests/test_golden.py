"""A store made on day one, kept for ever: every later version reads it, byte for byte.

`python -m tests.test_golden FILE` made it: a daemon was killed after a sync, a deleted file being open: the store has
an orphan and was not cleanly unmounted. A new format version gets a file of its own beside it.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import stat
import sys
from hashlib import blake2b
from pathlib import Path

import pytest

from nnfs import codec
from nnfs.constants import DATA_FILE
from nnfs.fs import fsck
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Dentry, Inode, MapNode
from nnfs.store.txn import Snapshot
from tests.conftest import why_no_mount
from tests.harness import Mount, libc

GOLDEN = Path(__file__).parent / "golden" / "version-1.mdb.xz"
CHUNK = 16384
EARLY, LATE = -(10**18) + 1, 5 * 10**18 + 123_456_789  # ns: 1938 and 2128
ACL = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000400ffffffff 20000000ffffffff")


def text(length: int) -> bytes:
    return b"".join(b"%d green bottles hanging on the wall\n" % n for n in range(length // 30))[:length]


def noise(length: int) -> bytes:
    return b"".join(blake2b(b"golden %d" % n).digest() for n in range(length // 64 + 1))[:length]


FILES: dict[bytes, dict[int, bytes]] = {  # name to offset and content of each piece; holes between them
    b"empty": {},
    b"small": {0: b"a few bytes\n"},
    b"text": {0: text(100_000)},
    b"copy of text": {0: text(100_000)},
    b"noise": {0: noise(20_000)},
    b"two map nodes": {0: text(70 * CHUNK)},
    b"sparse": {5 * CHUNK + 17: b"island", (1 << 40) - 3: b"end"},
    b"caf\xe9 \xff": {0: b"name that is no UTF-8"},
    b"n" * 255: {0: b"longest name"},
}


def put(base: bytes) -> None:
    """Make the tree in an empty directory."""
    for name, pieces in FILES.items():
        with open(os.path.join(base, name), "wb") as file:
            for offset, content in pieces.items():
                file.seek(offset)
                file.write(content)
    at = {name: os.path.join(base, name) for name in (b"small", b"text", b"noise", b"empty", b"link", b"fifo", b"null")}
    os.mkdir(os.path.join(base, b"deep"))
    for number in range(300):
        with open(os.path.join(base, b"deep", b"entry %d" % number), "wb"):
            pass
    os.mkdir(os.path.join(base, b"deep", b"er"))
    os.link(at[b"text"], os.path.join(base, b"deep", b"er", b"hard"))
    os.symlink(b"deep/er/hard", at[b"link"])
    os.mkfifo(at[b"fifo"], 0o600)
    os.mknod(at[b"null"], stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(at[b"noise"], b"user.colour", b"\0blue\xff")
    os.setxattr(at[b"noise"], b"system.posix_acl_access", ACL)
    os.chown(at[b"small"], 1000, 100)
    os.chmod(at[b"small"], 0o6751)
    os.utime(at[b"small"], ns=(EARLY, LATE))
    os.utime(at[b"noise"], ns=(LATE, EARLY))


def check_tree(base: bytes) -> None:
    """Compare everything that `put` made, as programs see it."""
    for name, pieces in FILES.items():
        path = os.path.join(base, name)
        size = max((offset + len(content) for offset, content in pieces.items()), default=0)
        assert os.stat(path).st_size == size
        with open(path, "rb") as file:
            for offset, content in pieces.items():
                file.seek(offset)
                assert file.read(len(content)) == content, name
            file.seek(5 * CHUNK)
            assert name != b"sparse" or file.read(17) == bytes(17)
    small, noisy = os.stat(os.path.join(base, b"small")), os.path.join(base, b"noise")
    assert (small.st_uid, small.st_gid, small.st_mode) == (1000, 100, stat.S_IFREG | 0o6751)
    assert (small.st_mtime_ns, os.stat(noisy).st_mtime_ns) == (LATE, EARLY)
    assert os.getxattr(noisy, b"user.colour") == b"\0blue\xff"
    assert os.getxattr(noisy, b"system.posix_acl_access") == ACL
    assert sorted(os.listxattr(noisy)) == ["system.posix_acl_access", "user.colour"]
    assert set(os.listdir(os.path.join(base, b"deep"))) == {b"er", *(b"entry %d" % number for number in range(300))}
    hard, linked = os.stat(os.path.join(base, b"text")), os.stat(os.path.join(base, b"link"))
    assert hard.st_ino == linked.st_ino
    assert hard.st_nlink == 2
    assert os.readlink(os.path.join(base, b"link")) == b"deep/er/hard"
    assert stat.S_ISFIFO(os.stat(os.path.join(base, b"fifo")).st_mode)
    null = os.stat(os.path.join(base, b"null"))
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert len(os.listdir(base)) == len(FILES) + 4


def make(file: Path) -> None:
    """Write the golden file, with the nnfs of this checkout."""
    with Mount(chunk_size=CHUNK) as mount:
        base = os.fsencode(mount.path)
        put(base)
        with open(os.path.join(base, b"deleted"), "wb") as deleted:
            deleted.write(b"nobody sees this any more")
            deleted.flush()
            os.unlink(os.path.join(base, b"deleted"))
            root = os.open(base, os.O_RDONLY)
            assert libc.syncfs(root) == 0
            os.fsync(root)
            os.close(root)
            mount.kill()
            with contextlib.suppress(OSError):
                deleted.close()
        file.write_bytes(lzma.compress((mount.store / DATA_FILE).read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        mount.mount()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    (path / DATA_FILE).write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    return path


def find(snapshot: Snapshot, name: bytes) -> Inode:
    for key, record in snapshot.prefix("dentry", schema.inode_key(schema.ROOT_INO)):
        dentry = Dentry.unpack(key, record)
        if dentry.name == name:
            found = snapshot.get("inode", schema.inode_key(dentry.ino))
            assert found is not None
            return Inode.unpack(dentry.ino, found)
    raise AssertionError(f"{name!r} is not in the root")


def content(snapshot: Snapshot, inode: Inode) -> dict[int, bytes]:
    chunks = {}
    for key, record in snapshot.prefix("map", schema.inode_key(inode.ino)):
        for slot, number in MapNode.unpack(key, record).blocks.items():
            block = load_block(snapshot, number)
            assert block is not None
            plain = codec.decode(block.codec, snapshot.payload(block.payload, block.stored), block.plain)
            assert blake2b(plain).digest() == block.hash
            chunks[schema.KEY2.unpack(key)[1] * 64 + slot] = plain
    return chunks


def test_every_record_and_chunk_is_read(store: Path) -> None:
    report = fsck.run(store, data=True, repair=False, progress=lambda *_: None)
    assert report.problems == []
    assert report.counts["orphan"] == 1
    assert report.counts["dentry"] == len(FILES) + 4 + 302


def test_its_content_is_what_was_written(store: Path) -> None:
    opened = Store.open(store)
    assert (opened.superblock.version, opened.superblock.chunk_size) == (1, CHUNK)
    snapshot = opened.read()
    for name, pieces in FILES.items():
        inode = find(snapshot, name)
        chunks = content(snapshot, inode)
        for offset, expected in pieces.items():
            got, at = b"", offset
            while at < offset + len(expected):
                chunk = chunks[at // CHUNK].ljust(CHUNK, b"\0")
                got += chunk[at % CHUNK :]
                at += CHUNK - at % CHUNK
            assert got[: len(expected)] == expected, name
    assert (find(snapshot, b"small").mtime, find(snapshot, b"link").target) == (LATE, b"deep/er/hard")
    snapshot.close()
    opened.close()


@pytest.mark.mount
@pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
def test_it_mounts_and_can_be_written(store: Path) -> None:
    with Mount(store=store) as mount:
        mount.deadline()
        check_tree(os.fsencode(mount.path))
        shutil.copy(mount.path / "text", mount.path / "new")
        mount.remount()
        assert (mount.path / "new").read_bytes() == text(100_000)
        os.unlink(mount.path / "new")
        check_tree(os.fsencode(mount.path))
        mount.deadline(0)
    report = fsck.run(store, data=True, repair=False, progress=lambda *_: None)
    assert report.problems == []
    assert report.counts["orphan"] == 0


if __name__ == "__main__":
    make(Path(sys.argv[1]))
