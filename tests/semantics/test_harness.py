"""The harness itself, with stand-ins for the daemon: it must notice what goes wrong, and leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import harness, isolation
from tests.conftest import sendable, why_no_mount
from tests.ending import wait_gone
from tests.guard import MNT_DETACH
from tests.harness import Mount, mounted_at, umount, umount_held_by_none, wait_for, work_dir
from tests.holders import holders

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")

# Mounts a tmpfs, says something, and ends when it is unmounted.
STAND_IN = """
import ctypes, select, sys
where, words, code = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])
assert ctypes.CDLL(None).mount(b"x", where, b"tmpfs", 0, None) == 0
print(words, file=sys.stderr, flush=True)
mounts = open("/proc/self/mounts", "rb")
watch = select.poll()
watch.register(mounts, select.POLLERR | select.POLLPRI)
while where in mounts.read():
    mounts.seek(0)
    watch.poll()
    mounts.seek(0)
sys.exit(code)
"""
LINGER = STAND_IN.partition("sys.exit(code)")[0] + "\ndef stuck_here():\n    select.select([], [], [])\nstuck_here()\n"
TRACE = (
    "2026 INFO a: fine\\n2026 ERROR b: bad\\nTraceback (most recent call last):\\n  x\\nKeyError: 7\\n2026 INFO c: fine"
)


def stand_in(words: str = "2026 INFO all is well", code: int = 0) -> Callable[[Mount], list[str]]:
    words = words.replace("\\n", "\n")
    return lambda mount: [sys.executable, "-c", STAND_IN, str(mount.path), words, str(code)]


def lingers(mount: Mount) -> list[str]:
    return [sys.executable, "-c", LINGER, str(mount.path), "2026 INFO up", "0"]


def gone(mount: Mount) -> bool:
    return not mount.base.exists() and not mounted_at(mount.path)


def test_a_good_daemon() -> None:
    with Mount(argv=stand_in()) as mount:
        assert os.path.ismount(mount.path)
        assert Path(f"/proc/{mount.pid}").exists()
        mount.remount()
        mount.drop_caches()
        assert mount.log().count("all is well") == 2
    assert gone(mount)


def test_an_error_in_the_log_is_a_failure() -> None:
    with (
        pytest.raises(AssertionError, match="unexpected in the daemon's log") as caught,
        Mount(argv=stand_in(TRACE)) as m,
    ):
        m.remount()
    assert "KeyError: 7" in str(caught.value)
    assert "fine" not in str(caught.value)
    assert gone(m)
    with Mount(argv=stand_in(TRACE)) as m:
        m.expect_log("KeyError")


def test_a_bad_status_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="ended with 5"), Mount(argv=stand_in(code=5)) as mount:
        pass
    assert gone(mount)


def test_a_daemon_that_never_mounts() -> None:
    mount = Mount(argv=lambda _: [sys.executable, "-c", "raise SystemExit('no such luck')"])
    with pytest.raises(AssertionError, match="no such luck"):
        mount.__enter__()
    assert gone(mount)


def test_a_failing_test_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError) as caught, Mount(argv=stand_in()) as mount, (mount.path / "open").open("wb"):
        raise ZeroDivisionError
    assert any("all is well" in note for note in caught.value.__notes__)
    assert gone(mount)


def test_a_busy_mount_is_a_failure_and_goes() -> None:
    with pytest.raises(OSError, match="busy"), Mount(argv=stand_in()) as mount:
        handle = (mount.path / "open").open("wb")
    assert gone(mount)
    handle.close()


def test_kill() -> None:
    with Mount(argv=stand_in()) as mount:
        pid = mount.pid
        mount.kill()
        assert not Path(f"/proc/{pid}").exists()
        assert not mounted_at(mount.path)
        mount.mount()
        mount.revive()
        assert mount.alive
    assert gone(mount)


def test_the_guard_ends_what_hangs() -> None:
    mount = Mount(argv=stand_in())
    mount.__enter__()
    mount.deadline(0.05)
    assert mount._child is not None
    assert mount._child.wait() == -signal.SIGABRT
    with pytest.raises(AssertionError, match="guard killed"):
        mount.__exit__(None, None, None)
    assert gone(mount)


def test_a_mount_that_the_guard_has_taken_off_meanwhile(tmp_path: Path) -> None:
    harness.umount_held_by_none(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        harness.umount_held_by_none(tmp_path / "none")


def test_the_guard_has_stacks_written_before_it_kills() -> None:
    mount = Mount(argv=lingers)
    mount.__enter__()
    mount.deadline(0.05)
    wait_for("the guard", lambda: mount.hung)
    with pytest.raises(AssertionError, match=r"guard killed(?s:.)*Fatal Python error: Aborted"):
        mount.__exit__(None, None, None)
    assert gone(mount)


def test_the_guard_kills_what_ignores_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFS_TEST_ABORT_S", "0.05")  # the guard's
    deaf = "import signal; signal.signal(signal.SIGABRT, signal.SIG_IGN)\n" + LINGER
    mount = Mount(argv=lambda m: [sys.executable, "-c", deaf, str(m.path), "2026 INFO up", "0"])
    mount.__enter__()
    mount.deadline(0.05)
    assert mount._child is not None
    assert mount._child.wait() == -signal.SIGKILL
    with pytest.raises(AssertionError, match="guard killed"):
        mount.__exit__(None, None, None)
    assert gone(mount)


# -- a daemon that does not end


def test_stacks_of_a_daemon_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(argv=lingers)
    mount.__enter__()
    monkeypatch.setattr(harness, "STOP_S", 0.05)
    with pytest.raises(AssertionError, match=r"had not ended after 0\.05 s") as caught:
        mount.__exit__(None, None, None)
    (note,) = caught.value.__notes__
    assert "2026 INFO up" in note
    assert "Fatal Python error: Aborted" in note
    assert "in stuck_here" in note
    assert gone(mount)


def test_stacks_of_a_daemon_that_never_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "START_S", 0.5)
    wait = "import faulthandler, select; faulthandler.enable(); select.select([], [], [])"
    mount = Mount(argv=lambda _: [sys.executable, "-c", wait])
    with pytest.raises(AssertionError, match="in vain for the mount") as caught:
        mount.__enter__()
    assert "Fatal Python error: Aborted" in "".join(caught.value.__notes__)
    assert gone(mount)


def test_stacks_of_a_daemon_that_is_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "WAIT_S", 0.05)
    log = tmp_path / "log"
    stuck = "import faulthandler, select; faulthandler.enable(); print('up', flush=True); select.select([], [], [])"
    with log.open("wb") as file:
        child = subprocess.Popen([sys.executable, "-c", stuck], stdout=file, stderr=file)
    wait_for("its start", lambda: b"up" in log.read_bytes(), 300)
    with pytest.raises(AssertionError, match="in vain for the daemon's end") as caught:
        wait_gone(child.pid, log)
    notes = "".join(caught.value.__notes__)
    assert f"{child.pid} " in notes.partition("log:")[0]
    assert "up" in notes
    assert "Fatal Python error: Aborted" in notes
    assert child.wait() == -signal.SIGABRT


# -- who else holds a mount


@pytest.fixture
def point() -> Iterator[Path]:
    """A mounted tmpfs."""
    path = work_dir()
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    yield path
    with contextlib.suppress(OSError):
        umount(path, MNT_DETACH)
    path.rmdir()


def test_a_busy_mount_names_who_holds_it(point: Path) -> None:
    assert holders(point) == []
    with (point / "open").open("w") as file, pytest.raises(OSError, match="busy") as caught:
        umount_held_by_none(point)
    held = f"held by {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}): fd/"
    assert any(note.startswith(held) and note.endswith(file.name) for note in caught.value.__notes__)
    umount_held_by_none(point)
    assert not mounted_at(point)


@pytest.mark.parametrize("what", ["cwd", "map"])
def test_holders_by_other_things_than_files(point: Path, what: str) -> None:
    script = "cd $1; echo; exec cat" if what == "cwd" else "cp $(command -v cat) $1; echo; exec $1/cat"
    child = subprocess.Popen(["sh", "-c", script, "-", point], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        wait_for(what, lambda: any(f"(cat): {what} {point}" in line for line in holders(point)))
        with pytest.raises(OSError, match="busy"):
            umount_held_by_none(point)
        child.communicate(b"")
    umount_held_by_none(point)


def test_a_passing_look_is_no_use(point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EBUSY without a holder: the reference was the kernel's, or somebody's who read /proc."""
    tries: list[int] = []

    def busy_twice(path: Path, flags: int = 0) -> None:
        tries.append(flags)
        if len(tries) < 3:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        umount(path, flags)

    monkeypatch.setattr(harness, "umount", busy_twice)
    umount_held_by_none(point)
    assert len(tries) == 3
    assert not mounted_at(point)


