"""Runs steps on a mount until they are done or the daemon is gone; notes each answered step.

Usage: python -m tests.crash.workload MNT STEPS LOG FIRST: STEPS is a pickled list of `Step`, the first of them has
number FIRST + 1. Each answered one is appended to LOG as a record of the journal (one write each), so LOG may be the
journal of the shim itself.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import sys
from pathlib import Path

from tests.crash.journal import append_ack
from tests.crash.model import Step

GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EIO)
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


class Runner:
    """Executes steps below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.held: list[int] = []
        self.lazy: dict[str, int] = {}

    def run(self, step: Step) -> None:
        """One step; all its requests have been answered when this returns."""
        getattr(self, step.op)(step, self.root / step.path)

    def create(self, step: Step, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, step.number))

    def mkdir(self, step: Step, path: Path) -> None:
        path.mkdir(step.number)

    def symlink(self, step: Step, path: Path) -> None:
        path.symlink_to(step.other)

    def link(self, step: Step, path: Path) -> None:
        os.link(path, self.root / step.other)

    def unlink(self, step: Step, path: Path) -> None:
        path.unlink()

    def rmdir(self, step: Step, path: Path) -> None:
        path.rmdir()

    def rename(self, step: Step, path: Path) -> None:
        old, new = os.fsencode(path), os.fsencode(self.root / step.other)
        if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, step.number):
            raise OSError(ctypes.get_errno(), "renameat2")

    def chmod(self, step: Step, path: Path) -> None:
        path.chmod(step.number)

    def utime(self, step: Step, path: Path) -> None:
        os.utime(path, ns=(step.number, step.number))

    def setxattr(self, step: Step, path: Path) -> None:
        os.setxattr(path, step.other, step.data)

    def removexattr(self, step: Step, path: Path) -> None:
        os.removexattr(path, step.other)

    def truncate(self, step: Step, path: Path) -> None:
        os.truncate(path, step.number)

    def hold(self, step: Step, path: Path) -> None:
        self.held.append(os.open(path, os.O_RDONLY))

    def fsync(self, step: Step, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def write(self, step: Step, path: Path) -> None:
        extra = {"append": os.O_APPEND, "direct": os.O_DIRECT, "osync": os.O_SYNC}.get(step.how, 0)
        fd = os.open(path, os.O_WRONLY | extra)
        try:
            self._put(fd, step.data, step.number)
            if step.how == "fsync":
                os.fsync(fd)
        finally:
            os.close(fd)

    def lazy_write(self, step: Step, path: Path) -> None:
        if step.path not in self.lazy:
            self.lazy[step.path] = os.open(path, os.O_RDWR)
        self._put(self.lazy[step.path], step.data, step.number)

    def lazy_fsync(self, step: Step, path: Path) -> None:
        if step.path in self.lazy:
            os.fsync(self.lazy[step.path])
        else:
            self.fsync(step, path)

    @staticmethod
    def _put(fd: int, data: bytes, offset: int) -> None:
        with mmap.mmap(-1, len(data) or 1) as buffer:  # aligned, for O_DIRECT
            buffer[: len(data)] = data
            with memoryview(buffer) as aligned, aligned[: len(data)] as part:
                written = os.pwrite(fd, part, offset)
        if written != len(data):
            raise OSError(errno.EIO, "short write")


def main() -> None:
    """Exit 0 when all was done, 3 when the daemon went away in between."""
    root, steps, log = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes()), sys.argv[3]
    acks = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    runner = Runner(root)
    os.umask(0)
    for number, step in enumerate(steps, start=int(sys.argv[4]) + 1):
        try:
            runner.run(step)
        except OSError as error:
            if error.errno in GONE:
                os._exit(3)
            raise
        append_ack(acks, number)
    os._exit(0)  # the kernel closes the handles that are held


if __name__ == "__main__":
    main()
