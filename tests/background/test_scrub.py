"""Scrub of a store in use, without FUSE: what it finds, repairs, names, and where it goes on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from nnfs.background import busy, repair, scrub, scrubreads
from nnfs.background.interfaces import Parts
from nnfs.background.scrub import Scrub
from nnfs.background.tasks import Gate, Task
from nnfs.blockio.cold import READ, Cold
from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.space import Space
from nnfs.codec.base import CM, NEURAL
from nnfs.errors import BlockDamaged, ModelMissing, NnfsError, OutOfSpace, WorkerError
from nnfs.fs import fsck, swapping
from nnfs.fs.apply import apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import Recode, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode
from nnfs.workers.pool import BACKGROUND
from tests.blockio.kit import make_reader
from tests.harness import WAIT_S

CHUNK = schema.MIN_CHUNK_SIZE


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "REST_S", 0)
    monkeypatch.setattr(busy, "BUSY_S", 0)
    monkeypatch.setattr(scrub, "SAVE_S", 0)
    monkeypatch.setattr(repair, "SEARCH_S", 60)  # of a search that finds at once, however busy the machine


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
        one = Recode(number, block.payload, (inode.ino, at), codec, model, data)
        assert await self.committer.amend(partial(swapping.recode, recodes=[one])) != [None]
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
        """What a commit does for the loop's own read txn."""
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


@pytest.mark.parametrize("deep", [False, True])
async def test_a_sound_store(tmp_path: Path, deep: bool) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), noise(2), text(3))
        number = await volume.turn_cold(inode, 2, text(3)[::-1])
        await volume.keep(b"A" * 64, b"weights" * 1000)
        result = await volume.good(deep=deep)
        assert result.pop("since") > 0
        assert result == {"deep": deep, "blocks": 3, "repaired": 0, "unchecked": 0, "damaged": []}
        assert volume.cold.decoded == ([number] if deep else [])
        assert not volume.reader.damaged
        assert volume.scrub.unfinished() is None
        assert volume.check() == []


async def test_an_empty_store(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        assert (await volume.good(deep=True))["blocks"] == 0


async def test_progress_counts_chunks_and_plain_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 2)
    async with running(tmp_path / "s") as volume:
        await volume.write(b"f", *[text(n) for n in range(7)])
        job = await volume.job()
        assert (job.done_chunks, job.total_chunks) == (7, 7)
        assert job.done_bytes == job.total_bytes == sum(len(text(n)) for n in range(7))


@pytest.mark.parametrize("deep", [False, True])
async def test_damage_beyond_repair_is_noted_with_its_files(tmp_path: Path, deep: bool) -> None:
    async with running(tmp_path / "s") as volume:
        folder = volume.names.create(schema.ROOT_INO, b"some", 0o040755, 0, 0, 0)
        await volume.write(b"first", noise(1), noise(2))
        inode = await volume.write(b"second", text(5), noise(2), parent=folder.ino)
        number, block = volume.block(inode, 1)
        with volume.store.write() as txn:
            txn.put("payload", first_fragment(block), bytes(4080))
        result = await volume.good(deep=deep)
        [found] = result["damaged"]
        assert found["block"] == number
        assert "XXH3-64" in found["why"] or "stored bytes" in found["why"]
        assert sorted(found["files"]) == [f"/first at {CHUNK}", f"/some/second at {CHUNK}"]
        assert list(volume.reader.damaged.as_dict()) == [number]
        assert result["repaired"] == 0


