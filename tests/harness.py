"""Mounts for tests: a real daemon on a store of its own, and whatever is needed to be rid of it in all cases.

A process that reads from a hung FUSE mount sleeps uninterruptibly, the one that runs pytest included, so a hang
cannot be ended from within. Each mount is therefore watched by a guard process (tests/guard.py): it kills the daemon
(the kernel then answers every waiting request with ENOTCONN) when a deadline passes or pytest is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from nnfs.store.env import Store
from nnfs.store.schema import DEFAULT_CHUNK_SIZE
from tests.caches import drop_caches
from tests.guard import ABORT_S, MNT_DETACH, MNT_FORCE
from tests.holders import holders
from tests.isolation import PREFIX, mounts

REPO = Path(__file__).resolve().parent.parent
FULL = os.environ.get("NNFS_FULL", "") not in ("", "0")
libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")

# A daemon that is asked to go has this long; a mount this long to appear; anything else that is waited for this long.
# They end what would never end and say nothing about speed: whatever else runs on the machine must not reach them.
START_S = float(os.environ.get("NNFS_TEST_START_S", "300"))
STOP_S = float(os.environ.get("NNFS_TEST_STOP_S", "300"))
WAIT_S = float(os.environ.get("NNFS_TEST_WAIT_S", "300"))
TEST_S = float(os.environ.get("NNFS_TEST_DEADLINE_S", "3600" if FULL else "900"))  # one test on a mount
LOG_TAIL = 20_000  # characters of a daemon's log in a failure: stacks of all its threads and what came before

# A log record begins with a line that has its level near the start; a traceback belongs to the record before it.
RECORD = r"^(?=(?:\S+ ){0,5}(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)"
TROUBLE = re.compile(r"Traceback \(most recent call last\)|\b(ERROR|CRITICAL)\b")


def wait_for(what: str, ready: Callable[[], T | None], limit: float | None = None, step: float = 0.01) -> T:
    """Poll *ready* until it gives something true; AssertionError naming *what* after *limit* seconds (`WAIT_S`)."""
    limit = WAIT_S if limit is None else limit
    end = time.monotonic() + limit
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit:.0f} s in vain for {what}")
        time.sleep(step)


def mounted_at(path: Path) -> bool:
    """Whether *path* itself is a mount point, without touching it (it may hang)."""
    return any(point == path for point, _ in mounts())


def umount(path: Path, flags: int = 0) -> None:
    """umount2(2); OSError as usual."""
    if libc.umount2(os.fsencode(path), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def umount_held_by_none(path: Path) -> None:
    """umount(2) of a mount that is in nobody's use, if nobody else was faster. The OSError names who holds it.

    EBUSY alone does not say that somebody does: whatever reads /proc/PID/fd or walks the tree takes a reference for a
    moment, and the kernel drops some of its own in its own time. It counts where a process can be named.
    """

    def gone() -> bool:
        try:
            umount(path)
        except OSError as error:
            found = holders(path) if error.errno == errno.EBUSY else []
            if (error.errno == errno.EBUSY and not found) or (error.errno == errno.EINVAL and not mounted_at(path)):
                return error.errno == errno.EINVAL  # the guard was faster
            for line in found:
                error.add_note(f"held by {line}")
            raise
        return True

    wait_for(f"{path}, which no process holds, to be unmounted", gone)


def work_dir() -> Path:
    """A new directory on disk (tmpfs would hide what punched holes and fsync do); other users may look inside."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.environ.get("NNFS_TEST_DIR", "/var/tmp")))
    path.chmod(0o755)
    return path


