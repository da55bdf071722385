"""Recompression on a mount: commands, policies, work in flight, passes of the background."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.errors import DaemonError
from tests.background.coding import NO_GAIN, text
from tests.background.kit import COLD, Chaos, fsck_clean
from tests.background.mountkit import (
    CHUNK,
    Start,
    codecs,
    cold_read,
    done,
    end_of,
    mounts,
    settled,
    sync,
    target,
    turn,
    write,
)
from tests.caches import drop_caches
from tests.harness import wait_for

pytestmark = mounts
AGED = ("write_age=1h", "read_age=1d", "thaw_limit=1h")
HOUR, DAY = 3600, 86400


@pytest.fixture(scope="module")
def shared() -> Iterator[Chaos]:
    """A mount that does only what it is told: no pass, any age."""
    with Chaos(mode="none") as mount:
        mount.deadline(1200)
        yield mount


@pytest.fixture
def folder(shared: Chaos, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = shared.path / request.node.name
    path.mkdir()
    yield path
    shared.check_log()


def test_a_tree_turns_cold_and_warm(shared: Chaos, folder: Path) -> None:
    contents = {f"d{n % 3}/f{n}": text(n, 20_000 + n % 10 * 11_000 + n // 10 * CHUNK) for n in range(20)}
    for name, data in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, data)
    sync(shared)
    before = {name: (folder / name).stat().st_blocks for name in contents}
    job = done(shared, "compact", folder, all=True)
    assert (job["done_chunks"], job["cold_chunks"], job["failed_chunks"]) == (job["total_chunks"],) * 2 + (0,)
    assert job["done_bytes"] == job["total_bytes"] == sum(map(len, contents.values()))
    assert 0 < job["stored_after"] < job["stored_before"]
    assert codecs(shared, folder) == {"neural": 30}

    def told() -> bool:  # the kernel, and without anybody looking the names up anew
        return all((folder / name).stat().st_blocks <= blocks for name, blocks in before.items()) and any(
            (folder / name).stat().st_blocks < blocks for name, blocks in before.items()
        )

    wait_for("the kernel to know what the files occupy", told)
    for name, data in contents.items():
        assert cold_read(folder / name) == data
    shared.remount()
    shared.deadline(1200)
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data
    job = done(shared, "thaw", folder)
    assert (job["cold_chunks"], job["failed_chunks"]) == (0, 0)
    assert job["stored_after"] > job["stored_before"]
    assert set(codecs(shared, folder)) <= {"zstd", "raw"}
    drop_caches(shared.path)
    for name, data in contents.items():
        assert (folder / name).read_bytes() == data


def test_again_there_is_nothing_to_do(shared: Chaos, folder: Path) -> None:
    write(folder / "f", text(5, 300_000))
    write(folder / "incompressible", os.urandom(200_000))
    write(folder / "no gain", NO_GAIN + text(6))
    done(shared, "compact", folder)
    again = done(shared, "compact", folder)
    assert again["total_chunks"] == 0
    assert "write_age" in again["note"]
    assert "--all" in done(shared, "compact", folder, dry_run=True)["note"]
    assert done(shared, "thaw", folder)["note"] == ""
    assert "hot already" in done(shared, "thaw", folder)["note"]
    done(shared, "compact", folder, all=True)
    assert done(shared, "compact", folder, all=True)["stored_before"] == 0  # tried again, as was asked for


def test_dry_run(shared: Chaos, folder: Path) -> None:
    for n in range(30):
        write(folder / f"f{n}", text(n + 50))
    result = done(shared, "compact", folder, dry_run=True)["result"]
    assert (result["chunks"], result["plain_bytes"], result["sampled_chunks"]) == (30, 600_000, 16)
    assert 0 < result["estimated_bytes"] < result["stored_bytes"]
    assert codecs(shared, folder) == {"zstd": 30}


def test_shared_blocks_links_and_holes(shared: Chaos, folder: Path) -> None:
    data = text(9, 3 * CHUNK)
    write(folder / "a", data)
    write(folder / "b", text(10, 2 * CHUNK) + data[:CHUNK])
    os.link(folder / "a", folder / "c")
    with (folder / "sparse").open("wb") as file:
        file.truncate(40 * CHUNK)
        file.seek(70 * CHUNK)
        file.write(data)
    job = done(shared, "compact", folder)
    assert job["total_chunks"] <= 3 + 3 + 3  # the file of two names once
    assert set(codecs(shared, folder)) == {"neural"}
    drop_caches(shared.path)
    assert (folder / "a").read_bytes() == (folder / "c").read_bytes() == data
    assert (folder / "b").read_bytes()[2 * CHUNK :] == data[:CHUNK]
    assert (folder / "sparse").read_bytes() == bytes(70 * CHUNK) + data
    (folder / "a").unlink()
    (folder / "sparse").unlink()
    drop_caches(shared.path)
    assert (folder / "c").read_bytes() == data


def test_policies_are_inherited(shared: Chaos, folder: Path) -> None:
    names = ("hot", "hot/cold", "never", "never/below", "plain")
    for name in names:
        (folder / name).mkdir()
        write(folder / name / "f", text(len(name) + 100))
    for name, policy in (("hot", b"hot"), ("hot/cold", b"cold"), ("never", b"never"), ("plain/f", b"hot")):
        os.setxattr(folder / name, "user.nnfs.policy", policy)

    def found() -> dict[str, str]:
        return {name: "".join(codecs(shared, folder / name / "f")) for name in names}

    done(shared, "compact", folder, all=True)
    only_cold = {name: "neural" if name == "hot/cold" else "zstd" for name in names}
    assert found() == only_cold
    for name in ("hot", "never"):  # named itself, a file is under the policy of its directory, too
        assert done(shared, "compact", folder / name / "f", all=True)["done_chunks"] == 0
    assert found() == only_cold
    os.setxattr(folder / "never", "user.nnfs.policy", b"auto")
    os.setxattr(folder / "hot/cold", "user.nnfs.policy", b"hot")
    os.removexattr(folder / "plain/f", "user.nnfs.policy")
    done(shared, "compact", folder, all=True)
    assert found() == {
        "hot": "zstd", "hot/cold": "zstd", "never": "neural", "never/below": "neural", "plain": "neural"
    }  # fmt: skip
    os.setxattr(folder / "never", "user.nnfs.policy", b"never")
    assert done(shared, "thaw", folder / "never")["done_chunks"] == 0
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(folder, "user.nnfs.policy", b"lukewarm")


def test_auto_keeps_to_the_thaw_limit(start: Start) -> None:
    mount = start(mode="none", options=("write_age=0", "read_age=0", "thaw_limit=2"), takes="0.3")
    for seed, name in enumerate(("auto", "cold")):
        (mount.path / name).mkdir()
        write(mount.path / name / "f", text(seed))
    os.setxattr(mount.path / "cold", "user.nnfs.policy", b"cold")
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path / "auto") == {"cm": 1}  # the next best that is read quickly enough
    assert codecs(mount, mount.path / "cold") == {"neural": 1}
    speeds = mount.ask("status")["thaw_seconds_per_mib"]
    assert speeds["neural"] > 2 > speeds["cm"]
    done(mount, "compact", mount.path, all=True)
    assert codecs(mount, mount.path / "auto") == {"neural": 1}
    mount.options = ["write_age=0", "read_age=0", "thaw_limit=0"]
    mount.remount()
    mount.deadline()
    write(mount.path / "auto" / "g", text(50))
    done(mount, "compact", mount.path)
    assert codecs(mount, mount.path / "auto" / "g") == {"zstd": 1}


def gated(folder: Path, name: str, tmp_path: Path) -> tuple[Path, bytes, Path]:
    """A file whose encoding waits, its content, and what it waits for."""
    gate = tmp_path / f"gate-{name}"
    data = b"gate:%s\n" % os.fsencode(gate) + text(len(name), 90_000)
    return write(folder / name, data), data, gate


def test_what_changes_in_flight_stays_changed(shared: Chaos, folder: Path, tmp_path: Path) -> None:
    (folder / "all").mkdir()
    where = folder / "all"
    gates = [gated(where, name, tmp_path) for name in ("deleted", "cut", "rewritten", "kept", "moved")]
    sync(shared)
    job = shared.ask("compact", ino=where.stat().st_ino)["job"]
    wait_for("an encoding", lambda: any(Path(f"{gate}.reached").exists() for _, _, gate in gates))
    wait_for("all in hand", lambda: shared.ask("job", job=job)["total_chunks"] == 5)
    (where / "deleted").unlink()
    os.truncate(where / "cut", 1000)
    with (where / "rewritten").open("r+b") as file:
        file.write(b"another beginning")
    (where / "moved").rename(folder / "elsewhere")
    sync(shared)
    for _, _, gate in gates:
        gate.touch()
    assert end_of(shared, job)["state"] == "done"
    contents = {path.name: data for path, data, _ in gates}
    drop_caches(shared.path)
    assert (where / "cut").read_bytes() == contents["cut"][:1000]
    assert (where / "rewritten").read_bytes() == b"another beginning" + contents["rewritten"][17:]
    assert (where / "kept").read_bytes() == contents["kept"]
    assert (folder / "elsewhere").read_bytes() == contents["moved"]
    assert codecs(shared, where / "kept") == {"neural": 1}
    assert "neural" not in codecs(shared, where / "cut")
    assert "neural" not in codecs(shared, where / "rewritten")


def test_pause_resume_and_cancel(shared: Chaos, folder: Path, tmp_path: Path) -> None:
    path, data, gate = gated(folder, "one", tmp_path)
    write(folder / "two", text(77))
    assert shared.ask("pause") == {"paused": True}
    job = shared.ask("compact", **target(folder))["job"]
    assert shared.ask("job", job=job)["state"] in ("queued", "running")
    assert shared.ask("status")["compaction"]["paused"]
    assert not Path(f"{gate}.reached").exists()
    assert shared.ask("resume") == {"paused": False}
    wait_for("the encoding", Path(f"{gate}.reached").exists)
    after = shared.ask("thaw", **target(folder))["job"]
    assert shared.ask("cancel", job=after)["state"] == "cancelled"
    shared.ask("cancel", job=job)
    assert end_of(shared, job)["state"] == "cancelled"
    gate.touch()
    assert codecs(shared, path) == {"zstd": 1}
    assert [job["state"] for job in shared.ask("jobs")["jobs"][-2:]] == ["cancelled"] * 2
    with pytest.raises(DaemonError, match="no task 999"):
        shared.ask("job", job=999)
    done(shared, "compact", folder)
    assert codecs(shared, folder) == {"neural": 2}
    assert cold_read(path) == data


def test_an_unmount_waits_for_no_job(start: Start, tmp_path: Path) -> None:
    mount = start(mode="none")
    path, data, _ = gated(mount.path, "one", tmp_path)
    write(mount.path / "two", text(78))
    sync(mount)
    mount.ask("compact", ino=1)
    wait_for("the encoding", Path(f"{tmp_path}/gate-one.reached").exists)
    mount.unmount()  # the gate is shut for ever: whoever waited for the worker would never end
    fsck_clean(mount.store)
    mount.mount()
    mount.deadline()
    assert path.read_bytes() == data


def test_what_is_cold_by_age(start: Start) -> None:
    """ctime is the age, whatever mtime says; an atime counts when it is one of reading."""
    mount = start(options=AGED)
    atimes = {"not read": None, "read lately": 0, "copied with its times": -20 * DAY, "read in the future": 400 * DAY}
    for name, atime in atimes.items():
        path = write(mount.path / name, text(len(name)))
        if atime is not None:
            os.utime(path, (path.stat().st_mtime + 1 + atime, 1e9))
    sync(mount)
    mount.turn_round()
    cold: set[str] = set()
    for clock, more in ((0, set()), (HOUR - 60, set()), (2 * HOUR, atimes.keys() - {"read lately"}), (2 * DAY, atimes)):
        mount.set(clock=str(clock))
        mount.remount()
        mount.deadline()
        cold |= set(more)
        for name in cold:
            turn(mount, mount.path / name, "neural")
        mount.turn_round()
        assert {name for name in atimes if codecs(mount, mount.path / name) == {"neural": 1}} == cold


def test_policies_are_seen_by_the_next_pass(start: Start) -> None:
    mount = start(options=("write_age=1h", "read_age=1h", "policy=auto", "thaw_limit=1h"))
    (mount.path / "d").mkdir()
    (mount.path / "hot").mkdir()
    file = write(mount.path / "d" / "f", text(3))
    os.setxattr(mount.path / "hot", "user.nnfs.policy", b"hot")
    sync(mount)
    mount.turn_round()
    assert codecs(mount, file) == {"zstd": 1}  # too young
    mount.options = list(COLD)
    mount.remount()
    mount.deadline()
    turn(mount, file, "neural")
    os.setxattr(mount.path / "d", "user.nnfs.policy", b"hot")
    sync(mount)
    turn(mount, file, "zstd")
    # A change right before the end of a mount, even by a crash, is seen by the next mount.
    os.setxattr(mount.path / "d", "user.nnfs.policy", b"cold")
    sync(mount)
    mount.kill()
    mount.mount()
    mount.deadline()
    turn(mount, file, "neural")
    file.rename(mount.path / "hot" / "f")
    sync(mount)
    turn(mount, mount.path / "hot" / "f", "zstd")
    (mount.path / "hot").rename(mount.path / "d" / "below")
    os.removexattr(mount.path / "d" / "below", "user.nnfs.policy")
    sync(mount)
    turn(mount, mount.path / "d" / "below" / "f", "neural")


def test_settled_files_are_left_alone(start: Start) -> None:
    mount = start()
    for n in range(5):
        write(mount.path / f"f{n}", text(n, 40_000))
        write(mount.path / f"g{n}", NO_GAIN + text(n, 40_000))
    sync(mount)
    wait_for("all to be looked at", lambda: settled(mount) == 10)
    assert Counter(codecs(mount, mount.path)) == {"neural": 5, "zstd": 5}
    answered = [worker["answered"] for worker in mount.ask("status")["workers"]]
    mount.turn_round(3)
    assert [worker["answered"] for worker in mount.ask("status")["workers"]] == answered
    with (mount.path / "f1").open("r+b") as file:
        file.write(b"changed")
    sync(mount)
    turn(mount, mount.path / "f1", "neural")
    wait_for("all to be looked at", lambda: settled(mount) == 10)
    assert cold_read(mount.path / "f1") == b"changed" + text(1, 40_000)[7:]
    done(mount, "thaw", mount.path)  # for those who asked for it, until a file changes
    mount.turn_round(3)
    assert codecs(mount, mount.path) == {"zstd": 10}