async def test_a_damaged_header_and_a_lost_payload(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", noise(1), noise(2), noise(3))
        lost, block = volume.block(inode, 0)
        broken, _ = volume.block(inode, 1)
        with volume.store.write() as txn:
            txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        volume.damage("block", schema.KEY.pack(broken))
        result = await volume.good()
        assert [found["block"] for found in result["damaged"]] == [lost, broken]
        assert [found["files"] for found in result["damaged"]] == [["/f at 0"], [f"/f at {CHUNK}"]]


@pytest.mark.parametrize("is_cold", [False, True])
async def test_a_flipped_bit_is_repaired(tmp_path: Path, is_cold: bool) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        if is_cold:
            await volume.turn_cold(inode, 0, text(1)[::-1])
        number, block = volume.block(inode)
        volume.damage("payload", first_fragment(block))
        assert volume.check() != []
        result = await volume.good()
        assert (result["repaired"], result["damaged"]) == (1, [])
        assert volume.check() == []
        after = volume.block(inode)[1]
        assert (after.codec, after.xxh3) == (block.codec, block.xxh3)
        assert number not in volume.reader.damaged


async def test_a_repair_that_decodes_to_something_else_is_none(tmp_path: Path) -> None:
    """The content decides, not the checksum."""
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        number = await volume.turn_cold(inode, 0, text(2)[::-1])
        volume.damage("payload", first_fragment(volume.block(inode)[1]))
        result = await volume.good()
        assert [found["block"] for found in result["damaged"]] == [number]


async def test_searches_in_vain_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(limits))

    async def in_vain(payload: bytes, xxh3: int, limit_s: float) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(repair, "repair_beside", in_vain)
    monkeypatch.setattr(repair, "time", clock)
    monkeypatch.setattr(repair, "SEARCH_S", 10)
    monkeypatch.setattr(repair, "SEARCHES_S", 25)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[noise(n) for n in range(5)])
        for at in range(5):
            volume.damage("payload", first_fragment(volume.block(inode, at)[1]))
        assert len((await volume.good())["damaged"]) == 5
        assert limits == [10, 10, 5]


async def test_cancelled_and_paused_between_and_within_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    async def for_ever(payload: bytes, xxh3: int, limit_s: float) -> None:
        searched.append(xxh3)
        volume.gate.set(paused=len(searched) == 1)
        if len(searched) > 1:
            await trio.sleep_forever()

    monkeypatch.setattr(repair, "repair_beside", for_ever)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[noise(n) for n in range(5)])
        for at in range(5):
            volume.damage("payload", first_fragment(volume.block(inode, at)[1]))
        job = Task(1, "scrub", volume.scrub.run, volume.gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job.run)
            await wait_until(lambda: volume.gate.paused)
            await trio.testing.wait_all_tasks_blocked()
            assert len(searched) == 1
            volume.gate.set(paused=False)
            await wait_until(lambda: len(searched) == 2)
            job.cancel()
        assert job.state == "cancelled"
        assert len(searched) == 2


async def test_what_is_still_in_the_cache_replaces_it(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), text(2))
        number = await volume.turn_cold(inode, 0, noise(1, 500))
        other = await volume.turn_cold(inode, 1, noise(2, 500))
        volume.reader.cache.put(number, text(1))
        volume.reader.cache.put(other, text(3))  # as no cache should be: it is not believed
        result = await volume.good(deep=True)
        assert result["repaired"] == 1
        assert [found["block"] for found in result["damaged"]] == [other]
        assert volume.block(inode)[1].codec < CM
        volume.reader.cache.clear()
        volume.renew()
        assert bytes(await volume.reader.read(inode, 0, CHUNK))[: len(text(1))] == text(1)


async def test_only_deep_finds_a_wrong_content(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), text(2))
        cold = await volume.turn_cold(inode, 0, text(7)[::-1])
        hot = await volume.turn_cold(inode, 1, text(7), codec=0)
        assert (await volume.good())["damaged"] == []
        result = await volume.good(deep=True)
        assert sorted(found["block"] for found in result["damaged"]) == [cold, hot]


