"""Recompression on a real mount, with quick codecs: what turns cold and warm, and what must never happen to it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs.blockio.cold import COMPACT, READ
from nnfs.errors import DaemonError
from nnfs.store import modelfiles
from nnfs.store.env import Store
from tests.background.coding import NO_GAIN, fingerprint, model_file, text
from tests.background.kit import COLD, Chaos, fsck_clean
from tests.conftest import why_no_mount
from tests.harness import drop_caches, sync_fs, wait_for

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
CHUNK = 131072
AGED = ("write_age=1h", "read_age=1d", "thaw_limit=1h")
HOUR, DAY = 3600, 86400


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def end_of(mount: Chaos, job: int) -> dict[str, Any]:
    """A job once it has ended."""

    def ended() -> dict[str, Any] | None:
        found = mount.ask("job", job=job)
        return None if found["state"] in ("queued", "running") else found

    return wait_for(f"task {job}", ended, step=0.02)


def target(path: Path) -> dict[str, int]:
    parent = {} if path.is_dir() else {"parent": path.parent.stat().st_ino}
    return {"ino": path.stat().st_ino, **parent}


def done(mount: Chaos, command: str, path: Path, **args: Any) -> dict[str, Any]:
    """A job that must end well."""
    job = end_of(mount, mount.ask(command, **target(path), **args)["job"])
    assert job["state"] == "done", job
    return job


def codecs(mount: Chaos, path: Path) -> dict[str, int]:
    """Chunks by codec of a file or of all that is below a directory."""
    found: Counter[str] = Counter()
    for line in mount.ask("stat", ino=path.stat().st_ino)["codecs"]:
        found[line["codec"]] += line["chunks"]
    return dict(found)


def turn(mount: Chaos, path: Path, codec: str) -> None:
    """Wait until all of a file is in one codec."""
    wait_for(f"{path} to become {codec}", lambda: codecs(mount, path).keys() == {codec}, step=0.02)


def sync(mount: Chaos) -> None:
    """Have everything committed: syncfs(2) takes the kernel's pages to the daemon, and no further."""
    sync_fs(mount.path)
    descriptor = os.open(mount.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def cold_read(path: Path) -> bytes:
    """A file's content, from the daemon."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


Start = Callable[..., Chaos]


@pytest.fixture
def start() -> Iterator[Start]:
    """Mounts that go with the test, and leave stores that fsck finds nothing in."""
    mounts: list[Chaos] = []

    def begin(**arguments: Any) -> Chaos:
        mount = Chaos(**arguments).__enter__()
        mounts.append(mount)
        mount.deadline()
        return mount

    yield begin
    try:
        for mount in mounts:
            mount.unmount()
            if not mount.is_damaged:
                fsck_clean(mount.store)
    finally:
        for mount in mounts:
            mount.__exit__(None, None, None)


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


# -- commands


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


# -- in flight


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


# -- in the background


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
    # What changes right before the end of a mount, by a crash even, is seen by the next one.
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


def settled(mount: Chaos) -> int:
    """How many files the store has that are marked."""
    return int(mount.ask("passes")["settled"])


# -- models


def test_a_model_is_kept_twice_and_found_again(start: Start) -> None:
    mount = start(mode="none")
    file = write(mount.path / "f", text(1))
    done(mount, "compact", mount.path)
    default = fingerprint("default").hex()
    for _ in range(2):
        found = mount.ask("models")
        assert found["default"] == default
        [line] = found["models"]
        assert (line["fingerprint"], line["copies"], line["blocks"], line["retired"]) == (default, "ok", 1, False)
        mount.remount()
        mount.deadline()
    # A later nnfs with another model reads what this one has encoded, and adds its own when it is needed.
    (mount.base / "models" / "default.safetensors").write_bytes(model_file("newer"))
    mount.remount()
    mount.deadline()
    assert file.read_bytes() == text(1)
    write(mount.path / "g", text(2))
    done(mount, "compact", mount.path)
    assert [(line["number"], line["blocks"]) for line in mount.ask("models")["models"]] == [(1, 1), (2, 1)]
    done(mount, "compact", mount.path, all=True)
    assert codecs(mount, mount.path) == {"neural": 2}
    assert cold_read(file) == text(1)
    mount.unmount()
    fsck_clean(mount.store)
    mount.mount()


def test_a_retired_model_goes_with_its_last_block(start: Start, tmp_path: Path) -> None:
    mount = start()
    own = tmp_path / "own.safetensors"
    own.write_bytes(model_file("fitted"))
    (mount.path / "d").mkdir()
    added = mount.ask("model_add", file=str(own), ino=(mount.path / "d").stat().st_ino)
    assert added["fingerprint"] == fingerprint("fitted").hex()
    for n in range(3):
        write(mount.path / "d" / f"f{n}", text(n))
        write(mount.path / f"f{n}", text(n + 10))
    sync(mount)
    wait_for("all to be looked at", lambda: settled(mount) == 6)
    assert {line["fingerprint"]: line["blocks"] for line in mount.ask("models")["models"]} == {
        fingerprint("fitted").hex(): 3, fingerprint("default").hex(): 3
    }  # fmt: skip
    mount.ask("model_retire", fingerprint=added["fingerprint"])

    def copies() -> dict[str, str]:
        return {line["fingerprint"]: line["copies"] for line in mount.ask("models")["models"]}

    wait_for("the retired model to go", lambda: copies()[added["fingerprint"]] == "gone", step=0.05)
    assert [line["blocks"] for line in mount.ask("models")["models"]] in ([0, 6], [6, 0])
    for n in range(3):
        assert cold_read(mount.path / "d" / f"f{n}") == text(n)
    # The shipped one as well: blocks go where there is another codec, though that takes more room.
    mount.ask("model_retire", fingerprint=fingerprint("default").hex())
    wait_for("the retired model to go", lambda: set(copies().values()) == {"gone"}, step=0.05)
    assert set(codecs(mount, mount.path)) <= {"cm", "zstd"}
    for n in range(3):
        assert cold_read(mount.path / f"f{n}") == text(n + 10)
    with pytest.raises(DaemonError, match="not in the store"):
        mount.ask("model_retire", fingerprint="ab" * 64)


def test_a_missing_model_is_named_and_costs_nothing_else(start: Start) -> None:
    mount = start(mode="none")
    for n in range(12):
        write(mount.path / f"f{n}", text(n))
    done(mount, "compact", mount.path)
    write(mount.path / "warm", text(100))
    mount.unmount()
    mount.is_damaged = True
    store = Store.open(mount.store)
    with store.write() as txn:
        for table, key in modelfiles.places(1):
            record = bytearray(txn.get(table, key) or b"")
            record[20] ^= 1
            txn.put(table, key, bytes(record))
    store.close()
    (mount.base / "models" / "default.safetensors").write_bytes(model_file("newer"))
    mount.mount()
    mount.deadline()
    mount.expect_log("model 1: both copies of its record are damaged")
    assert (mount.path / "warm").read_bytes() == text(100)
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "f3").read_bytes()
    assert "model 1: both copies" in mount.log()
    sync(mount)
    done(mount, "compact", mount.path / "warm", all=True)
    assert codecs(mount, mount.path / "warm") == {"neural": 1}
    job = end_of(mount, mount.ask("thaw", ino=1)["job"])  # 12 failures in a row, and what can be thawed is
    assert (job["state"], job["failed_chunks"]) == ("done", 12)
    assert codecs(mount, mount.path / "warm") == {"zstd": 1}
    assert "model 1" in str(mount.ask("status")["damaged"]) + mount.ask("status")["worker_trouble"]


# -- workers


def test_a_worker_that_dies_at_random(start: Start) -> None:
    mount = start(mode="none", kill="7")
    for n in range(40):
        write(mount.path / f"f{n}", text(n))
    job = end_of(mount, mount.ask("compact", ino=1)["job"])
    assert (job["state"], job["cold_chunks"], job["failed_chunks"]) == ("done", 40, 0)
    assert sum(worker["deaths"] for worker in mount.ask("status")["workers"]) >= 5
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
