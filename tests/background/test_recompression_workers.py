"""Recompression on a mount with workers that die, fail, or decode to something else."""

from __future__ import annotations

from nnfs.blockio.cold import COMPACT, READ
from tests.background.coding import text
from tests.background.mountkit import Start, codecs, cold_read, done, end_of, mounts, settled, sync, target, write
from tests.harness import wait_for

pytestmark = mounts


def test_a_worker_that_dies_at_random(start: Start) -> None:
    mount = start(mode="none", kill="7")
    for n in range(40):
        write(mount.path / f"f{n}", text(n))
    job = end_of(mount, mount.ask("compact", ino=1)["job"])
    assert (job["state"], job["cold_chunks"], job["failed_chunks"]) == ("done", 40, 0)
    assert sum(worker["deaths"] for worker in mount.ask("status")["workers"]) >= 2  # batches may be large
    for n in range(40):
        assert cold_read(mount.path / f"f{n}") == text(n)


def test_a_chunk_that_kills_is_given_up(start: Start) -> None:
    """The others are done; passes come back to it a few times, then no more."""
    mount = start()
    mount.expect_log("worker|killed")
    for n in range(5):
        write(mount.path / f"f{n}", text(n))
    bad = write(mount.path / "bad", b"die:\n" + text(50))
    sync(mount)
    wait_for("the others to be looked at", lambda: settled(mount) == 5)
    wait_for("the chunk to be given up", lambda: mount.log().count("chunk 0 stays as it is") >= 3)
    deaths = mount.ask("status")["workers"][1]["deaths"]
    mount.turn_round(3)
    status = mount.ask("status")
    assert status["workers"][1]["deaths"] == deaths
    assert codecs(mount, bad) == {"zstd": 1}
    assert cold_read(bad) == b"die:\n" + text(50)


def test_a_worker_that_always_fails(start: Start) -> None:
    mount = start(fail=f"{COMPACT}+{READ}")
    mount.expect_log("encodes nothing")
    for n in range(20):
        write(mount.path / f"f{n}", text(n))
    sync(mount)
    wait_for("trouble", lambda: "encodes nothing" in mount.ask("status")["compaction"]["last_error"])
    job = end_of(mount, mount.ask("compact", ino=1, all=True)["job"])
    assert (job["state"], job["exit"]) == ("failed", 10)
    assert "this worker encodes nothing" in job["error"]
    job = end_of(mount, mount.ask("compact", **target(mount.path / "f3"), all=True)["job"])
    assert job["state"] == "failed"  # a single chunk, too
    mount.turn_round(3)
    assert codecs(mount, mount.path) == {"zstd": 20}
    assert cold_read(mount.path / "f7") == text(7)


def test_what_decodes_wrongly_is_never_stored(start: Start) -> None:
    mount = start(mode="none", wrong=READ)
    mount.expect_log("decodes something else")
    write(mount.path / "f", text(1))
    job = end_of(mount, mount.ask("compact", ino=1, all=True)["job"])
    assert job["state"] == "failed"
    assert "worker read decodes something else than was encoded" in job["error"]
    assert codecs(mount, mount.path) == {"zstd": 1}
    assert cold_read(mount.path / "f") == text(1)


def test_a_reader_is_answered_by_the_reference(start: Start) -> None:
    mount = start(mode="none")
    write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path) == {"neural": 1}
    mount.set(wrong=READ)
    mount.expect_log("worker read: .*its content does not have|computed wrong bytes")
    mount.remount()
    mount.deadline()
    assert (mount.path / "f").read_bytes() == text(1)
    assert "worker reference has decoded it" in mount.log()
