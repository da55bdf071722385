"""The pool and its supervisors: workers that die, hang, do not start; items that are too many, too late, unwanted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path

import pytest

from nnfs.errors import CodecError, CodecUnavailable, ModelMissing, TimedOut, WorkerError
from nnfs.workers.pool import AHEAD, URGENT, Pool, WorkerSpec, WorkItem
from nnfs.workers.wire import MAX_CHUNK, Op
from tests.harness import WAIT_S, wait_for
from tests.workers.conftest import Gate
from tests.workers.kit import FAKE, SERVE, payload

CPU = WorkerSpec("cpu", device="cpu", serve=SERVE, hang_s=600.0)
MODEL = bytes(range(64))
MakePool = Callable[..., Pool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools that restart at once; afterwards neither processes nor threads are left."""
    threads = threading.active_count()
    pools: list[Pool] = []

    def one(*specs: WorkerSpec, **more: object) -> Pool:
        pools.append(Pool(specs or (CPU,), backoff_s=0.0, **more))  # type: ignore[arg-type]
        return pools[-1]

    yield one
    pids = [state.pid for pool in pools for state in pool.states() if state.pid]
    for pool in pools:
        pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert threading.active_count() == threads


def result(future: Future[bytes] | Future[bytes | None]) -> bytes | None:
    return future.result(WAIT_S)


def error(future: Future[bytes] | Future[bytes | None]) -> Exception:
    found = future.exception(WAIT_S)
    assert isinstance(found, Exception)
    return found


def decode(pool: Pool, plain: bytes, **more: object) -> Future[bytes]:
    return pool.decode(FAKE, payload(plain), len(plain), **more)  # type: ignore[arg-type]


def test_round_trips_and_errors(make: MakePool) -> None:
    pool = make()
    assert [state.state for state in pool.states()] == ["stopped"]  # nothing was asked of it yet
    assert result(pool.encode(FAKE, b"chunk")) == payload(b"chunk")
    assert result(decode(pool, b"chunk")) == b"chunk"
    assert result(pool.encode(FAKE, b"no-gain")) is None
    assert str(error(pool.decode(FAKE, b"x", 7))) == "no mark"
    assert type(error(pool.decode(99, b"x", 7))) is CodecUnavailable  # nothing is wrong with the data
    assert type(error(pool.decode(FAKE, b"x", 7, MODEL))) is ModelMissing
    assert type(error(decode(pool, b"memory:"))) is WorkerError
    assert "ZeroDivisionError: a bug" in str(error(decode(pool, b"bug:")))
    (state,) = pool.states()
    assert (state.state, state.device, state.starts, state.deaths) == ("running", "cpu", 1, 0)
    assert (state.answered, state.failed) == (8, 5)
    info = pool.ask("cpu").result(WAIT_S)
    assert (info.pid, info.device, info.done, info.failed) == (state.pid, "cpu", 8, 5)


def test_many_items_of_many_threads(make: MakePool) -> None:
    pool = make(replace(CPU, ahead=8), limit=100_000)
    plains = [b"%d" % n * (n % 50) for n in range(600)]
    got: dict[int, bytes | None] = {}

    def some(begin: int) -> None:
        futures = {n: decode(pool, plains[n], priority=n % 3) for n in range(begin, 600, 3)}
        got.update({n: result(future) for n, future in futures.items()})

    threads = [threading.Thread(target=some, args=(begin,)) for begin in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(600)] == plains


def test_a_worker_killed_in_the_middle_of_an_item(make: MakePool, gate: Gate) -> None:
    pool = make()
    held, waiting = pool.encode(FAKE, gate.chunk), pool.encode(FAKE, b"later")
    while not (pid := pool.states()[0].pid):  # until it is spawned
        pool.ask("cpu").result(WAIT_S)
    os.kill(pid, signal.SIGKILL)
    assert pool.ask("cpu").result(WAIT_S).pid != pid
    gate.open()
    assert result(held) == payload(gate.chunk)
    assert result(waiting) == payload(b"later")
    (state,) = pool.states()
    assert (state.starts, state.deaths, state.last_error) == (2, 1, "worker cpu was killed by signal 9")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR2])
