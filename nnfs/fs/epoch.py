"""An epoch: the metadata that was requested and is not committed yet (DESIGN.md, "Epochs")."""

from __future__ import annotations

from dataclasses import dataclass, field

from sortedcontainers import SortedDict

from nnfs.store.quotas import Quota
from nnfs.store.schema import Inode, State


@dataclass(slots=True)
class Epoch:
    """Changes of metadata between two freezes. The value None in a mapping stands for a removal."""

    commit: int  # the number that this epoch's commit will have
    inodes: dict[int, Inode] = field(default_factory=dict)  # changed or new; the live objects until the freeze
    dentries: SortedDict[bytes, bytes | None] = field(default_factory=SortedDict)  # key to sealed record
    xattrs: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)  # ino: name: sealed record
    xattr_bytes: int = 0  # of memory
    orphans: set[int] = field(default_factory=set)  # have lost their last name
    release: set[int] = field(default_factory=set)  # nobody can reach them any more: to be deleted
    state: State = field(default_factory=State)  # counters at the freeze
    quotas: dict[int, Quota | None] = field(default_factory=dict)  # records that change
    unsettles: bool = False  # policies have changed: recompression is to look at settled files again

    @property
    def empty(self) -> bool:
        return not (self.inodes or self.dentries or self.xattrs or self.orphans or self.release)

    def absorb(self, later: Epoch) -> None:
        """Add the changes of the epoch that follows, before a failed commit is tried again."""
        self.commit = later.commit
        self.inodes.update(later.inodes)
        self.dentries.update(later.dentries)
        for ino, names in later.xattrs.items():
            self.xattrs.setdefault(ino, {}).update(names)
        self.xattr_bytes += later.xattr_bytes
        self.orphans |= later.orphans
        self.release |= later.release
        self.state = later.state
        self.quotas.update(later.quotas)
        self.unsettles |= later.unsettles
