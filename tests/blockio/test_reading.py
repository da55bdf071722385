"""Cold blocks read through the reader: what is urgent, what is taken back, what is kept, what is damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import blake2b
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
from xxhash import xxh3_64_intdigest

from nnfs.blockio.cold import COMPACT, READ, REFERENCE, Cold
from nnfs.blockio.repairsearch import Repairs
from nnfs.blockio.thawcache import Thawed
from nnfs.errors import BlockDamaged, CodecError, ModelMissing, TimedOut, WorkerError
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.schema import Block, Inode
from nnfs.workers.pool import Pool, WorkerSpec, WorkItem
from nnfs.workers.wire import Op
from tests.blockio.test_cold import until
from tests.blockio.test_commit import CHUNK, Volume
from tests.harness import WAIT_S
from tests.workers.conftest import Gate
from tests.workers.kit import FAKE, SERVE, payload

MIXED = os.urandom(CHUNK) + b"".join(bytes([number]) * CHUNK for number in range(1, 8))  # its first chunk stays hot


class ColdVolume(Volume):
    """A volume whose files turn cold, but for chunks that hold random bytes; with a pool of fake workers."""

    def use(
        self, *, read: str = "cpu", reference: str = "cpu", thawed: Thawed | None = None, hang_s: float = 600.0
    ) -> None:
        devices = {READ: read, REFERENCE: reference}
        workers = [WorkerSpec(name, device, serve=SERVE, hang_s=hang_s) for name, device in devices.items()]
        self.pool = Pool(workers, backoff_s=0.0)
        self.cold = self.fetcher.cold = Cold(self.pool, self.fingerprint, timeout=WAIT_S)
        self.fetcher.thawed = thawed

    @staticmethod
    def fingerprint(number: int) -> bytes:
        raise ModelMissing(f"model {number} is not in the store")

    async def add(self, name: bytes, content: bytes) -> Inode:
        """Store a file, and recompress it behind everybody's back."""
        inode = self.create(name)
        self.write(inode, 0, content)
        await self.committer.sync()
        pieces = {content[at : at + CHUNK] for at in range(0, len(content), CHUNK)}
        with self.store.write() as txn:
            for key, record in list(txn.range("block", b"")):
                block = Block.unpack(key, record)
                plain = next((p for p in pieces if len(p) == block.plain and block.hash == blake2b(p).digest()), None)
                if plain is not None and not (len(plain) == CHUNK and plain == content[:CHUNK] == MIXED[:CHUNK]):
                    self.recompress(txn, key, block, payload(plain))
        self.reader.cache.clear()
        return self.fs.inode(inode.ino)

    @staticmethod
    def recompress(txn, key: bytes, block: Block, stored: bytes, model: int = 0) -> None:  # type: ignore[no-untyped-def]
        txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        for index, at in enumerate(range(0, len(stored), schema.FRAGMENT_MAX)):
            fragment = stored[at : at + schema.FRAGMENT_MAX]
            txn.put("payload", schema.FRAGMENT_KEY.pack(block.payload, index), fragment)
        block.codec, block.stored, block.xxh3, block.model = FAKE, len(stored), xxh3_64_intdigest(stored), model
        txn.put("block", key, block.pack(key))

    def number(self, inode: Inode, chunk: int = 0) -> int:
        return self.fs.block_numbers(inode, chunk, chunk)[0]

    def flip(self, number: int) -> None:
        """One bit of a block's stored bytes."""
        with self.store.write() as txn:
            block = load_block(txn, number)
            assert block is not None
            key = schema.FRAGMENT_KEY.pack(block.payload, 0)
            fragment = bytearray(txn.get("payload", key) or b"")
            fragment[len(fragment) // 2] ^= 16
            txn.put("payload", key, bytes(fragment))
        self.reader.cache.clear()


Start = Callable[..., AbstractAsyncContextManager[ColdVolume]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    @asynccontextmanager
    async def one(patience: float = WAIT_S, **more: object) -> AsyncIterator[ColdVolume]:
        volume = ColdVolume(tmp_path / "store", patience)
        volume.use(**more)  # type: ignore[arg-type]
        try:
            async with trio.open_nursery() as nursery:
                volume.reader.start(nursery)
                nursery.start_soon(volume.committer.run, nursery)
                with trio.fail_after(WAIT_S):
                    yield volume
                nursery.cancel_scope.cancel()
        finally:
            volume.pool.close()
            volume.fs.close()
            volume.store.close()

    return one


async def test_a_cold_file(start: Start) -> None:
    async with start() as volume:
        assert await volume.content(await volume.add(b"file", MIXED)) == MIXED


async def test_a_read_that_takes_over_what_was_read_ahead(start: Start, gate: Gate) -> None:
    async with start() as volume, trio.open_nursery() as nursery:
        held, file = await volume.add(b"held", gate.chunk), await volume.add(b"file", MIXED)
        pending = volume.fetcher._pending
        nursery.start_soon(volume.content, held)
        await until(lambda: all(p.progress.has_begun() for p in pending.values()) and pending)
        assert await volume.reader.read(file, 0, CHUNK) == MIXED[:CHUNK]  # hot; two chunks are read ahead
        first, second = volume.number(file, 1), volume.number(file, 2)
        await until(lambda: second in pending and pending[second].progress.future)
        await until(lambda: pending[first].progress.future)
        assert not pending[first].urgent
        taken_back = pending[first].progress.future
        read: list[bytes] = []

        async def read_second_chunk() -> None:
            read.append(bytes(await volume.reader.read(file, CHUNK, CHUNK)))

        nursery.start_soon(read_second_chunk)
        await until(lambda: pending[first].urgent and pending[first].progress.future)
        assert taken_back is not None
        assert taken_back.cancelled()
        assert not pending[second].urgent
        gate.open()
        await until(lambda: read)
        assert read == [MIXED[CHUNK : 2 * CHUNK]]


async def test_sequential_readers_are_read_ahead_of(start: Start, gate: Gate) -> None:
    """Read-ahead is no less than they ask for at a time, so a worker has many chunks to decode in one step."""
    async with start() as volume, trio.open_nursery() as nursery:
        held, file = await volume.add(b"held", gate.chunk), await volume.add(b"file", MIXED)
        pending = volume.fetcher._pending
        nursery.start_soon(volume.content, held)
        await until(lambda: pending and all(p.progress.has_begun() for p in pending.values()))
        for chunk in range(3):
            volume.reader.cache.put(volume.number(file, chunk), MIXED[chunk * CHUNK : (chunk + 1) * CHUNK])
        assert await volume.reader.read(file, 0, 3 * CHUNK) == MIXED[: 3 * CHUNK]
        ahead = [volume.number(file, chunk) for chunk in (3, 4, 5)]
        await until(lambda: all(number in pending and pending[number].progress.future for number in ahead))
        assert volume.number(file, 6) not in pending
        gate.open()
        await until(lambda: all(number in volume.reader.cache for number in ahead))


async def test_a_read_that_is_given_up_takes_its_work_item_back(start: Start, gate: Gate) -> None:
    async with start() as volume, trio.open_nursery() as nursery:
        held, file = await volume.add(b"held", gate.chunk), await volume.add(b"file", b"wanted")
        pending = volume.fetcher._pending
        nursery.start_soon(volume.content, held)
        await until(lambda: pending and all(p.progress.has_begun() for p in pending.values()))
        number = volume.number(file)
        async with trio.open_nursery() as readers:
            readers.start_soon(volume.content, file)
            await until(lambda: number in pending and pending[number].progress.future)
            future = pending[number].progress.future
            readers.cancel_scope.cancel()
        await until(lambda: number not in pending)
        assert future is not None
        assert future.cancelled()
        gate.open()
        assert await volume.content(file) == b"wanted"


async def test_what_has_begun_is_kept_although_nobody_waits(start: Start, gate: Gate) -> None:
    """Else a chunk that takes longer than a read may would be begun anew by each try."""
    async with start() as volume:
        file = await volume.add(b"held", gate.chunk)
        number, pending = volume.number(file), volume.fetcher._pending
        async with trio.open_nursery() as readers:
            readers.start_soon(volume.content, file)
            await until(lambda: number in pending and pending[number].progress.has_begun())
            readers.cancel_scope.cancel()
        assert number in pending
        gate.open()
        await until(lambda: number in volume.reader.cache)
        assert await volume.content(file) == gate.chunk


async def test_reads_end_within_their_bound(start: Start, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async with start(patience=0.2) as volume:
        held, hot = await volume.add(b"held", gate.chunk), await volume.add(b"hot", MIXED[:CHUNK])
        with pytest.raises(TimedOut):
            await volume.content(held)
        volume.fetcher.patience.timeout = WAIT_S
        assert await volume.content(hot) == MIXED[:CHUNK]
        assert "nothing was decoded for 0.2 s" in caplog.text


async def test_a_worker_that_hangs_costs_its_reader_some_patience_and_no_error(start: Start) -> None:
    """The first read already: the worker is given up twice, well within the reader's bound, and the reference helps."""
    async with start(read="stuck", hang_s=0.5) as volume:
        file = await volume.add(b"f", MIXED)
        assert await volume.content(file) == MIXED
        read = next(state for state in volume.pool.states() if state.name == READ)
        assert read.deaths >= 2
        assert "hangs" in read.last_error


async def test_what_waits_has_patience_while_workers_get_on(start: Start, gate: Gate) -> None:
    """Any of those that read: what a worker for recompression does brings no reader on."""
    async with start() as volume:
        held, other = await volume.add(b"held", gate.chunk), await volume.add(b"other", b"goes first")
        pool, went_on, cold = volume.pool, list[int](), volume.cold
        volume.fetcher.patience.go_on = lambda: went_on.append(1)  # type: ignore[method-assign]
        cold.watch(volume.fetcher.patience.go_on)
        async with trio.open_nursery() as readers:
            readers.start_soon(volume.content, held)
            await until(lambda: went_on)  # it has begun
            pool._board.on_moved(COMPACT)
            await trio.lowlevel.checkpoint()
            went_on.clear()
            pool._board.on_moved(COMPACT)
            await trio.testing.wait_all_tasks_blocked()
            assert not went_on
            assert await cold.run(WorkItem(Op.DECODE, FAKE, payload(b"x"), 1, worker=REFERENCE)) == b"x"
            await until(lambda: went_on)
            gate.open()
        assert await volume.content(other) == b"goes first"
        assert not volume.fetcher.patience._waits


async def test_many_readers_of_one_block(start: Start) -> None:
    async with start() as volume:
        file, done = await volume.add(b"file", b"shared"), []

        async def read() -> None:
            done.append(await volume.content(file))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
        assert done == [b"shared"] * 20
        assert volume.pool.states()[0].answered == 1


async def test_thawed_copies(start: Start, tmp_path: Path) -> None:
    copies = Thawed(tmp_path / "thawed", 1 << 20)
    async with start(thawed=copies) as volume:
        file = await volume.add(b"file", MIXED)
        assert await volume.content(file) == MIXED
        await until(lambda: copies.bytes == 7 * 4096)  # each gets as small as a file can be
        answered = volume.pool.states()[0].answered
        volume.reader.cache.clear()
        volume.fetcher.thawed = Thawed(tmp_path / "thawed", 1 << 20)  # as after a mount
        assert await volume.content(file) == MIXED
        assert volume.pool.states()[0].answered == answered
        number = volume.number(file, 3)
        (tmp_path / "thawed" / f"{number:016x}").write_bytes(b"damaged")
        volume.reader.cache.clear()
        assert await volume.content(file) == MIXED
        assert volume.pool.states()[0].answered == answered + 1


async def test_a_damaged_block_is_listed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start(read="wrong", reference="wrong") as volume:
        file, other = await volume.add(b"file", b"lost"), await volume.add(b"hot", MIXED[:CHUNK])
        number = volume.number(file)
        with pytest.raises(BlockDamaged):
            await volume.content(file)
        assert list(volume.reader.damaged.as_dict()) == [number]
        assert f"inode {file.ino}, offset 0, block {number}: damaged block {number}" in caplog.text
        assert await volume.content(other) == MIXED[:CHUNK]
        volume.pool.close()
        volume.use()
        assert await volume.content(file) == b"lost"
        assert not volume.reader.damaged


@pytest.mark.parametrize("content", [MIXED[:CHUNK], b"cold"])
async def test_a_flipped_bit(start: Start, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Hot or cold: it is repaired, and reported, so that it can be written back."""
    repaired: list[tuple[int, Block, bytes]] = []
    async with start() as volume:
        volume.cold.on_repaired = lambda *what: repaired.append(what)
        file = await volume.add(b"file", content)
        number = volume.number(file)
        volume.flip(number)
        caplog.set_level(logging.WARNING)
        assert await volume.content(file) == content
        (what,) = repaired
        assert what[0] == number
        assert xxh3_64_intdigest(what[2]) == what[1].xxh3
        assert f"block {number} is repaired" in caplog.text
        assert not volume.reader.damaged


async def test_a_hot_block_beyond_repair(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    async def search(*_: object) -> None:
        searches.append(1)

    monkeypatch.setattr(Repairs, "find", search)
    async with start() as volume:
        file = await volume.add(b"hot", MIXED[:CHUNK])
        volume.flip(volume.number(file))
        for _ in range(2):
            with pytest.raises(BlockDamaged):
                await volume.content(file)
        assert searches == [1]
        assert list(volume.reader.damaged.as_dict()) == [volume.number(file)]


async def test_what_is_not_installed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start(read="missing", reference="missing") as volume:
        file, hot = await volume.add(b"file", b"cold"), await volume.add(b"hot", MIXED[:CHUNK])
        with pytest.raises(WorkerError):
            await volume.content(file)
        assert "codec fake needs torch, which is not installed" in caplog.text
        assert not volume.reader.damaged
        assert await volume.content(hot) == MIXED[:CHUNK]


async def test_a_model_that_is_missing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start() as volume:
        file = await volume.add(b"file", b"cold")
        key = schema.KEY.pack(volume.number(file))
        with volume.store.write() as txn:
            block = Block.unpack(key, txn.get("block", key) or b"")
            volume.recompress(txn, key, block, payload(b"cold"), model=9)
        with pytest.raises(ModelMissing):
            await volume.content(file)
        assert f"inode {file.ino}, offset 0: model 9 is not in the store" in caplog.text


async def test_no_workers(start: Start) -> None:
    async with start() as volume:
        file = await volume.add(b"file", b"cold")
        volume.fetcher.cold = None
        with pytest.raises(CodecError, match="is decoded by workers, here are none"):
            await volume.content(file)
        assert not volume.reader.damaged


async def test_small_files_read_one_after_another_bring_their_neighbours(start: Start) -> None:
    async with start() as volume:
        files = [await volume.add(b"f%d" % number, b"small %d" % number) for number in range(8)]
        for number in (6, 3):
            assert await volume.content(files[number]) == b"small %d" % number
        await until(lambda: all(volume.number(file) in volume.reader.cache for file in files))


async def test_neighbours_that_are_not_small_or_not_cold_are_left_alone(start: Start) -> None:
    async with start() as volume:
        small = [await volume.add(b"s%d" % number, b"small %d" % number) for number in range(2)]
        large, hot = await volume.add(b"large", bytes([7]) * CHUNK), await volume.add(b"hot", MIXED[:CHUNK])
        for file in small:
            await volume.content(file)
        await trio.testing.wait_all_tasks_blocked()
        assert volume.number(large) not in volume.reader.cache
        assert volume.number(hot) not in volume.reader.cache
        assert not volume.fetcher._pending