def test_what_is_sent_to_all_while_a_worker_starts(make: MakePool, gate: Gate, number: signal.Signals) -> None:
    pool = make()
    held = pool.encode(FAKE, gate.chunk)
    while not (pid := pool.states()[0].pid):
        os.sched_yield()
    os.kill(pid, number)
    gate.open()
    assert result(held) == payload(gate.chunk)
    assert pool.states()[0].deaths == 0


def test_an_item_that_kills_one_worker_is_tried_again(make: MakePool, tmp_path: Path) -> None:
    pool = make()
    chunk = b"die-once:" + os.fsencode(tmp_path / "died")
    assert result(pool.encode(FAKE, chunk)) == payload(chunk)
    assert pool.states()[0].deaths == 1


def test_an_item_that_kills_two_workers_fails(make: MakePool) -> None:
    pool = make()
    poisoned = decode(pool, b"die:")
    assert str(error(poisoned)) == "worker cpu was killed by signal 9 (the work item has killed 2 workers)"
    assert result(decode(pool, b"fine")) == b"fine"
    assert pool.states()[0].deaths == 2


def test_the_last_words_of_a_worker(make: MakePool) -> None:
    assert "ended with status 3: last words" in str(error(decode(make(), b"exit:")))


@pytest.mark.parametrize("bad", [b"die-unless-alone:", b"die:"])
def test_what_was_in_a_batch_with_a_poisoned_item(make: MakePool, gate: Gate, bad: bytes) -> None:
    pool = make()
    held = pool.encode(FAKE, gate.chunk)  # so that the others wait, and go together
    items = [pool.encode(FAKE, b"%d" % n) for n in range(5)]
    items.insert(2, pool.encode(FAKE, bad))
    pool.ask("cpu").result(WAIT_S)
    gate.open()
    assert result(held) is not None
    for n, item in enumerate([*items[:2], *items[3:]]):
        assert result(item) == payload(b"%d" % n)
    if bad == b"die:":
        assert isinstance(error(items[2]), WorkerError)
    else:
        assert result(items[2]) == payload(bad)


def test_a_worker_that_hangs(make: MakePool) -> None:
    pool = make(replace(CPU, hang_s=1.0))
    hanging = decode(pool, b"hang:")
    while not hanging.done():
        pool.ask("cpu").result(WAIT_S)  # answered by a thread that does not hang; must not hide it
    assert "hangs: nothing moved for 1 s" in str(error(hanging))
    assert result(decode(pool, b"fine")) == b"fine"


def test_a_worker_that_is_stopped_is_replaced(make: MakePool) -> None:
    """SIGSTOP, as somebody's debugger or a freezer that forgets it: its work is done by another one."""
    pool = make(replace(CPU, hang_s=0.5))
    pid = pool.ask("cpu").result(WAIT_S).pid
    os.kill(pid, signal.SIGSTOP)
    assert result(decode(pool, b"fine")) == b"fine"
    (state,) = pool.states()
    assert (state.starts, state.deaths) == (2, 1)
    assert "hangs" in state.last_error


def test_a_worker_that_gets_on_is_not_taken_for_hung(make: MakePool) -> None:
    """Neither by its bound nor by those who wait: it is told that it counts columns, or that it gets CPU time."""
    pool, moved = make(replace(CPU, hang_s=1.0)), threading.Semaphore(0)
    pool.watch(lambda name: moved.release())
    for chunk in (b"count:5", b"compute:5"):  # heard of five times
        going = decode(pool, chunk)
        for _ in range(3):
            assert moved.acquire(timeout=WAIT_S)
        assert result(going) == chunk
    assert pool.states()[0].deaths == 0


@pytest.mark.parametrize(
    ("device", "why"),
    [("broken", "no such device"), ("garbage", "worker bad: frame of kind 101"), ("newer", "speaks version 3")],
)
def test_a_worker_that_cannot_be_started(make: MakePool, device: str, why: str) -> None:
    pool = make(replace(CPU, name="bad", device=device), CPU)
    assert why in str(error(decode(pool, b"x", worker="bad")))
    assert pool.states()[0].deaths >= 3
    assert result(decode(pool, b"anyone")) == b"anyone"
    assert why in str(error(decode(pool, b"x", worker="bad")))  # it is tried again


