"""Amendments that take snapshots of the tree and delete them. They run in the commit thread."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nnfs.errors import UsageError
from nnfs.fs.apply import Work
from nnfs.store import keeper, moments
from nnfs.store.moments import Moment

NODE = keeper.NODE
BUDGET = 256 * NODE  # kept records that are moved or dropped in one commit; a map node counts for `NODE`


def check_name(name: bytes) -> None:
    """Raise `UsageError` for a name that no snapshot can have."""
    if not 1 <= len(name) <= 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise UsageError("the name of a snapshot has 1 to 255 bytes, no slash, and is neither . nor ..")


def take(work: Work, name: bytes, now: int, used: Collection[int] = ()) -> Moment:
    """Take a snapshot of the tree as this commit leaves it. `now` is in ns.

    `used` are numbers that it must not have, since somebody may know inodes of an earlier snapshot by them. Raises
    `UsageError`.
    """
    check_name(name)
    known = moments.load(work.txn)
    if any(moment.name == name for moment in known):
        raise UsageError("there is a snapshot of this name already, or it is still being deleted")
    if any(moment.taken == work.epoch.commit for moment in known):
        raise UsageError("another snapshot is being taken: try again")
    taken = {*(moment.number for moment in known), *used}
    number = _free(taken, max(taken, default=0))
    state = work.state
    moment = Moment(
        number, name, work.epoch.commit, state.next_ino, now, state.inodes + work.done.inodes, state.logical, 0,
        work.epoch.commit,
    )  # fmt: skip
    moments.put(work.txn, moment)
    _note(work, (*known, moment))
    return moment


def _free(taken: Collection[int], last: int) -> int:
    """Return the number behind the last one, or the lowest that is free. Raises `UsageError`."""
    if last < moments.LAST_NUMBER:
        return last + 1
    for number in range(1, moments.LAST_NUMBER + 1):
        if number not in taken:
            return number
    raise UsageError(f"a store has at most {moments.LAST_NUMBER} snapshots: delete some")


def begin_delete(work: Work, names: Collection[bytes]) -> list[Moment]:
    """Mark snapshots as being deleted; `reap` does it. Raises `UsageError` when there is no such snapshot."""
    known = moments.load(work.txn)
    there = {moment.name for moment in known if not moment.deleting}
    for name in names:
        if name not in there:
            raise UsageError(f"there is no snapshot {name.decode(errors='backslashreplace')}")
    marked = {
        moment.number: replace(moment, flags=moment.flags | Moment.FLAG_DELETING, commit=work.epoch.commit)
        for moment in known
        if moment.name in names
    }
    for moment in marked.values():
        moments.put(work.txn, moment)
    _note(work, tuple(marked.get(moment.number, moment) for moment in known))
    return list(marked.values())


def reap(work: Work, budget: int = BUDGET) -> bool:
    """Delete a part of the oldest snapshot that is being deleted. Return whether anything is left to delete."""
    known = moments.load(work.txn)
    moment = next((moment for moment in known if moment.deleting), None)
    if moment is None:
        return False
    if not keeper.reap(work.txn, work.blocks, known, moment.number, budget):
        moments.drop(work.txn, moment)
        known = tuple(one for one in known if one is not moment)
        _note(work, known)
    return any(moment.deleting for moment in known)


def _note(work: Work, known: tuple[Moment, ...]) -> None:
    """Note the snapshots that there are from this commit on, also in the superblock."""
    work.done.moments = known
    before = work.superblock.ro_compat
    work.superblock.ro_compat = before & ~moments.RO_SNAPSHOTS | (moments.RO_SNAPSHOTS if known else 0)
    if work.superblock.ro_compat != before:
        work.txn.put_superblock(work.superblock)
