"""The process that watches one mount: it ends a daemon that hangs, and clears up when pytest is gone.

argv: daemon pid, mount point, directory of both. stdin: lines "SECONDS\\n" (new deadline from now; 0: none), or "q\\n";
end of file: pytest is gone. Exit status 3: the daemon was killed. Run by path with -I -S: it imports nothing of nnfs.

A daemon that misses its deadline gets SIGABRT first, so that faulthandler writes its stacks to its log, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time

ABORT_S = float(os.environ.get("NNFS_TEST_ABORT_S", "20"))  # what writing the stacks may take on a busy machine
MNT_FORCE, MNT_DETACH = 1, 2


def end(pidfd: int, *, stacks: bool) -> None:
    """Kill the daemon, with SIGABRT first where its stacks are of use."""
    with contextlib.suppress(ProcessLookupError):
        if stacks:
            signal.pidfd_send_signal(pidfd, signal.SIGABRT)
            select.select([pidfd], [], [], ABORT_S)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def watch(pid: int, where: bytes, base: str) -> int:
    """Wait for deadlines, the word to go, or the end of pytest."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended and was waited for already
        pidfd = -1
    deadline: float | None = None
    while True:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([0], [], [], wait)
        data = os.read(0, 4096) if ready else b""
        if data.endswith(b"q\n"):
            return 0
        if data:
            seconds = float(data.split()[-1])
            deadline = time.monotonic() + seconds if seconds > 0 else None
            continue
        if pidfd >= 0:
            end(pidfd, stacks=not ready)
        ctypes.CDLL(None).umount2(where, MNT_FORCE | MNT_DETACH)
        if ready:
            shutil.rmtree(base, ignore_errors=True)
        return 3


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), os.fsencode(sys.argv[2]), sys.argv[3]))
