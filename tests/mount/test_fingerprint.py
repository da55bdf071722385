"""The fingerprint of a file by its extended attribute: that of its content, whatever became of the file."""

from __future__ import annotations

import json
import os
import random
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nnfs.errors import TimedOut
from nnfs.mount import fingerprint as under_test
from nnfs.proof import MAX_CHUNKS
from tests.caches import sync_fs
from tests.harness import Mount, nnfs

CHUNK = 16384
NAME = "user.nnfs.fingerprint"


def expected(content: bytes) -> str:
    """The definition, from the bytes alone."""
    parts = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
    head = CHUNK.to_bytes(4, "big") + len(content).to_bytes(8, "big")
    hashes = b"".join(blake2b(part).digest() for part in parts)
    return blake2b(head + hashes, person=b"nnfs file 1").hexdigest()


def told(file: Path) -> str:
    return os.getxattr(file, NAME).decode()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77])
def test_sizes(mnt: Path, size: int) -> None:
    content = os.urandom(size)
    (mnt / "f").write_bytes(content)
    assert told(mnt / "f") == expected(content)
    sync_fs(mnt)
    assert told(mnt / "f") == expected(content)


def test_holes_and_zeros_are_the_same(mnt: Path) -> None:
    with (mnt / "hole").open("wb") as file:
        file.truncate(3 * CHUNK + 5)
    (mnt / "zeros").write_bytes(bytes(3 * CHUNK + 5))
    assert told(mnt / "hole") == told(mnt / "zeros") == expected(bytes(3 * CHUNK + 5))


def test_a_hole_of_any_size_does_not_keep_the_daemon_busy(mnt: Path) -> None:
    with (mnt / "f").open("wb") as file:
        file.truncate(MAX_CHUNKS * CHUNK + 1)
    with pytest.raises(OSError, match="No data"):
        told(mnt / "f")


def test_content_counts_and_not_the_way_to_it(mnt: Path) -> None:
    """A chunk that was stored shorter, or longer, than it is now has another hash in its header."""
    file, content = mnt / "f", bytearray(os.urandom(2 * CHUNK + 100))
    file.write_bytes(content)
    sync_fs(mnt)
    for size in (5 * CHUNK, 3 * CHUNK + 9, CHUNK + 50, 50, 2 * CHUNK):
        os.truncate(file, size)
        content = content[:size] + bytes(max(0, size - len(content)))
        assert told(file) == expected(bytes(content)), size
        sync_fs(mnt)
        assert told(file) == expected(bytes(content)), size
    with file.open("r+b") as opened:
        opened.seek(CHUNK - 3)
        opened.write(b"across")
    content[CHUNK - 3 : CHUNK + 3] = b"across"
    assert told(file) == expected(bytes(content)) == expected(file.read_bytes())


def test_it_is_readable_by_name_and_never_listed(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"x")
    assert os.listxattr(mnt / "f") == []
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mnt, NAME)
    with pytest.raises(OSError, match=r"Operation not permitted|Permission denied|not supported"):
        os.setxattr(mnt / "f", NAME, b"y")


def test_info_is_what_stat_shows(mnt: Path) -> None:
    (mnt / "f").write_bytes(os.urandom(CHUNK + 1))
    info = json.loads(os.getxattr(mnt / "f", "user.nnfs.info"))
    shown = json.loads(nnfs("stat", str(mnt / "f"), "--json").stdout)
    assert info.items() <= shown.items()
    assert (info["chunks"], info["size"]) == (2, CHUNK + 1)


@pytest.mark.mount
def test_another_codec_changes_nothing(fresh_mount: Mount) -> None:
    chance = random.Random(1)
    content = b" ".join(chance.choice((b"all", b"work", b"and", b"no", b"play")) for _ in range(80_000))
    file = fresh_mount.path / "f"
    file.write_bytes(content)
    before = told(file)
    nnfs("compact", str(fresh_mount.path), "--all", "--quick", "--wait")
    assert os.getxattr(file, "user.nnfs.codecs").startswith(b"ppm:")
    assert told(file) == before == expected(content)


async def test_a_file_that_changes_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = iter(range(1000))
    files = SimpleNamespace(inode=lambda _: SimpleNamespace(size=0, proof=next(proofs)))
    store = SimpleNamespace(superblock=SimpleNamespace(chunk_size=CHUNK))
    with pytest.raises(TimedOut, match="inode 7 changed with every try"):
        await under_test.fingerprint(cast(Any, store), cast(Any, files), cast(Any, None), 7)
    assert next(proofs) == 2 * under_test.TRIES


async def test_a_file_that_changes_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is gone, and content that became another one meanwhile."""
    answers: list[bytes | None] = [None, b"old", b"new"]
    proofs = iter([1, 1, 1, 2, 2, 2])

    async def once(*_: Any) -> bytes | None:
        return answers.pop(0)

    monkeypatch.setattr(under_test, "_once", once)
    files = SimpleNamespace(inode=lambda _: SimpleNamespace(size=0, proof=next(proofs)))
    assert await under_test.fingerprint(cast(Any, None), cast(Any, files), cast(Any, None), 7) == b"new"
