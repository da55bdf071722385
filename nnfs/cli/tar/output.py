"""The archive that is written: a file that appears whole or not at all, or a stream."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from nnfs.cli.tar.member import BLOCK, RECORD
from nnfs.errors import OutOfSpace
from nnfs.store.reserve import NO_ROOM

_BUFFER = 1 << 20


class Output:
    """Takes the bytes of an archive. From a file, what was written last can be taken back."""

    def __init__(self, descriptor: int, *, is_file: bool) -> None:
        self.descriptor = descriptor
        self._is_file = is_file
        self._pending = bytearray()
        self.position = 0
        self.failed = False

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes."""
        self._pending += data
        self.position += len(data)
        if len(self._pending) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the system. Raises OSError, `OutOfSpace`."""
        try:
            with memoryview(self._pending) as view:
                done = 0
                while done < len(view):
                    done += os.write(self.descriptor, view[done:])
        except OSError as error:
            self.failed = True
            if error.errno in NO_ROOM:
                raise OutOfSpace("no space left for the archive") from error
            raise
        self._pending = bytearray()

    def pad(self, unit: int = BLOCK) -> None:
        """Fill with zeros up to a multiple of a unit."""
        self.write(bytes(-self.position % unit))

    def take_back(self, position: int) -> bool:
        """Take back everything from a position on, if that is possible."""
        flushed = self.position - len(self._pending)
        if position >= flushed:
            del self._pending[position - flushed :]
        elif self._is_file:
            self._pending = bytearray()
            os.ftruncate(self.descriptor, position)
            os.lseek(self.descriptor, position, os.SEEK_SET)
        else:
            return False
        self.position = position
        return True

    def end(self) -> None:
        """Write the end of the archive."""
        self.write(bytes(2 * BLOCK))
        self.pad(RECORD)
        self.flush()


@contextlib.contextmanager
def into(file: Path) -> Iterator[Output]:
    """Yield the output for a file, which gets its name when the body has ended well. A device or pipe is written to."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(file).st_mode):
            descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
            with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)):
                yield Output(descriptor, is_file=False)
            return
    partial = file.with_name(f".{file.name[:200]}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)):
            yield Output(descriptor, is_file=True)
            os.fsync(descriptor)
        os.rename(partial, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
