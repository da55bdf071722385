"""flock(2), fcntl(2) locks of processes and of handles."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from tests.semantics.kit import fails, in_child

F_OFD_SETLK = 37


def test_flock(mnt: Path) -> None:
    with (mnt / "f").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)

        def other(how: int, code: int | None) -> None:
            with (mnt / "f").open("r") as f:
                if code is None:
                    fcntl.flock(f, how | fcntl.LOCK_NB)
                else:
                    with fails(code):
                        fcntl.flock(f, how | fcntl.LOCK_NB)

        in_child(lambda: other(fcntl.LOCK_EX, errno.EWOULDBLOCK))
        in_child(lambda: other(fcntl.LOCK_SH, errno.EWOULDBLOCK))
        fcntl.flock(mine, fcntl.LOCK_SH)
        in_child(lambda: other(fcntl.LOCK_SH, None))
        in_child(lambda: other(fcntl.LOCK_EX, errno.EWOULDBLOCK))
        fcntl.flock(mine, fcntl.LOCK_UN)
        in_child(lambda: other(fcntl.LOCK_EX, None))


def test_a_closed_handle_gives_its_flock_up(mnt: Path) -> None:
    a = (mnt / "f").open("w")
    fcntl.flock(a, fcntl.LOCK_EX)
    with (mnt / "f").open() as b:
        with fails(errno.EWOULDBLOCK):
            fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
        a.close()
        fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_record_locks(mnt: Path) -> None:
    with (mnt / "f").open("w+b") as mine:
        mine.write(bytes(100))
        mine.flush()
        fcntl.lockf(mine, fcntl.LOCK_EX, 10, 20)

        def other() -> None:
            with (mnt / "f").open("r+b") as f:
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 0)
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 30)
                with fails(errno.EAGAIN, errno.EACCES):
                    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 29)
                with fails(errno.EAGAIN, errno.EACCES):
                    fcntl.lockf(f, fcntl.LOCK_SH | fcntl.LOCK_NB, 0, 0)
                query = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
                kind, _, start, length, pid = struct.unpack("hhqqi", fcntl.fcntl(f, fcntl.F_GETLK, query)[:28])
                assert (kind, start, length, pid) == (fcntl.F_WRLCK, 20, 10, os.getppid())

        in_child(other)
        fcntl.lockf(mine, fcntl.LOCK_UN, 10, 20)

        def free() -> None:
            with (mnt / "f").open("r+b") as f:
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)

        in_child(free)


def test_locks_of_handles(mnt: Path) -> None:
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
    with (mnt / "f").open("w+b") as a, (mnt / "f").open("r+b") as b:
        fcntl.fcntl(a, F_OFD_SETLK, lock)
        with fails(errno.EAGAIN):
            fcntl.fcntl(b, F_OFD_SETLK, lock)
        a.close()
        fcntl.fcntl(b, F_OFD_SETLK, lock)
