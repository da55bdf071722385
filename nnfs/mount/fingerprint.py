"""The fingerprint of a file: 512 bits of its content, made of the hashes of its chunks, so that nearly nothing is read.

It is the BLAKE2b-512, with the personal string "nnfs file 1", of: the chunk size (4 bytes), the file's size (8 bytes,
both big-endian), and for each chunk in order the BLAKE2b-512 of its content, the last one cut at the file's end. Equal
content has equal fingerprints in all stores with the same chunk size, whatever codec has it, holes or not.
"""

from __future__ import annotations

from typing import Protocol

import trio

from nnfs.blockio.dirty import Buffer
from nnfs.errors import TimedOut
from nnfs.proof import content_hash, file_hash
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Inode

SLICE = 4096  # chunks whose headers are looked up at a time
TRIES = 16  # while the file is being changed


class Files(Protocol):
    """Inodes, and where their chunks are stored."""

    def inode(self, ino: int) -> Inode: ...
    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]: ...


class Content(Protocol):
    """The committed content of files."""

    async def stored(self, inode: Inode, first: int, last: int) -> list[Buffer]: ...


async def fingerprint(store: Store, files: Files, content: Content, ino: int) -> bytes:
    """Return the fingerprint of a file's committed content.

    Raises `TimedOut` if the file changes all the time, and what damage or a read raises.
    """
    for _ in range(TRIES):
        inode = files.inode(ino)
        before = inode.size, inode.proof
        found = await _once(store, files, content, inode)
        inode = files.inode(ino)
        if found is not None and (inode.size, inode.proof) == before:
            return found
    raise TimedOut(f"inode {ino} changed with every try to take its fingerprint")


async def _once(store: Store, files: Files, content: Content, inode: Inode) -> bytes | None:
    """Return the fingerprint, None if a block is gone, since the file has changed."""
    chunk_size, size = store.superblock.chunk_size, inode.size
    whole = file_hash(chunk_size, size)
    count = -(-size // chunk_size)
    zeros = b""
    for first in range(0, count, SLICE):
        last = min(first + SLICE, count) - 1
        numbers = files.block_numbers(inode, first, last)
        if (last + 1) * chunk_size <= size and not any(numbers):  # a hole: there may be terabytes of it
            zeros = zeros or content_hash(bytes(chunk_size))
            await trio.to_thread.run_sync(whole.update, zeros * len(numbers))
            continue
        lengths = [min(chunk_size, size - chunk * chunk_size) for chunk in range(first, last + 1)]
        hashes = await trio.to_thread.run_sync(_hashes, store, numbers, lengths)
        if hashes is None:
            return None
        for place, length in enumerate(lengths):
            if hashes[place] is None:  # stored before the file grew or shrank: these bytes alone do not tell
                plain = bytes((await content.stored(inode, first + place, first + place))[0])[:length]
                hashes[place] = content_hash(plain + bytes(length - len(plain)))
        await trio.to_thread.run_sync(whole.update, b"".join(one for one in hashes if one))
    return whole.digest()


def _hashes(store: Store, numbers: list[int], lengths: list[int]) -> list[bytes | None] | None:
    """Return the hashes of chunks, None for one whose block has another length. None if a block is gone."""
    zeros: dict[int, bytes] = {}
    found: list[bytes | None] = []
    with store.read() as snapshot:
        for number, length in zip(numbers, lengths, strict=True):
            if not number:
                if length not in zeros:
                    zeros[length] = content_hash(bytes(length))
                found.append(zeros[length])
                continue
            block = load_block(snapshot, number)
            if block is None:
                return None
            found.append(block.hash if block.plain == length else None)
    return found
