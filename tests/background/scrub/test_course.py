"""The course of a scrub: pause, cancel, remounts, read-only mounts, full disks, writers beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import busy, scrub, scrubreads
from nnfs.background.tasks import Task
from nnfs.errors import OutOfSpace
from nnfs.fs import fsck
from nnfs.store import schema
from nnfs.store.env import Store
from tests.background.scrub.kit import first_fragment, noise, running, text


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