async def test_sound_again_is_damaged_no_longer(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        number = await volume.turn_cold(inode, 0, text(1)[::-1])
        volume.reader.damaged.add(number, "a device erred")
        await volume.good(deep=True)
        assert not volume.reader.damaged


async def test_what_was_found_damaged_is_decoded_by_any_scrub(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[text(n) for n in range(4)])
        bad, good = await volume.turn_cold(inode, 0, text(7)[::-1]), await volume.turn_cold(inode, 1, text(1)[::-1])
        hot, _ = volume.block(inode, 2)
        await volume.turn_cold(inode, 3, text(3)[::-1])
        for number in (bad, good, hot, 999):
            volume.reader.damaged.add(number, "a reader says so")
        result = await volume.good()
        assert [found["block"] for found in result["damaged"]] == list(volume.reader.damaged.as_dict()) == [bad]
        assert sorted(volume.cold.decoded) == sorted([bad, good])


async def test_known_damage_that_nobody_can_decode_stays_known(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        number = await volume.turn_cold(inode, 0, text(1)[::-1])
        volume.reader.damaged.add(number, "a reader says so")
        volume.cold.trouble[number] = WorkerError("needs numba")
        assert [found["why"] for found in (await volume.good())["damaged"]] == ["a reader says so"]
        assert (await volume.job(deep=True)).state == "failed"


async def test_a_block_coded_anew_meanwhile_needs_its_old_model_no_more(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        await volume.turn_cold(inode, 0, text(1)[::-1])

        async def decode(number: int, block: Block, payload: bytes, **how: Any) -> bytes:
            await volume.turn_cold(inode, 0, text(1)[::-1])
            raise ModelMissing("model 1 is not in the store")

        volume.cold.decode = decode  # type: ignore[method-assign]
        assert (await volume.good(deep=True))["unchecked"] == 0


async def test_what_is_removed_is_damaged_no_longer(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        await volume.write(b"f", text(1))
        inode = await volume.write(b"g", text(2))
        other = volume.names.lookup(schema.ROOT_INO, b"f")
        assert other is not None
        for each in (inode, other):
            volume.reader.damaged.add(volume.block(each)[0], "found by a reader")
        volume.names.unlink(schema.ROOT_INO, b"f")
        await volume.committer.sync()
        volume.reader.damaged.forget_gone(volume.store)
        assert list(volume.reader.damaged.as_dict()) == [volume.block(inode)[0]]


async def test_a_block_rewritten_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    """It was read before somebody gave it other bytes."""
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1))
        number = await volume.turn_cold(inode, 0, text(7)[::-1])
        rewritten = []

        async def decode(number: int, block: Block, payload: bytes, **how: Any) -> bytes:
            rewritten.append(await volume.turn_cold(inode, 0, text(1)[::-1]))
            raise BlockDamaged(number, "what it was")

        volume.cold.decode = decode  # type: ignore[method-assign]
        assert (await volume.good(deep=True))["damaged"] == []
        assert rewritten == [number]


# -- what cannot be checked


async def test_what_cannot_be_decoded_is_not_called_sound(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[text(n) for n in range(4)])
        numbers = [await volume.turn_cold(inode, n, text(n)[::-1]) for n in range(4)]
        for number in numbers[:3]:
            volume.cold.trouble[number] = WorkerError(f"block {number} cannot be decoded: needs numba")
        job = await volume.job(deep=True)
        assert job.state == "failed"
        assert "3 blocks: block cannot be decoded: needs numba" in job.error
        assert job.result["unchecked"] == 3
        assert not volume.reader.damaged


async def test_a_missing_model_is_named(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), text(2))
        number = await volume.turn_cold(inode, 0, text(1)[::-1])
        volume.cold.trouble[number] = ModelMissing("model 3 is not in the store")
        job = await volume.job(deep=True)
        assert job.state == "failed"
        assert "1 blocks: model 3 is not in the store" in job.error


async def test_workers_that_always_fail_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one goes on at what was not checked."""
    monkeypatch.setattr(scrub, "FAILURES", 3)
    monkeypatch.setattr(scrub, "WINDOW", 1)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[text(n) for n in range(9)])
        numbers = [await volume.turn_cold(inode, n, text(n)[::-1]) for n in range(1, 9)]
        volume.cold.trouble = {number: WorkerError("died") for number in numbers}
        job = await volume.job(deep=True)
        assert (job.state, job.exit_code) == ("failed", WorkerError.exit_code)
        assert len(volume.cold.decoded) < 8
        state = volume.scrub.unfinished()
        assert state is not None
        assert state.next <= numbers[0]
        volume.cold.trouble, volume.cold.decoded = {}, []
        assert (await volume.job(deep=True)).state == "done"
        assert volume.cold.decoded == numbers


async def test_workers_have_a_bounded_number_of_blocks_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "WINDOW", 3 * len(text(0)))
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[text(n) for n in range(9)])
        for n in range(9):
            await volume.turn_cold(inode, n, text(n)[::-1])
        await volume.good(deep=True)
        assert 1 < volume.cold.most <= 3


async def test_workers_have_a_bounded_number_of_small_blocks_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a task, a ticket and its share of what all do."""
    monkeypatch.setattr(scrub, "WINDOW", 4 * scrub.LEAST)
    async with running(tmp_path / "s") as volume:
        inodes = [await volume.write(b"f%d" % n, noise(n, 300)) for n in range(9)]
        for n, inode in enumerate(inodes):
            await volume.turn_cold(inode, 0, noise(n, 300)[::-1])
        await volume.good(deep=True)
        assert 1 < volume.cold.most <= 4
        monkeypatch.setattr(scrub, "IN_FLIGHT", 2)
        volume.cold.most = 0
        await volume.good(deep=True)
        assert volume.cold.most == 2


async def test_progress_is_what_has_been_decoded(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[text(n) for n in range(4)])
        for n in range(3):
            await volume.turn_cold(inode, n, text(n)[::-1])
        decode, gate = volume.cold.decode, trio.Event()

        async def slow(number: int, block: Block, payload: bytes, **how: Any) -> bytes:
            await gate.wait()
            return await decode(number, block, payload, **how)

        volume.cold.decode = slow  # type: ignore[method-assign]
        job = Task(1, "scrub", partial(volume.scrub.run, deep=True), volume.gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job.run)
            await wait_until(lambda: job.done_chunks > 0)
            await trio.testing.wait_all_tasks_blocked()
            assert (job.done_chunks, job.done_bytes, job.total_chunks) == (1, len(text(3)), 4)
            gate.set()
        assert (job.state, job.done_chunks, job.done_bytes) == ("done", 4, job.total_bytes)


# -- models


async def test_a_bad_copy_of_a_model_is_repaired(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        number = await volume.keep(b"A" * 64, b"weights" * 1000)
        with volume.store.read() as snapshot:
            model = modelfiles.load_model(snapshot, number)
        volume.damage("payload", schema.FRAGMENT_KEY.pack(model.payload_b, 0))
        volume.damage(*modelfiles.places(number)[0])
        assert (await volume.good())["repaired"] == 1
        with volume.store.read() as snapshot:
            assert modelfiles.damaged_copies(snapshot, number) == 0
        assert volume.check() == []


async def test_a_lost_model_is_told(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        number = await volume.keep(b"A" * 64, b"weights" * 1000)
        with volume.store.read() as snapshot:
            model = modelfiles.load_model(snapshot, number)
        for payload in model.payloads:
            volume.damage("payload", schema.FRAGMENT_KEY.pack(payload, 0))
        result = await volume.good()
        assert b"A".hex() * 8 in result["damaged"][0]["why"]


@pytest.mark.parametrize("deep", [False, True])
async def test_blocks_whose_model_is_missing_are_damage(tmp_path: Path, deep: bool) -> None:
    async with running(tmp_path / "s") as volume:
        number = await volume.keep(b"A" * 64, b"weights" * 1000)
        inode = await volume.write(b"f", text(1), text(2))
        block = await volume.turn_cold(inode, 0, text(1)[::-1], NEURAL, number)
        with volume.store.write() as txn:
            for table, key in modelfiles.places(number):
                txn.delete(table, key)
        volume.cold.trouble[block] = ModelMissing(f"model {number} is not in the store")
        job = await volume.job(deep=deep)
        assert job.state == "done"
        [found] = job.result["damaged"]
        assert f"model {number}: it is not in the store" in found["why"]
        assert "1 blocks" in found["why"]
        assert "nnfs model add" in found["why"]


# -- pause, cancel, resume


async def test_it_goes_on_after_a_remount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 1)
    monkeypatch.setattr(scrub, "SAVE_BLOCKS", 2)
    looked: list[int] = []
    real = scrubreads.look_at

    def look(store: Store, first: int, *how: Any) -> Any:
        looked.append(first)
        return real(store, first, *how)

    monkeypatch.setattr(scrubreads, "look_at", look)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[noise(n) for n in range(10)])
        numbers = volume.fs.block_numbers(inode, 0, 9)
        with trio.CancelScope() as unmount:
            volume.busy = lambda: bool(len(looked) >= 7 and unmount.cancel())
            await volume.job()
        assert unmount.cancelled_caught
    async with running(tmp_path / "s") as volume:
        state = volume.scrub.unfinished()
        assert state is not None
        assert numbers[0] < state.next <= numbers[7]
        looked.clear()
        result = await volume.good()
        assert looked[0] == state.next
        assert result["blocks"] == 10
        assert volume.scrub.unfinished() is None
        looked.clear()
        await volume.good()
        assert looked[0] == 1


async def test_cancelled_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 1)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[noise(n) for n in range(6)])
        job = Task(1, "scrub", volume.scrub.run, volume.gate)

        def cancel_in_the_middle() -> bool:
            job.cancelled = job.done_chunks >= 3
            return False

        volume.busy = cancel_in_the_middle
        await job.run()
        assert job.state == "cancelled"
        state = volume.scrub.unfinished()
        assert state is not None
        assert state.next == volume.fs.block_numbers(inode, 0, 5)[4]
        volume.busy = lambda: False
        assert (await volume.good(deep=True))["blocks"] == 6  # another kind begins anew


