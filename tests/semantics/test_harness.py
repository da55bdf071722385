"""The harness itself, with stand-ins for the daemon: it must notice what goes wrong, and leave nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.harness import Mount, mounted_at

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
TRACE = (
    "2026 INFO a: fine\\n2026 ERROR b: bad\\nTraceback (most recent call last):\\n  x\\nKeyError: 7\\n2026 INFO c: fine"
)


def stand_in(words: str = "2026 INFO all is well", code: int = 0) -> Callable[[Mount], list[str]]:
    words = words.replace("\\n", "\n")
    return lambda mount: [sys.executable, "-c", STAND_IN, str(mount.path), words, str(code)]


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
    assert mount._child.wait(60) == -9
    with pytest.raises(AssertionError, match="guard killed"):
        mount.__exit__(None, None, None)
    assert gone(mount)
