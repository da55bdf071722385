"""Comparing what a damaged store shows with what it held: each answer is right, or an error, or a lie."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from nnfs.blockio.dirty import DirtyData
from nnfs.errors import NnfsError
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store.env import Store
from tests.blockio.kit import make_reader

READ_SIZE = 256 * 1024
Stat = tuple[int, ...]


class View(Protocol):
    """One way to look at a store. Paths are relative, "" is the root. Errors: `OSError`, `NnfsError`."""

    def names(self, path: str) -> list[str]: ...
    def stat(self, path: str) -> Stat: ...
    def target(self, path: str) -> str: ...
    def xattrs(self, path: str) -> dict[str, bytes]: ...
    def pieces(self, path: str) -> Iterator[Callable[[], bytes]]: ...


class Mounted:
    """Through the kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, path: str) -> list[str]:
        return os.listdir(self.root / path)

    def stat(self, path: str) -> Stat:
        st = os.lstat(self.root / path)
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size  # of a directory it means nothing
        return (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, size, st.st_mtime_ns)

    def target(self, path: str) -> str:
        return os.readlink(self.root / path)

    def xattrs(self, path: str) -> dict[str, bytes]:
        full = self.root / path
        names = os.listxattr(full, follow_symlinks=False)
        return {name: os.getxattr(full, name, follow_symlinks=False) for name in names}

    def pieces(self, path: str) -> Iterator[Callable[[], bytes]]:
        fd = os.open(self.root / path, os.O_RDONLY)
        try:
            for offset in range(0, os.fstat(fd).st_size, READ_SIZE):
                yield partial(_pread_all, fd, READ_SIZE, offset)
        finally:
            os.close(fd)


def _pread_all(fd: int, size: int, offset: int) -> bytes:
    """pread(2) ends short of a page that cannot be read; going on from there gives the error."""
    parts = b""
    while len(parts) < size and (part := os.pread(fd, size - len(parts), offset + len(parts))):
        parts += part
    return parts


class Offline:
    """Through the daemon's own layers, without daemon and kernel: some 50 times quicker than a mount."""

    def __init__(self, store: Store, cold: Any = None) -> None:
        self.fs = Filesystem(store)
        self._xattrs = Xattrs(self.fs)
        self._names = Namespace(self.fs, self._xattrs)
        data = DirtyData(store.superblock.chunk_size)
        _, self.reader = make_reader(store, self.fs, data, cache_bytes=0, ahead=0, cold=cold)

    def _inode(self, path: str):  # type: ignore[no-untyped-def]
        inode = self.fs.inode(1)
        for name in filter(None, path.split("/")):
            found = self._names.lookup(inode.ino, os.fsencode(name))
            if found is None:
                raise FileNotFoundError(path)
            inode = found
        return inode

    def names(self, path: str) -> list[str]:
        entries = self._names.entries(self._inode(path).ino, 0)
        return [os.fsdecode(name) for _, name, _ in entries if name not in (b".", b"..")]

    def stat(self, path: str) -> Stat:
        i = self._inode(path)
        return (i.mode, i.uid, i.gid, i.nlink, 0 if stat.S_ISDIR(i.mode) else i.size, i.mtime)

    def target(self, path: str) -> str:
        return os.fsdecode(self._inode(path).target)

    def xattrs(self, path: str) -> dict[str, bytes]:
        inode = self._inode(path)
        return {os.fsdecode(name): self._xattrs.get(inode, name) or b"" for name in self._xattrs.names(inode)}

    def pieces(self, path: str) -> Iterator[Callable[[], bytes]]:
        inode = self._inode(path)

        async def read(offset: int) -> bytes:
            async with trio.open_nursery() as nursery:
                self.reader.start(nursery)
                try:
                    return bytes(await self.reader.read(inode, offset, READ_SIZE))
                except NnfsError as error:  # raised here it would leave the nursery as a group
                    failure = error
                finally:
                    nursery.cancel_scope.cancel()
            raise failure

        for offset in range(0, inode.size, READ_SIZE):
            yield partial(trio.run, read, offset)


@dataclass
class Truth:
    """The content that a store held before the damage."""

    names: dict[str, set[str]] = field(default_factory=dict)  # of directories
    stats: dict[str, Stat] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    xattrs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, view: View) -> Truth:
        """Everything that a view shows; any error is raised."""
        truth = cls()
        truth._add(view, "")
        return truth

    def _add(self, view: View, path: str) -> None:
        self.stats[path] = view.stat(path)
        self.xattrs[path] = view.xattrs(path)
        mode = self.stats[path][0]
        if stat.S_ISDIR(mode):
            self.names[path] = set(view.names(path))
            for name in self.names[path]:
                self._add(view, f"{path}/{name}".lstrip("/"))
        elif stat.S_ISLNK(mode):
            self.targets[path] = view.target(path)
        elif stat.S_ISREG(mode):
            self.data[path] = b"".join(piece() for piece in view.pieces(path))


@dataclass
class Verdict:
    """Answers counted; `lies` names those that were neither right nor an error."""

    right: int = 0
    errors: int = 0
    lies: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], object], want: object) -> None:
        """One answer. ENOENT for a name that exists is a lie like any other."""
        try:
            got = question()
        except FileNotFoundError:
            self.lies.append(f"{what}: no such file")
        except (OSError, NnfsError):
            self.errors += 1
        else:
            if got == want:
                self.right += 1
            else:
                self.lies.append(f"{what}: {got!r:.200} in place of {want!r:.200}")


def _names(view: View, path: str) -> set[str]:
    return set(view.names(path))


def judge(view: View, truth: Truth) -> Verdict:
    """Ask for everything that the truth knows."""
    verdict = Verdict()
    for path, names in truth.names.items():
        verdict.ask(f"names of {path!r}", partial(_names, view, path), names)
    for path, want in truth.stats.items():
        verdict.ask(f"stat {path!r}", partial(view.stat, path), want)
        verdict.ask(f"xattrs {path!r}", partial(view.xattrs, path), truth.xattrs[path])
    for path, target in truth.targets.items():
        verdict.ask(f"target {path!r}", partial(view.target, path), target)
    for path, data in truth.data.items():
        _judge_data(view, verdict, path, data)
    return verdict


def _judge_data(view: View, verdict: Verdict, path: str, data: bytes) -> None:
    try:
        for number, piece in enumerate(view.pieces(path)):
            want = data[number * READ_SIZE : (number + 1) * READ_SIZE]
            verdict.ask(f"data of {path!r} from {number * READ_SIZE}", piece, want)
    except FileNotFoundError:
        verdict.lies.append(f"open {path!r}: no such file")
    except (OSError, NnfsError):
        verdict.errors += 1
