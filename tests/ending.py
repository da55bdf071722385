"""The end of daemons that are no children of the test's: one that does not come is told with stacks and log."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.guard import ABORT_S
from tests.harness import LOG_TAIL, wait_for


def gone(pid: int) -> bool:
    """Whether a process has ended; its init may take its time to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kernel_stacks(pid: int) -> str:
    """Return the kernel stack of each thread of a process."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            found.append(f"{task.name} {(task / 'wchan').read_text()}\n{(task / 'stack').read_text()}")
    return "".join(found)


def wait_gone(pid: int, log: Path) -> None:
    """Wait until a daemon has ended. One that does not is sent SIGABRT, as `Mount` does with its own."""
    try:
        wait_for("the daemon's end", lambda: gone(pid))
    except AssertionError as trouble:
        trouble.add_note(f"its threads in the kernel:\n{kernel_stacks(pid)}")
        with contextlib.suppress(ProcessLookupError, AssertionError):
            os.kill(pid, signal.SIGABRT)
            wait_for("its end by SIGABRT", lambda: gone(pid), ABORT_S)
        text = log.read_text(errors="backslashreplace") if log.exists() else ""
        trouble.add_note(f"its stacks and log:\n{text[-LOG_TAIL:]}")
        raise