# -- the namespace


def test_the_run_has_a_private_mount_namespace() -> None:
    """Later threads and children are in it, nothing in it is shared with another, the parent sees no mount of ours."""
    lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]
    assert not any(line.partition(b" - ")[0].split(b" ")[6:] for line in lines)  # shared:N, master:N
    ours = os.readlink("/proc/self/ns/mnt")
    assert isolation.left not in (None, ours)
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(os.readlink("/proc/thread-self/ns/mnt")))
    thread.start()
    thread.join()
    with Mount(argv=stand_in()) as mount:
        seen.append(os.readlink(f"/proc/{mount.pid}/ns/mnt"))
        assert mount._guard is not None
        seen.append(os.readlink(f"/proc/{mount._guard.pid}/ns/mnt"))
        assert os.fsencode(mount.path) not in Path(f"/proc/{os.getppid()}/mountinfo").read_bytes()
    assert seen == [ours] * 3


INHERIT = """
import os, sys
from pathlib import Path
from tests import isolation, harness
kept = Path(sys.argv[1])
before = [point for point, _ in isolation.mounts()]
assert isolation.enter(kept)
print(*(point for point in before if point not in [point for point, _ in isolation.mounts()]), sep="\\n")
"""


def test_mounts_that_were_there_are_let_go(point: Path, tmp_path: Path) -> None:
    """A run that began while another one's mount was up would hold a copy, and that one's daemon could not end."""
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "other"], check=True)
    try:
        (point / "beneath").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", point / "beneath"], check=True)
        for kept, want in ((tmp_path / "other", [point, point / "beneath"]), (point / "x", [point / "beneath"])):
            command: list[str | Path] = [sys.executable, "-c", INHERIT, kept]
            done = subprocess.run(command, env=harness.environment(), capture_output=True, text=True, check=True)
            assert done.stdout.split() == list(map(str, want))
        assert mounted_at(point / "beneath")
        umount(point / "beneath")
    finally:
        umount(tmp_path / "other")


def test_not_root_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = os.readlink("/proc/self/ns/mnt")
    assert not isolation.enter()
    assert os.readlink("/proc/self/ns/mnt") == before


def test_a_report_with_any_name_can_be_sent() -> None:
    """One that could not ended a whole run of xdist: its sections hold what was logged."""
    sections = [("Captured log call", "name \udcff"), ("Captured stdout call", "plain")]
    sent = sendable({"sections": sections, "lines": (1, None, "\udc80")})
    assert sent["sections"] == [("Captured log call", "name \\udcff"), ("Captured stdout call", "plain")]
    assert sent["lines"] == (1, None, "\\udc80")
