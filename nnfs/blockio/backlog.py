"""The backlog of a mount: everything that is requested and not durable yet, and how its commits go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import trio

from nnfs.blockio.amendments import Amendments
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.interfaces import Metadata
from nnfs.errors import NnfsError, OutOfSpace, again

RECORD_BYTES = 1024  # of memory that a changed inode or dentry takes, about
KEPT_RECORDS = 64 + 2  # changed at most where a chunk is replaced that a snapshot holds: headers, map node, inode


class Backlog:
    """Both epochs with their dirty data and the amendments that wait, and the state of commits. Used by the loop only.

    `failure` is the error because of which nothing can be committed any more (anything but a lack of space): the mount
    turns read-only then. `no_space` is the reason why the last commit was kept in memory.
    """

    def __init__(self, meta: Metadata, data: DirtyData) -> None:
        self.meta, self.data = meta, data
        self.amendments = Amendments()
        self.failure: NnfsError | None = None
        self.no_space: OutOfSpace | None = None
        self.durable = self.wanted = meta.active.commit - 1  # numbers of commits
        self.attempts = 0  # commits that were tried
        self.woken = trio.Event()  # set when somebody wants a commit
        self._ended = trio.Event()

    # -- how much there is

    def _epochs(self) -> Iterator[Any]:
        yield from (epoch for epoch in (self.meta.active, self.meta.frozen) if epoch is not None)

    @property
    def empty(self) -> bool:
        clean = self.meta.active.empty and self.data.active.empty and self.meta.frozen is None
        return clean and not self.amendments

    @property
    def size(self) -> int:
        """Bytes of memory that the backlog takes, metadata included."""
        return self.data.size + sum(map(_size, self._epochs()))

    @property
    def active_size(self) -> int:
        """Bytes of memory that the active epoch takes."""
        return self.data.active.size + _size(self.meta.active)

    @property
    def records(self) -> int:
        """Estimated number of records that the next commits change."""
        changed: int = sum(
            len(epoch.inodes) + len(epoch.dentries) + epoch.xattr_bytes // RECORD_BYTES + 4 * len(epoch.release)
            for epoch in self._epochs()
        )
        return 2 * changed + KEPT_RECORDS * self.data.rewritten if self.meta.keeps else changed

    # -- how commits go

    def want_commit(self) -> None:
        """Have everything requested so far committed soon."""
        self.want(self.meta.active.commit)

    def want(self, commit: int) -> None:
        self.wanted = max(self.wanted, commit)
        self.woken.set()

    async def commit_ended(self) -> None:
        """Wait until a commit has ended, successfully or not. Raises `failure`."""
        await self._ended.wait()
        self.raise_failure()

    def end_commit(self) -> None:
        """Wake those who wait for a commit."""
        if self.failure is not None:
            self.amendments.fail(self.failure)
        self._ended.set()
        self._ended = trio.Event()

    def fail(self, error: NnfsError) -> None:
        """Note that nothing can be committed any more, and tell everybody who waits."""
        self.failure = error
        self.end_commit()

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise again(self.failure)

    def raise_trouble(self) -> None:
        """Raise the reason why nothing can be committed now, if there is one."""
        self.raise_failure()
        if self.no_space is not None:
            raise again(self.no_space)


def _size(epoch: Any) -> int:
    """Return an estimate of the bytes of memory that an epoch's metadata takes."""
    size: int = epoch.xattr_bytes + RECORD_BYTES * (len(epoch.inodes) + len(epoch.dentries))
    return size
