"""Quotas as the requests so far have left them: what counts for each, and what it refuses (DESIGN.md, "Quotas").

An inode's flags name the quota that counts it. A request changes the inode and the sums here together, and a freeze
takes both, so the records of a commit always say the same as its inodes.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from nnfs.errors import FsError, UsageError
from nnfs.store import quotas as records
from nnfs.store import schema
from nnfs.store.quotas import Quota
from nnfs.store.schema import Inode
from nnfs.store.txn import Snapshot

log = logging.getLogger(__name__)

NEAR, NEAR_SHARE = 64 << 20, 16  # bytes, and a share of a limit: writes that the kernel has in flight, twice


@dataclass(slots=True, eq=False)
class Level:
    """One quota, with the bytes and inodes that it limits: its own, and those of all quotas within it."""

    quota: Quota
    size: int = 0  # bytes
    inodes: int = 0

    def refuse(self, size: int, inodes: int) -> None:
        """Raise `FsError` if so much more is too much. EDQUOT; of the whole store ENOSPC."""
        quota = self.quota
        if (size > 0 and quota.max_bytes and self.size + size > quota.max_bytes) or (
            inodes > 0 and quota.max_inodes and self.inodes + inodes > quota.max_inodes
        ):
            raise FsError(errno.ENOSPC if quota.root == schema.ROOT_INO else errno.EDQUOT)


class Quotas:
    """All quotas of a mount. Used by the loop only.

    `visits` takes directories that have moved while inodes are being counted, so that none is missed; `wake` is called
    when a quota goes and something still counts for it.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        known, lost = records.load(snapshot)
        for number in lost:
            log.error("the record of quota %d is damaged: its limits do not hold until nnfs fsck --repair", number)
        self._levels: dict[int, Level] = {}
        self._chains: dict[int, tuple[Level, ...]] = {}
        self._roots: dict[int, int] = {}  # inode number of the directory to number
        self._changed: set[int] = set()  # since the last freeze
        self.visits: list[int] = []
        self.wake: Callable[[], None] = lambda: None
        self._set(known)

    def _set(self, known: Mapping[int, Quota]) -> None:
        """Take over quotas, after one has come or gone, or lies within another one."""
        sums = records.totals(known)
        self._levels = {number: Level(quota, *sums[number]) for number, quota in known.items()}
        self._roots = {quota.root: number for number, quota in known.items()}
        self._chains = {
            number: tuple(self._levels[one] for one in records.chain(known, number)) for number in known
        }  # fmt: skip

    # -- looking

    @property
    def active(self) -> bool:
        """Whether there are any quotas."""
        return bool(self._levels)

    def all(self) -> list[Quota]:
        """Return all quotas, in the order of their numbers."""
        return [self._levels[number].quota for number in sorted(self._levels)]

    def get(self, number: int) -> Quota | None:
        level = self._levels.get(number)
        return None if level is None else level.quota

    def at(self, ino: int) -> Quota | None:
        """Return the quota of a directory itself, None if it has none of its own."""
        number = self._roots.get(ino)
        return None if number is None else self._levels[number].quota

    def chain(self, number: int) -> tuple[Level, ...]:
        """Return the quotas that limit what has a number, innermost first."""
        return self._chains.get(number, ())

    # -- counting

    def check(self, number: int, size: int, inodes: int = 0) -> None:
        """Raise `FsError` if a limit forbids that so much more counts for a quota."""
        for level in self.chain(number):
            level.refuse(size, inodes)

    def is_near(self, number: int) -> bool:
        """Return whether so little is left of a limit of bytes that the kernel may have accepted more than that."""
        limits = [(level.quota.max_bytes, level.size) for level in self.chain(number) if level.quota.max_bytes]
        return any(most - size < max(NEAR, most // NEAR_SHARE) for most, size in limits)

    def add(self, number: int, size: int, inodes: int = 0) -> None:
        """Count so much more, or less, for a quota, whatever the limits."""
        self._add(self.chain(number), size, inodes)

    def enter(self, inode: Inode, number: int) -> None:
        """Count a new inode."""
        inode.quota = number
        self.add(number, inode.size, 1)

    def _add(self, levels: Iterable[Level], size: int, inodes: int) -> None:
        own: Quota | None = None
        for level in levels:
            level.size = max(0, level.size + size)
            level.inodes = max(0, level.inodes + inodes)
            own = own or level.quota
        if own is not None:
            own.size = max(0, own.size + size)
            own.inodes = max(0, own.inodes + inodes)
            self._changed.add(own.number)

    def move(self, inode: Inode, number: int) -> None:
        """Have an inode count for another quota (0: none), whatever the limits. The caller notes the change of it."""
        self._add(self.chain(inode.quota), -inode.size, -1)
        self._add(self.chain(number), inode.size, 1)
        inode.quota = number

    # -- names

    def check_link(self, inode: Inode, directory: Inode) -> None:
        """Check that an inode may get a name in a directory. Raises `FsError(EXDEV)`."""
        if inode.quota != directory.quota and self.active:
            raise FsError(errno.EXDEV)

    def check_move(self, inode: Inode, source: Inode, target: Inode) -> None:
        """Check that an inode may go from one directory to another. Raises `FsError` EXDEV, or as `check` does.

        A single inode moves on the spot, and so does a directory with a quota of its own. Another directory with
        content would take a walk, and a file with several names lies in several directories: EXDEV, so mv(1) copies.
        """
        if not self.active or source.quota == target.quota:
            return
        own = self.at(inode.ino)
        if own is not None:
            self._check_move(own.above, target.quota, *self._sums(own))
        elif inode.quota != target.quota:
            if not _stands_alone(inode):
                raise FsError(errno.EXDEV)
            self._check_move(inode.quota, target.quota, inode.size, 1)

    def _check_move(self, old: int, new: int, size: int, inodes: int) -> None:
        others = self.chain(old)
        for level in self.chain(new):
            if level not in others:
                level.refuse(size, inodes)

    def _sums(self, quota: Quota) -> tuple[int, int]:
        level = self._levels[quota.number]
        return level.size, level.inodes

    def moved(self, inode: Inode, target: Inode) -> None:
        """Count an inode where it is now, after `check_move` and the move."""
        if not self.active:
            return
        own = self.at(inode.ino)
        if own is not None:
            if own.above != target.quota:
                self.change(own, above=target.quota)
        elif inode.quota == target.quota:
            return
        elif _stands_alone(inode):
            self.move(inode, target.quota)
        elif inode.is_directory and any(quota.counting for quota in self.all()):
            self.visits.append(inode.ino)

    # -- changes of quotas

    def create(self, directory: Inode, max_bytes: int, max_inodes: int) -> Quota:
        """Give a directory limits of its own; its content is still to be counted. Raises `UsageError`."""
        number = next((n for n in range(1, records.LAST_NUMBER + 1) if n not in self._levels), 0)
        if not number:
            raise UsageError(f"a store has at most {records.LAST_NUMBER} quotas")
        quota = Quota(number, directory.ino, directory.quota, Quota.FLAG_COUNTING, max_bytes, max_inodes)
        self._set({**self._known(), number: quota})
        self.move(directory, number)
        return quota

    def change(self, quota: Quota, **fields: int) -> None:
        """Change fields of a quota's record."""
        for name, value in fields.items():
            setattr(quota, name, value)
        self._changed.add(quota.number)
        if "above" in fields:
            self._set(self._known())

    def remove(self, quota: Quota) -> None:
        """Begin to remove a quota: those within it lie within the one above from now on."""
        self._let_out(quota)
        self.change(quota, flags=Quota.FLAG_REMOVING, max_bytes=0, max_inodes=0)

    def removed(self, inode: Inode) -> None:
        """Note that an inode has lost its last name: with a directory goes its quota."""
        quota = self.at(inode.ino)
        if quota is not None:
            self.remove(quota)
            self.move(inode, quota.above)
            if not self.drop_if_empty(quota):
                self.wake()

    def drop_if_empty(self, quota: Quota) -> bool:
        """Forget a quota that is being removed and counts nothing any more. Return whether it is gone."""
        is_empty = quota.removing and not quota.inodes
        if is_empty:
            self._drop(quota)
        return is_empty

    def _let_out(self, quota: Quota) -> None:
        """Have the quotas within one lie within the one above it."""
        for other in self.all():
            if other.above == quota.number:
                self.change(other, above=quota.above)

    def _drop(self, quota: Quota) -> None:
        self._let_out(quota)  # those that were made since it is being removed
        self._changed.add(quota.number)
        known = self._known()
        del known[quota.number]
        self._set(known)

    def _known(self) -> dict[int, Quota]:
        return {number: level.quota for number, level in self._levels.items()}

    # -- commit

    def take(self, commit: int) -> dict[int, Quota | None]:
        """Return the records that have changed since the last call, None for one that is gone."""
        taken: dict[int, Quota | None] = {}
        for number in self._changed:
            quota = self.get(number)
            taken[number] = None if quota is None else replace(quota, commit=commit)
        self._changed.clear()
        return taken


def _stands_alone(inode: Inode) -> bool:
    """Return whether an inode is all that is to be counted when its name moves."""
    return inode.count == 0 if inode.is_directory else inode.nlink == 1