async def test_one_that_had_found_damage_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it had found would be missing from what it tells at the end."""
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 1)
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", *[noise(n) for n in range(6)])
        number, block = volume.block(inode)
        with volume.store.write() as txn:
            txn.put("payload", first_fragment(block), bytes(4080))
        job = Task(1, "scrub", volume.scrub.run, volume.gate)

        def busy() -> bool:
            job.cancelled = job.done_chunks >= 3
            return False

        volume.busy = busy
        await job.run()
        assert job.state == "cancelled"
        volume.busy = lambda: False
        assert [found["block"] for found in (await volume.good())["damaged"]] == [number]


async def test_paused_it_waits(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        await volume.write(b"f", noise(1))
        volume.gate.set(paused=True)
        job = Task(1, "scrub", volume.scrub.run, volume.gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job.run)
            await trio.testing.wait_all_tasks_blocked()
            assert (job.state, job.done_chunks) == ("running", 0)
            volume.gate.set(paused=False)
        assert job.state == "done"


async def test_it_rests_while_the_mount_is_busy_but_not_for_ever(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        await volume.write(b"f", noise(1))
        asked = []
        volume.busy = lambda: not asked.append(1)  # type: ignore[func-returns-value]
        await volume.good()
        assert len(asked) == busy.BUSY_MOST


# -- where nothing can be written


async def test_a_read_only_mount_is_scrubbed_too(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), noise(2))
        block = volume.block(inode)[1]
    async with running(tmp_path / "s", read_only=True) as volume:
        volume.damage("payload", first_fragment(block))
        before = volume.store.state.commit
        result = await volume.good()
        assert len(result["damaged"]) == 1
        assert volume.store.state.commit == before


async def test_a_full_disk_ends_no_scrub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path / "s") as volume:
        inode = await volume.write(b"f", text(1), noise(2))
        volume.damage("payload", first_fragment(volume.block(inode)[1]))

        async def full(*args: Any) -> None:
            raise OutOfSpace("full")

        with monkeypatch.context() as context:
            context.setattr(volume.committer, "amend", full)
            assert len((await volume.good())["damaged"]) == 1
        assert (await volume.good())["repaired"] == 1


async def test_writers_and_removals_go_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 1)
    async with running(tmp_path / "s") as volume:
        for n in range(8):
            await volume.write(b"f%d" % n, noise(n), noise(100 + n))
        job = Task(1, "scrub", partial(volume.scrub.run, deep=True), volume.gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job.run)
            for n in range(8):
                volume.names.unlink(schema.ROOT_INO, b"f%d" % n)
                await volume.write(b"g%d" % n, text(n))
        assert job.state == "done"
        assert job.result["damaged"] == []
    store = Store.open(tmp_path / "s")
    assert fsck.check(store, data=True, repair=False, progress=lambda *_: None).problems == []
    store.close()
