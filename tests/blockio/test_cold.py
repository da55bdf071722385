"""Decoding of cold blocks: the ladder from the preferred worker to a damaged block, and items that are taken back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
import trio
from xxhash import xxh3_64_intdigest

from nnfs.blockio import cold as cold_module
from nnfs.blockio.cold import AHEAD, BACKGROUND, COMPACT, READ, REFERENCE, Cold, Progress, specs
from nnfs.blockio.repairsearch import Repairs
from nnfs.config import Options, parse_own
from nnfs.errors import BlockDamaged, ModelMissing, WorkerError
from nnfs.store.schema import Block
from nnfs.workers.pool import Pool, WorkerSpec, WorkItem
from nnfs.workers.wire import Op
from tests.harness import WAIT_S
from tests.workers.conftest import Gate
from tests.workers.kit import FAKE, SERVE, payload

NUMBER = 7
MODEL = bytes(range(64))


def block(plain: bytes, model: int = 0) -> Block:
    stored = payload(plain)
    digest = blake2b(plain).digest()
    return Block(FAKE, model, len(plain), len(stored), 0, xxh3_64_intdigest(stored), 1, 1, digest)


def fingerprint(number: int) -> bytes:
    if number != 1:
        raise ModelMissing(f"model {number} is not in the store")
    return MODEL


MakeCold = Callable[..., Cold]


@pytest.fixture
def make() -> Iterator[MakeCold]:
    """Makes a pool of two fake workers, on "devices" that make them misbehave."""
    pools: list[Pool] = []

    def one(read: str = "cpu", reference: str = "cpu", **more: object) -> Cold:
        workers = [WorkerSpec(READ, read, serve=SERVE), WorkerSpec(REFERENCE, reference, serve=SERVE)]
        pools.append(Pool(workers, backoff_s=0.0, **more))  # type: ignore[arg-type]
        return Cold(pools[-1], fingerprint, timeout=WAIT_S)

    yield one
    for pool in pools:
        pool.close()


async def decode(cold: Cold, plain: bytes, **more: object) -> bytes:
    with trio.fail_after(WAIT_S):
        return await cold.decode(NUMBER, block(plain), payload(plain), **more)  # type: ignore[arg-type]


async def until(ready: Callable[[], object]) -> None:
    """Wait for what another process does, which has no event to wait for."""
    with trio.fail_after(WAIT_S):
        while not ready():  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_the_preferred_worker(make: MakeCold) -> None:
    cold = make()
    assert await decode(cold, b"chunk") == b"chunk"
    assert [state.starts for state in cold.pool.states()] == [1, 0]
    assert (cold.trouble, cold.mismatches) == ("", 0)


async def test_wrong_bytes_of_the_preferred_worker(make: MakeCold, caplog: pytest.LogCaptureFixture) -> None:
    cold = make(read="wrong")
    assert await decode(cold, b"chunk") == b"chunk"
    assert cold.mismatches == 1
    assert f"block {NUMBER}: worker read: damaged block {NUMBER}: its content does not have" in caplog.text
    assert f"block {NUMBER}: worker reference has decoded it" in caplog.text


async def test_a_device_that_errs_is_loud(make: MakeCold, caplog: pytest.LogCaptureFixture) -> None:
    cold = make(read="wrong")
    assert cold.errs() == ""
    for _ in range(3):
        assert await decode(cold, b"chunk") == b"chunk"
    assert "wrong (worker read) computed wrong bytes for 3 blocks" in cold.errs()
    assert "mount with another device=" in cold.errs()
    told = [record for record in caplog.records if "computed wrong bytes" in record.getMessage()]
    assert len(told) == 1


async def test_what_is_wrong_with_a_block_is_not_a_devices(make: MakeCold) -> None:
    cold = make(read="wrong", reference="wrong")
    for _ in range(3):
        with pytest.raises(BlockDamaged):
            await decode(cold, b"chunk")
    assert cold.errs() == ""


async def test_wrong_bytes_of_both(make: MakeCold) -> None:
    cold = make(read="wrong", reference="wrong")
    with pytest.raises(BlockDamaged, match="does not have the BLAKE2b-512"):
        await decode(cold, b"chunk")
    assert cold.mismatches == 2


async def test_a_payload_that_both_refuse(make: MakeCold) -> None:
    cold, bad = make(), block(b"chunk")
    stored = b"x" * bad.stored
    with pytest.raises(BlockDamaged, match="no mark"):
        await cold.decode(NUMBER, replace(bad, xxh3=xxh3_64_intdigest(stored)), stored)


async def test_a_flipped_bit_is_repaired(make: MakeCold) -> None:
    cold, repaired = make(), []
    cold.on_repaired = lambda *what: repaired.append(what)
    plain = os.urandom(5000)
    stored = bytearray(payload(plain))
    stored[4000] ^= 8
    assert await cold.decode(NUMBER, block(plain), bytes(stored)) == plain
    assert repaired == [(NUMBER, block(plain), payload(plain))]


async def test_a_repaired_payload_meets_a_device_that_errs(make: MakeCold) -> None:
    cold, repaired = make(read="wrong"), []
    cold.on_repaired = lambda *what: repaired.append(what)
    stored = bytearray(payload(b"chunk"))
    stored[3] ^= 1
    assert await cold.decode(NUMBER, block(b"chunk"), bytes(stored)) == b"chunk"
    assert len(repaired) == 1


async def test_what_is_beyond_repair_is_searched_once(make: MakeCold, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = make()
    searches = 0

    async def search(*_: object) -> None:
        nonlocal searches
        searches += 1

    monkeypatch.setattr(Repairs, "find", search)
    for _ in range(2):
        with pytest.raises(BlockDamaged, match=f"block {NUMBER}: its stored bytes do not have their XXH3-64"):
            await cold.decode(NUMBER, block(b"chunk"), b"#xxxxx")
    assert searches == 1
    assert [state.starts for state in cold.pool.states()] == [0, 0]  # no decoder could do anything with it


async def test_a_payload_that_ends_too_early(make: MakeCold) -> None:
    with pytest.raises(BlockDamaged, match="3 of 6 stored bytes are there"):
        await make().decode(NUMBER, block(b"chunk"), b"#kn")


async def test_a_worker_that_dies(make: MakeCold, tmp_path: Path) -> None:
    cold = make()
    plain = b"die-once:" + os.fsencode(tmp_path / "died")
    assert await decode(cold, plain) == plain
    assert cold.pool.states()[0].deaths == 1


async def test_all_workers_die(make: MakeCold) -> None:
    cold = make()
    with pytest.raises(WorkerError, match=f"block {NUMBER} cannot be decoded: worker read was killed by signal 9"):
        await decode(cold, b"die:")
    assert [state.deaths for state in cold.pool.states()] == [2, 2]


async def test_a_device_that_is_not_there(make: MakeCold) -> None:
    assert await decode(make(read="broken"), b"chunk") == b"chunk"


async def test_trouble_is_over_when_that_worker_has_decoded_again(make: MakeCold) -> None:
    cold = make(find_model={MODEL: b"weights"}.get)
    with pytest.raises(WorkerError):
        await decode(cold, b"die:")
    with pytest.raises(ModelMissing):
        await cold.decode(NUMBER, block(b"x", model=2), payload(b"x"))
    assert "model 2" in cold.trouble
    await cold.decode(NUMBER, block(b"x", model=1), payload(b"x"), worker=REFERENCE)
    assert "model 2" in cold.trouble
    with pytest.raises(WorkerError):
        await decode(cold, b"die:")
    await decode(cold, b"chunk", worker=REFERENCE)
    assert "worker" in cold.trouble
    await decode(cold, b"chunk")
    assert cold.trouble == ""


async def test_what_is_not_installed_is_named(make: MakeCold, caplog: pytest.LogCaptureFixture) -> None:
    """Such a block is not damaged, and thousands of them do not fill the log."""
    cold = make(read="missing", reference="missing")
    for _ in range(3):
        with pytest.raises(WorkerError, match=r"cannot be decoded: codec fake needs torch, which is not installed$"):
            await decode(cold, b"chunk")
    assert "codec fake needs torch, which is not installed" in cold.trouble
    assert caplog.text.count("needs torch") <= 6


async def test_models(make: MakeCold) -> None:
    cold = make(find_model={MODEL: b"weights"}.get)
    assert await cold.decode(NUMBER, block(b"x", model=1), payload(b"x")) == b"x"
    with pytest.raises(ModelMissing, match="model 2 is not in the store"):
        await cold.decode(NUMBER, block(b"x", model=2), payload(b"x"))
    with pytest.raises(ModelMissing, match="no model 00010203"):
        await make().decode(NUMBER, block(b"x", model=1), payload(b"x"))


async def test_a_cancelled_decode_takes_its_work_item_back(make: MakeCold, gate: Gate, tmp_path: Path) -> None:
    cold, progress, died = make(), Progress(), tmp_path / "died"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: decode(cold, gate.chunk, progress=progress))
        await until(progress.has_begun)
        other = Progress()
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_once_submitted, scope, other)
            await decode(cold, b"die-once:" + os.fsencode(died), progress=other)
        assert scope.cancelled_caught
        assert other.future is not None
        assert other.future.cancelled()
        await cold.run(WorkItem(Op.PING, worker=READ))  # the worker knows
        gate.open()
    assert await decode(cold, b"next") == b"next"
    assert not died.exists()


async def cancel_once_submitted(scope: trio.CancelScope, progress: Progress) -> None:
    await until(lambda: progress.future)
    scope.cancel()


async def test_a_full_pool_is_waited_for(make: MakeCold, gate: Gate) -> None:
    cold, progress = make(limit=10_000), Progress()
    done: list[object] = []

    async def encode(plain: bytes) -> None:
        done.append(await cold.run(WorkItem(Op.ENCODE, FAKE, plain, len(plain), priority=BACKGROUND, worker=READ)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: decode(cold, gate.chunk, progress=progress))
        await until(progress.has_begun)
        for number in range(5):
            nursery.start_soon(encode, bytes([number]) * 3000)
        await trio.testing.wait_all_tasks_blocked()
        gate.open()
    assert len(done) == 5


async def test_how_long_decoding_takes(make: MakeCold) -> None:
    cold = make()
    for number in range(2):
        await decode(cold, b"%d" % number)
    assert list(cold.slow) == [FAKE]


def test_the_workers_of_a_mount() -> None:
    read, compact, reference = specs(Options())
    assert (read.name, read.device, read.threads) == (READ, "auto", len(os.sched_getaffinity(0)))
    assert (compact.name, compact.device, compact.idle) == (COMPACT, "auto", True)
    assert (reference.name, reference.device, reference.threads, reference.idle) == (REFERENCE, "cpu", 1, False)
    names = [(spec.name, spec.device) for spec in specs(parse_own({"device": "cuda:0,cpu"}))]
    assert names == [(READ, "cuda:0"), (COMPACT, "cuda:0"), (COMPACT, "cpu"), (REFERENCE, "cpu")]
    names = [(spec.name, spec.device) for spec in specs(parse_own({"device": "cuda:0,cuda:1"}))][:2]
    assert names == [(READ, "cuda:0"), (READ, "cuda:1")]


async def test_a_future_that_ends_after_its_loop() -> None:
    """A worker's late answer finds nobody, and says nothing."""
    future: Future[object] = Future()
    with trio.move_on_after(0):
        await cold_module._done(future)  # type: ignore[arg-type]
    future.set_result(b"late")


def test_ahead_is_less_urgent() -> None:
    assert AHEAD < BACKGROUND
