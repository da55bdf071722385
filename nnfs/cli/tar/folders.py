"""Directories below the target of an import, reached component by component: no symbolic link leads out of it."""

from __future__ import annotations

import errno
import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = tuple[bytes, ...]


def parts_of(name: bytes) -> Parts:
    """Return the components of a name; a slash in front does not count. Raises OSError for one that is refused."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise OSError(errno.EINVAL, "refused: its name has .., and leads out of the directory")
    if b"\0" in name:
        raise OSError(errno.EINVAL, "refused: its name has a byte 0")
    return parts


class Folders:
    """Descriptors of the directories on the way to the last member: the next one is mostly near."""

    def __init__(self, top: int, mode: int) -> None:
        self._top, self._mode = top, mode
        self._open: list[tuple[bytes, int]] = []

    def open(self, parts: Parts, *, make: bool = True) -> int:
        """Return the descriptor of a directory, valid until the next call. Raises OSError.

        `make`: what is missing is made.
        """
        same = 0
        for (name, _), wanted in zip(self._open, parts, strict=False):
            if name != wanted:
                break
            same += 1
        self.forget(same)
        for name in parts[same:]:
            self._open.append((name, self._enter(name, self.last, make)))
        return self.last

    @property
    def last(self) -> int:
        """The directory that was opened last."""
        return self._open[-1][1] if self._open else self._top

    def forget(self, depth: int = 0) -> None:
        """Close all directories from a depth on: one of them may not be there any more."""
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def _enter(self, name: bytes, folder: int, make: bool) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(name, folder):
                raise OSError(errno.ELOOP, "refused: a symbolic link lies on its way") from error
            raise
        os.mkdir(name, self._mode, dir_fd=folder)
        os.chmod(name, self._mode, dir_fd=folder)  # the umask of this process is a narrow one
        return os.open(name, _DIRECTORY, dir_fd=folder)


def _is_link(name: bytes, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