def command(*args: str, env: dict[str, str] | None = None) -> list[str]:
    """The argv of `nnfs ARGS`."""
    return [sys.executable, "-m", "nnfs", *args]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Environment for children: this checkout comes first on the path."""
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **(extra or {})}


def nnfs(*args: str, check: bool = True, timeout: float = WAIT_S) -> subprocess.CompletedProcess[str]:
    """Run `nnfs ARGS` to its end and return output and exit status."""
    done = subprocess.run(command(*args), env=environment(), capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"nnfs {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Plain:
    """A directory of any other filesystem, with the interface of `Mount` as far as it makes sense."""

    is_nnfs = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def fstype(self) -> str:
        """The filesystem's name as in /proc/self/mountinfo."""
        return max((len(point.parts), kind) for point, kind in mounts() if self.path.is_relative_to(point))[1]

    def drop_caches(self) -> None:
        """Sync, then drop the kernel's caches."""
        drop_caches(self.path)

    def remount(self) -> None:
        """Nothing to mount again here: the caches are dropped."""
        self.drop_caches()

    def revive(self) -> None:
        """Nothing that could have died."""

    def deadline(self, seconds: float = TEST_S) -> None:
        """Nothing to guard."""


class Mount:
    """`nnfs mount STORE MNT -f` as a child process; a context manager that leaves nothing behind.

    *store*: a store (or an empty directory) to use, kept at the end; by default a new one that goes at the end.
    *chunk_size*: of a store that is made. *env*: added to the daemon's environment. *argv*: what
    to start instead of `nnfs mount`.
    On leaving without an exception the daemon must have ended with status 0 and logged no ERROR and no traceback
    that `expect_log` did not announce.
    """

    is_nnfs = True
    fstype = "fuse.nnfs"

    def __init__(
        self,
        store: Path | None = None,
        *,
        options: Sequence[str] = (),
        chunk_size: int | None = None,
        env: dict[str, str] | None = None,
        argv: Callable[[Mount], list[str]] | None = None,
    ) -> None:
        self.base = work_dir()
        self.store = store or self.base / "store"
        self.path = self.base / "mnt"
        self.logfile = self.base / "daemon.log"
        self.options = list(options)
        self.env = env
        self._argv = argv
        self._chunk_size = chunk_size
        self._expected: list[re.Pattern[str]] = []
        self._read = 0  # characters of the log that `unexpected` has looked at
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    # -- life cycle -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.store.mkdir(exist_ok=True)
            self.path.mkdir()
            if set(os.listdir(self.store)) <= {"lost+found"}:  # a mount makes none but for a person at a terminal
                Store.create(self.store, self._chunk_size or DEFAULT_CHUNK_SIZE).close()
            self.mount()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self._child is not None:
                self.unmount()
            self.check_log()
        except (AssertionError, OSError) as trouble:
            if value is None:
                raise
            value.add_note(f"and at the unmount: {trouble}")
        finally:
            if value is not None:
                value.add_note(f"daemon's log:\n{self.log()[-LOG_TAIL:]}")
            self._clean()

    def mount(self) -> None:
        """Start the daemon and wait until the kernel shows the mount."""
        assert self._child is None, "mounted already"
        argv = self._argv(self) if self._argv else command("mount", str(self.store), str(self.path), "-f")
        if self.options:
            argv = [*argv, "-o", ",".join(self.options)]
        with self.logfile.open("ab") as log:
            self._child = subprocess.Popen(
                argv,
                env=environment(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.base,
                start_new_session=True,
            )
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._child.pid, resource.RLIMIT_CORE, (0, 0))  # of an abort the stacks are enough
        guard = str(REPO / "tests" / "guard.py")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard, str(self._child.pid), str(self.path), str(self.base)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

        def up() -> bool:
            assert self._child is not None
            code = self._child.poll()
            assert code is None, f"daemon ended with {code} before the mount was up:\n{self.log()}"
            return mounted_at(self.path)

        self.deadline(START_S + ABORT_S + 60)
        try:
            wait_for(f"the mount {self.path}", up, START_S)
        except AssertionError as trouble:
            self._abort(trouble)
            raise
        # Listed before INIT is answered; the first request waits for that.
        os.stat(self.path)
        self.deadline(0)

    def unmount(self, expect: int | None = 0) -> None:
        """umount(2), then wait until the daemon has committed and ended with status *expect* (None: any)."""
        child = self._child
        assert child is not None, "not mounted"
        self.deadline(STOP_S + ABORT_S + 60)
        if mounted_at(self.path):
            umount_held_by_none(self.path)
        self.wait_end()
        code = child.returncode
        self._child = None
        self._dismiss_guard()
        assert expect is None or code == expect, f"daemon ended with {code}, not {expect}:\n{self.log()[-4000:]}"

    def wait_end(self) -> None:
        """Wait until the daemon has ended; one that does not is aborted, and its stacks are in the failure."""
        assert self._child is not None, "not mounted"
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            trouble = AssertionError(f"the daemon had not ended after {STOP_S:g} s")
            self._abort(trouble)
            raise trouble from None

    def _abort(self, trouble: AssertionError) -> None:
        """SIGABRT (faulthandler is on), so that the failure tells where the daemon stands."""
        assert self._child is not None
        self._child.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(ABORT_S)
        trouble.add_note(f"its stacks and log:\n{self.log()[-LOG_TAIL:]}")

    def remount(self) -> None:
        """Unmount cleanly and mount again: everything is read from the store."""
        self.unmount()
        self.mount()

    def revive(self) -> None:
        """After a failed test: a fresh daemon when this one is gone or has turned read-only."""
        with contextlib.suppress(OSError):
            if self.alive and mounted_at(self.path):
                probe = self.path / ".probe"
                probe.touch()
                probe.unlink()
                return
        if self._child is not None:
            self.kill()
        self._read = len(self.log())  # what it says is the failed test's
        self.mount()

    def kill(self) -> None:
        """SIGKILL as a crash would, then detach the dead mount."""
        assert self._child is not None, "not mounted"
        self._child.kill()
        self._child.wait(STOP_S)
        self._child = None
        self._dismiss_guard()
        self._detach()

    def drop_caches(self) -> None:
        """Sync, then drop the kernel's caches."""
        drop_caches(self.path)

    def deadline(self, seconds: float = TEST_S) -> None:
        """From now on the guard waits this long before it kills the daemon; 0: for ever."""
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(f"{seconds}\n".encode())
                self._guard.stdin.flush()

    # -- looking ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._child is not None, "not mounted"
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def hung(self) -> bool:
        """Whether the guard had to kill the daemon."""
        return self._guard is not None and self._guard.poll() == 3

    def log(self) -> str:
        """Return the lines that the daemon has written so far."""
        return self.logfile.read_text(errors="backslashreplace") if self.logfile.exists() else ""

    def expect_log(self, pattern: str) -> None:
        """Records of the log in which *pattern* is found are no failure of the test."""
        self._expected.append(re.compile(pattern))

    def unexpected(self) -> list[str]:
        """Troubled records that nobody announced; a record is a line with a level and all that follows it.

        Each is told once: the next test on the same mount starts with a clean slate.
        """
        log = self.log()
        records = re.split(RECORD, log[self._read :], flags=re.MULTILINE)
        self._read = len(log)
        return [r for r in records if TROUBLE.search(r) and not any(p.search(r) for p in self._expected)]

    def check_log(self) -> None:
        """AssertionError when the daemon complained unexpectedly."""
        assert not self.hung, f"the guard killed a daemon that hung:\n{self.log()[-LOG_TAIL:]}"
        found = self.unexpected()
        assert not found, "unexpected in the daemon's log:\n" + "\n".join(found)

    # -- cleaning ---------------------------------------------------------------------------------------------------

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write(b"q\n")
            guard.stdin.close()
        code = guard.wait(30)
        assert code == 0, f"the guard killed a daemon that hung:\n{self.log()[-LOG_TAIL:]}"

    def _detach(self) -> None:
        """FORCE aborts the connection, so that no process waits for answers; DETACH takes what is busy away, too."""
        for _ in range(8):
            if not mounted_at(self.path):
                return
            with contextlib.suppress(OSError):
                umount(self.path, MNT_FORCE | MNT_DETACH)
        raise AssertionError(f"{self.path} cannot be unmounted")

    def _clean(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            # The session of its own holds the daemon and its workers, nothing else.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(STOP_S)
        with contextlib.suppress(AssertionError):
            self._dismiss_guard()
        self._detach()
        shutil.rmtree(self.base)
