"""Scrub: what is damaged is found and repaired if it can be, and named with its files if not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import blockrepair, scrubreads
from nnfs.background.tasks import Task
from nnfs.codec.base import CM
from nnfs.errors import BlockDamaged, ModelMissing, WorkerError
from nnfs.store import schema
from nnfs.store.schema import Block
from tests.background.scrub.kit import CHUNK, first_fragment, noise, running, text, wait_until


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

    monkeypatch.setattr(blockrepair, "repair_beside", in_vain)
    monkeypatch.setattr(blockrepair, "time", clock)
    monkeypatch.setattr(blockrepair, "SEARCH_S", 10)
    monkeypatch.setattr(blockrepair, "SEARCHES_S", 25)
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

    monkeypatch.setattr(blockrepair, "repair_beside", for_ever)
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
