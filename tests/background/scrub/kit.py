"""A volume that is scrubbed without a mount, for the tests of scrub."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from nnfs.background.interfaces import Parts
from nnfs.background.scrub import Scrub
from nnfs.background.tasks import Gate, Task
from nnfs.blockio.cold import READ, Cold
from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.space import Space
from nnfs.codec.base import CM
from nnfs.errors import BlockDamaged, NnfsError
from nnfs.fs import fsck, swapping
from nnfs.fs.apply import apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store import schema
from nnfs.store.blocks import Swap, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode
from nnfs.workers.pool import BACKGROUND
from tests.blockio.kit import make_reader
from tests.harness import WAIT_S

CHUNK = schema.MIN_CHUNK_SIZE


class Backwards:
    """In place of `Cold`: a cold payload is the chunk backwards. `trouble` is what decoding a block raises."""

    def __init__(self) -> None:
        self.trouble: dict[int, NnfsError] = {}
        self.decoded: list[int] = []
        self.most = self.now = 0

    def waits_for(self, _worker: str) -> bool:
        return False

    async def decode(self, number: int, block: Block, payload: bytes, *, priority: int, worker: str) -> bytes:
        assert (priority, worker) == (BACKGROUND, READ)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.now -= 1
        self.decoded.append(number)
        if number in self.trouble:
            raise self.trouble[number]
        if blake2b(payload[::-1]).digest() != block.hash:
            raise BlockDamaged(number, "its content does not have its BLAKE2b-512")
        return payload[::-1]


class Volume:
    """The daemon's parts that scrub uses, and files to look at."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.store = Store.open(path) if path.exists() else Store.create(path, CHUNK)
        self.data = DirtyData(CHUNK)
        self.fs = Filesystem(self.store, on_release=self.data.drop)
        self.names = Namespace(self.fs, Xattrs(self.fs))
        self.fetcher, self.reader = make_reader(self.store, self.fs, self.data)
        self.committer = Committer(
            self.store, self.fs, self.data, self.reader, Space(path, 4 << 20), lambda *args: apply(self.store, *args)
        )
        self.cold = Backwards()
        self.busy: Callable[[], bool] = lambda: False
        self.gate = Gate()
        parts = Parts(self.store, self.committer, self.reader, cast("Cold", self.cold), read_only)
        self.scrub = Scrub(parts, self.is_busy)

    def is_busy(self) -> bool:
        return self.busy()

    async def write(self, name: bytes, *contents: bytes, parent: int = schema.ROOT_INO) -> Inode:
        inode = self.names.create(parent, name, 0o100644, 0, 0, 0)
        for n, content in enumerate(contents):
            inode.size = n * CHUNK + len(content)
            self.committer.encoding.offer(self.data.write(inode.ino, n * CHUNK, content, inode.size))
        self.fs.touch(inode)
        await self.committer.sync()
        self.reader.cache.clear()
        return inode

    def block(self, inode: Inode, at: int = 0) -> tuple[int, Block]:
        [number] = self.fs.block_numbers(inode, at, at)
        with self.store.read() as snapshot:
            block = load_block(snapshot, number)
        assert block is not None
        return number, block

    async def turn_cold(self, inode: Inode, at: int, data: bytes, codec: int = CM, model: int = 0) -> int:
        number, block = self.block(inode, at)
        one = Swap(number, block.payload, (inode.ino, at), codec, model, data)
        assert await self.committer.amend(partial(swapping.swap, swaps=[one])) != [None]
        return number

    async def keep(self, fingerprint: bytes, data: bytes) -> int:
        return await self.committer.amend(
            partial(swapping.keep_model, fingerprint=fingerprint, data=data, base=None, now=7)
        )

    async def job(self, *, deep: bool = False) -> Task:
        job = Task(1, "scrub", partial(self.scrub.run, deep=deep), self.gate)
        await job.run()
        return job

    async def good(self, *, deep: bool = False) -> dict[str, Any]:
        """The result of a scrub that comes to its end."""
        job = await self.job(deep=deep)
        assert job.state == "done", job.error
        assert job.done_chunks == job.total_chunks
        return job.result

    def damage(self, table: str, key: bytes, at: int = 3, flip: int = 0x10) -> None:
        with self.store.write() as txn:
            record = bytearray(txn.get(table, key) or b"")
            record[at] ^= flip
            txn.put(table, key, bytes(record))
        self.renew()

    def renew(self) -> None:
        """Renew the loop's read txn, as a commit does."""
        self.fs.snapshot.close()
        self.fs.snapshot = self.store.read()

    def check(self) -> list[fsck.Problem]:
        return fsck.check(self.store, data=False, repair=False, progress=lambda *_: None).problems


@asynccontextmanager
async def running(path: Path, **how: Any) -> AsyncIterator[Volume]:
    volume = Volume(path, **how)
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        if not how.get("read_only"):
            nursery.start_soon(volume.committer.run, nursery)
        yield volume
        if not how.get("read_only"):
            await volume.committer.finish()
        nursery.cancel_scope.cancel()
    volume.fs.close()
    volume.store.close()


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Threads have a part in it."""
    with trio.fail_after(WAIT_S):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.001)


def noise(seed: int, length: int = CHUNK) -> bytes:
    return random.Random(seed).randbytes(length)


def text(seed: int) -> bytes:
    return b"".join(b"%d, %d, many\n" % (seed, n) for n in range(900))[:CHUNK]


def first_fragment(block: Block) -> bytes:
    return schema.FRAGMENT_KEY.pack(block.payload, 0)
