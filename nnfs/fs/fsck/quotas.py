"""Checks of quotas: their records, their sums, and that directories count where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from nnfs.fs.fsck.context import Context, Node
from nnfs.fs.fsck.fixer import Fixer
from nnfs.fs.fsck.tree import DIR
from nnfs.store import quotas
from nnfs.store.quotas import QUOTA_KEY, Quota
from nnfs.store.schema import ROOT_INO

SHIFT = 16  # of the quota's number in an inode's flags


def check_quotas(c: Context) -> None:
    """Check everything about quotas, after the directories are known."""
    sums: dict[int, list[int]] = {}
    for node in c.nodes.values():
        if number := node.flags >> SHIFT:
            own = sums.setdefault(number, [0, 0])
            own[0] += node.size
            own[1] += 1
    known = _records(c, sums)
    says = bool(c.store.superblock.ro_compat & quotas.RO_QUOTAS)
    if says != bool(quotas.numbers(c.snapshot)):
        c.problem("quota", f"the superblock says {'' if says else 'not '}that there are quotas", fix=_mark)
    for number, quota in known.items():
        _check_one(c, known, quota, *sums.get(number, (0, 0)))
    if not c.unreadable:
        _check_directories(c, known)


def _records(c: Context, sums: Mapping[int, list[int]]) -> dict[int, Quota]:
    """Check both copies of each record. Return the quotas that are known."""
    known: dict[int, Quota] = {}
    for table in ("meta", "main"):
        for key, _ in c.snapshot.prefix(table, QUOTA_KEY):
            if len(key) != len(QUOTA_KEY) + 2:
                c.problem("key", f"{table} has a key {key.hex()}", fix=partial(Fixer.delete, table=table, key=key))
    for number in sorted({*quotas.numbers(c.snapshot), *sums}):
        copies = quotas.copies(c.snapshot, number)
        quota = next((copy for copy in copies if copy is not None), None)
        if quota is None:
            size, inodes = sums.get(number, (0, 0))
            made = known[number] = _rebuilt(c, number, size, inodes)
            c.problem(
                "quota", f"quota {number}: no sound record, and {inodes} inodes name it", made.root or ROOT_INO,
                fix=partial(_rebuild, quota=made),
            )  # fmt: skip
            continue
        known[number] = quota
        if copies[0] != copies[1]:
            fix = partial(_put, quota=quota)
            c.problem("copies", f"the copies of quota {number} differ, or one is damaged", fix=fix)
        c.check_commit(f"quota {number}", quota.commit)
    return known


def _rebuilt(c: Context, number: int, size: int, inodes: int) -> Quota:
    """Return a record in place of a lost one: without limits, for the topmost directory that has the number.

    Where there is none, the next mount takes it away.
    """
    for ino, node in c.nodes.items():
        if node.kind == DIR and node.flags >> SHIFT == number:
            parent = c.nodes.get(node.parent)
            above = parent.flags >> SHIFT if parent is not None and ino != ROOT_INO else 0
            if above != number:
                return Quota(number, ino, above, 0, 0, 0, size, inodes)
    return Quota(number, 0, 0, Quota.FLAG_REMOVING, 0, 0, size, inodes)


def _check_one(c: Context, known: Mapping[int, Quota], quota: Quota, size: int, inodes: int) -> None:
    """Check the fields of one record. `size` and `inodes` are what it counts in truth."""
    right, what = replace(quota), f"quota {quota.number}"
    root = c.nodes.get(quota.root)
    if (quota.size, quota.inodes) != (size, inodes) and not c.unreadable:
        right.size, right.inodes = size, inodes
        c.problem(
            "quota", f"{what} counts {quota.inodes} inodes and {quota.size} B, not {inodes} and {size} B", quota.root,
            fix=partial(_put, quota=right), derived=True,
        )  # fmt: skip
    if (root is None or root.kind != DIR) and quota.root not in c.damaged_inodes and not quota.removing:
        right.flags |= Quota.FLAG_REMOVING
        message = f"{what}: its directory {quota.root} is not there"
        c.problem("quota", message, fix=partial(_put, quota=right), derived=True)
    elif root is not None and not quota.removing:
        _check_place(c, known, quota, right, root)


def _check_place(c: Context, known: Mapping[int, Quota], quota: Quota, right: Quota, root: Node) -> None:
    """Check the quota that a quota lies within."""
    parent = c.nodes.get(root.parent) if quota.root != ROOT_INO else None
    wanted = parent.flags >> SHIFT if parent is not None else 0
    if quota.above != wanted and not _is_busy(known, quota.above, wanted):
        right.above = wanted
        message = f"quota {quota.number} lies within {quota.above or 'none'}, not {wanted or 'none'}"
        c.problem("quota", message, quota.root, fix=partial(_put, quota=right), derived=True)


def _is_busy(known: Mapping[int, Quota], *numbers: int) -> bool:
    """Return whether a mount goes on moving inodes from or to one of some quotas."""
    return any(number in known and (known[number].counting or known[number].removing) for number in numbers)


def _check_directories(c: Context, known: Mapping[int, Quota]) -> None:
    """Check that directories count for the quota of the directory above, or for their own."""
    roots = {quota.root: number for number, quota in known.items() if not quota.removing}
    if not known:
        return
    for ino, node in c.nodes.items():
        if node.kind != DIR or ino in c.orphans:
            continue
        has, wanted = node.flags >> SHIFT, _wanted(c, roots, ino)
        if has != wanted and not _is_busy(known, has, wanted):
            c.problem(
                "quota", f"directory {ino} counts for quota {has or 'none'}, not {wanted or 'none'}", ino,
                fix=partial(_move, ino=ino, number=wanted, quota=known.get(wanted)), derived=True,
            )  # fmt: skip


def _wanted(c: Context, roots: Mapping[int, int], ino: int) -> int:
    """Return the number of the nearest quota at or above a directory."""
    seen: set[int] = set()
    while ino not in roots and ino not in seen and ino != ROOT_INO:
        seen.add(ino)
        node = c.nodes.get(ino)
        if node is None or not node.parent:
            return 0
        ino = node.parent
    return roots.get(ino, 0)


def _put(fixer: Fixer, quota: Quota) -> None:
    quota.commit = fixer.state.commit
    quotas.put(fixer.txn, quota)


def _rebuild(fixer: Fixer, quota: Quota) -> None:
    _put(fixer, quota)
    if quota.root:
        fixer.notes.append(f"the limits of quota {quota.number} (directory {quota.root}) are lost: set them again")
    _mark(fixer)


def _mark(fixer: Fixer) -> None:
    """Have the superblock say whether there are quotas."""
    others = fixer.store.superblock.ro_compat & ~quotas.RO_QUOTAS
    fixer.store.superblock.ro_compat = others | (quotas.RO_QUOTAS if quotas.numbers(fixer.txn) else 0)


def _move(fixer: Fixer, ino: int, number: int, quota: Quota | None) -> None:
    """Have a directory count elsewhere. The next mount counts what lies in it; the next round corrects the sums."""
    inode = fixer.inode(ino)
    if inode is not None:
        inode.quota = number
    if quota is not None:
        quota.flags |= Quota.FLAG_COUNTING
        _put(fixer, quota)
