"""Visits a tree by descriptors of its directories: paths of any length, no symbolic link followed, one filesystem."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from nnfs.cli.tar.report import Report

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a tree: its path from the top, and how it is reached. `path` is b"" for the top itself."""

    path: bytes
    folder: int  # descriptor of the directory that it lies in
    name: bytes
    status: os.stat_result

    @property
    def by_descriptor(self) -> bytes:
        """Return a path for system calls that take no descriptor of a directory."""
        return b"/proc/self/fd/%d/%s" % (self.folder, self.name)


def allow_depth() -> None:
    """Let this process open as many files as it may: each level of a tree takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def quietly_open(name: bytes, flags: int, folder: int) -> int:
    """Open a file; its atime stays if this user may keep it."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(name, flags, dir_fd=folder)


def walk(top: int, report: Report) -> Iterator[Found]:
    """Yield what lies below a directory, each directory before what is in it, names in order.

    `report` gets what cannot be listed, and where another filesystem begins.
    """
    device = os.fstat(top).st_dev
    levels: list[tuple[int, bytes, Iterator[bytes]]] = [(os.dup(top), b"", iter(_names(top)))]
    try:
        while levels:
            folder, path, names = levels[-1]
            name = next(names, None)
            if name is None:
                os.close(levels.pop()[0])
                continue
            here = path + name
            try:
                found = Found(here, folder, name, os.stat(name, dir_fd=folder, follow_symlinks=False))
                yield found
                if not stat.S_ISDIR(found.status.st_mode):
                    continue
                if found.status.st_dev != device:
                    report.skip(here, "another filesystem is mounted there")
                    continue
                descriptor = quietly_open(name, _DIRECTORY, folder)
            except OSError as error:
                _note(report, here, error)
                continue
            levels.append((descriptor, here + b"/", iter(())))
            try:
                levels[-1] = descriptor, here + b"/", iter(_names(descriptor))
            except OSError as error:
                _note(report, here, error)
    finally:
        for descriptor, _, _ in levels:
            os.close(descriptor)


def _names(folder: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(folder))


def _note(report: Report, path: bytes, error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        report.skip(path, "it was removed meanwhile")
    else:
        report.fail(path, error)
