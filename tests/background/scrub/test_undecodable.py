"""Scrub of content that cannot be decoded: lost models, failing workers, bounds on work in hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import scrub
from nnfs.background.tasks import Task
from nnfs.codec.base import NEURAL
from nnfs.errors import ModelMissing, WorkerError
from nnfs.store import modelfiles, schema
from nnfs.store.schema import Block
from tests.background.scrub.kit import noise, running, text, wait_until


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
    """The next scrub goes on at the blocks that were not checked."""
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