def test_a_command_that_is_not_there(make: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", os.fspath(tmp_path / "python"))
    assert "cannot be started" in str(error(decode(make(), b"x")))


def test_too_late(make: MakePool, gate: Gate) -> None:
    pool = make()
    held = decode(pool, gate.chunk)  # not an encode: the late item would overtake one that has not begun
    late = decode(pool, b"x", timeout=0.05)
    assert isinstance(error(late), TimedOut)
    gate.open()
    assert result(held) is not None
    assert result(decode(pool, b"y", timeout=WAIT_S)) == b"y"


def test_cancelled_items_are_not_done(make: MakePool, gate: Gate, tmp_path: Path) -> None:
    pool = make(replace(CPU, ahead=2))
    held = decode(pool, gate.chunk)
    died = tmp_path / "died"
    unwanted = [pool.encode(FAKE, b"die-once:" + os.fsencode(died)) for _ in range(3)]  # with the worker, and waiting
    pool.ask("cpu").result(WAIT_S)
    for item in unwanted:
        assert item.cancel()
    pool.ask("cpu").result(WAIT_S)
    gate.open()
    assert result(held) is not None
    assert result(pool.encode(FAKE, b"next")) == payload(b"next")
    assert not died.exists()
    with pytest.raises(CancelledError):
        unwanted[0].result()
    assert pool.states()[0].outstanding == 0


def test_too_much_at_once(make: MakePool, gate: Gate) -> None:
    pool = make(limit=10_000)
    held = pool.encode(FAKE, gate.chunk)
    taken = pool.encode(FAKE, bytes(3_000))
    more = WorkItem(Op.ENCODE, FAKE, bytes(3_000), 3_000, priority=AHEAD)
    with pytest.raises(TimedOut):
        pool.submit(more, wait=False)
    with pytest.raises(TimedOut):
        pool.submit(more, timeout=0.05)
    urgent = pool.submit(replace(more, priority=URGENT), wait=False)
    waited: list[Future[bytes | None]] = []
    thread = threading.Thread(target=lambda: waited.append(pool.submit(more)))  # type: ignore[arg-type]
    thread.start()
    gate.open()
    thread.join(WAIT_S)
    for item in (held, taken, urgent, waited[0]):
        assert result(item) is not None  # type: ignore[arg-type]


def test_too_long(make: MakePool) -> None:
    with pytest.raises(CodecError):
        make().encode(FAKE, bytes(MAX_CHUNK + 1))


def test_models_are_sent_to_workers(make: MakePool) -> None:
    asked = []

    def find(model: bytes) -> bytes | None:
        asked.append(model)
        return {MODEL: b"weights", MODEL[::-1]: b"bad"}.get(model)

    pool = make(find_model=find)
    assert [result(decode(pool, b"x", model=MODEL)) for _ in range(3)] == [b"x"] * 3
    assert asked == [MODEL]
    assert isinstance(error(decode(pool, b"x", model=MODEL[::-1])), ModelMissing)
    assert isinstance(error(decode(pool, b"x", model=b"?" * 64)), ModelMissing)
    assert pool.ask("cpu").result(WAIT_S).models == (MODEL,)
    assert isinstance(error(decode(pool, b"die:", model=MODEL)), WorkerError)
    assert result(decode(pool, b"x", model=MODEL)) == b"x"  # the fresh worker has got it again
    assert asked.count(MODEL) == 3


def test_a_model_that_kills_workers(make: MakePool) -> None:
    pool = make(find_model=lambda _: b"die")
    assert isinstance(error(decode(pool, b"x", model=MODEL)), WorkerError)
    assert result(decode(pool, b"x")) == b"x"


def test_a_store_that_cannot_find_its_model(make: MakePool) -> None:
    def find(_: bytes) -> bytes | None:
        raise OSError("disk on fire")

    pool = make(find_model=find)
    assert isinstance(error(decode(pool, b"x", model=MODEL)), ModelMissing)


def test_one_of_several_workers(make: MakePool) -> None:
    pool = make(CPU, replace(CPU, name="reference"))
    pids = {name: pool.ask(name).result(WAIT_S).pid for name in ("cpu", "reference")}
    assert len(set(pids.values())) == 2
    assert result(decode(pool, b"x", worker="reference")) == b"x"
    assert pool.ask("reference").result(WAIT_S).done == 1
    with pytest.raises(WorkerError, match="no worker named gpu"):
        decode(pool, b"x", worker="gpu")


def test_workers_of_one_name_share_its_items(make: MakePool) -> None:
    pool = make(replace(CPU, device="broken"), CPU)
    wait_for("the broken one to be given up", lambda: asked(pool) and pool.states()[0].deaths >= 3)
    assert result(decode(pool, b"x", worker="cpu")) == b"x"


def asked(pool: Pool) -> bool:
    """Whether an item is done; each one has every stopped worker started."""
    return result(decode(pool, b"x", worker="cpu")) == b"x"


def test_what_has_begun_cannot_be_cancelled(make: MakePool, gate: Gate) -> None:
    pool = make()
    held = decode(pool, gate.chunk)
    wait_for("its beginning", held.running)
    waiting = decode(pool, b"x")
    assert not held.cancel()
    assert waiting.cancel()
    gate.open()
    assert result(held) == gate.chunk


def test_what_was_begun_by_a_worker_that_died(make: MakePool, tmp_path: Path) -> None:
    pool = make()
    chunk = b"die-once:" + os.fsencode(tmp_path / "died")
    assert result(decode(pool, chunk)) == chunk


def test_speeds_are_measured(make: MakePool) -> None:
    pool = make()
    assert result(decode(pool, b"the first one opens the codec")) is not None
    assert pool.states()[0].decoding == {}
    assert result(decode(pool, b"x" * 1000)) is not None
    (state,) = pool.states()
    assert (list(state.decoding), state.encoding) == ([FAKE], {})
    assert state.decoding[FAKE] > 0


def test_the_environment_of_a_worker(make: MakePool) -> None:
    pool = make(replace(CPU, environment=(("NNFS_TEST", "seen"),)))
    assert str(error(decode(pool, b"variable:NNFS_TEST"))) == "seen"


def test_a_worker_for_idle_times(make: MakePool) -> None:
    pool = make(CPU, replace(CPU, name="idle", idle=True))
    assert str(error(decode(pool, b"scheduler:", worker="cpu"))) == f"policy {os.SCHED_OTHER}, leader False"
    assert str(error(decode(pool, b"scheduler:", worker="idle"))) == f"policy {os.SCHED_IDLE}, leader True"
    group = Path(f"/proc/{pool.states()[1].pid}/autogroup")
    if group.exists():
        assert group.read_text().split()[1:] == ["nice", "19"]


def test_a_worker_that_cannot_run_a_codec(make: MakePool) -> None:
    pool = make(replace(CPU, device="missing"))
    assert str(error(decode(pool, b"x"))) == "codec fake needs torch, which is not installed"
    assert type(error(decode(pool, b"x"))) is CodecUnavailable  # not what a bad payload is


def test_a_library_that_is_missed_when_it_is_used(make: MakePool) -> None:
    """Not a bug: other codecs go on, and nothing is said about the data."""
    lacking = error(make().encode(FAKE, b"lacks:"))
    assert isinstance(lacking, CodecUnavailable)
    assert str(lacking) == "the codec needs numba, which is not installed"


def test_an_idle_worker_is_ended(make: MakePool) -> None:
    pool = make(replace(CPU, idle_s=0.05))
    first = pool.ask("cpu").result(WAIT_S).pid
    wait_for("its end", lambda: pool.states()[0].state == "stopped" or None)
    assert pool.ask("cpu").result(WAIT_S).pid != first
    assert pool.states()[0].deaths == 0


def test_a_warm_worker_is_started_at_once(make: MakePool) -> None:
    pool = make(replace(CPU, warm=True))
    wait_for("its hello", lambda: pool.states()[0].state == "running" or None)


def test_closing_in_the_middle_of_work(make: MakePool, gate: Gate) -> None:
    pool = make()
    items = [pool.encode(FAKE, gate.chunk), pool.encode(FAKE, b"x")]
    pool.ask("cpu").result(WAIT_S)
    pool.close()
    for item in items:
        assert isinstance(error(item), WorkerError)
    with pytest.raises(WorkerError):
        pool.encode(FAKE, b"x")
    pool.close()


def test_settings_of_numba_do_not_reach_a_worker(make: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/where")
    pool = make()
    assert str(error(pool.encode(FAKE, b"variable:NUMBA_DISABLE_JIT"))) == "not set"
    assert str(error(pool.encode(FAKE, b"variable:NUMBA_CACHE_DIR"))) == "/where"
