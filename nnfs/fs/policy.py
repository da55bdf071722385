"""Policies: which files may become cold, and with which model. Extended attributes of directories, inherited below.

`user.nnfs.policy`:
- `auto`: cold when it has not been used for a while, if reading it back stays fast enough;
- `cold`: cold when it has not been used for a while, even if reading it back is slow;
- `hot`: never cold; recompression brings cold chunks back to the hot tier;
- `never`: recompression changes nothing.

`user.nnfs.model`: the fingerprint, in hexadecimal, of the model to encode with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from nnfs.constants import MODEL_XATTR, POLICY_XATTR, Policy
from nnfs.errors import RecordDamaged, StoreDamaged, UsageError
from nnfs.store import schema
from nnfs.store.schema import Inode
from nnfs.store.txn import Snapshot

POLICY, MODEL = os.fsencode(POLICY_XATTR), os.fsencode(MODEL_XATTR)
NAMES = (POLICY, MODEL)


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy and model that hold for a file: from the nearest attributes at or above it, or the mount's."""

    policy: Policy
    model: bytes = b""  # fingerprint; none: the mount's default


def parse_policy(value: bytes) -> Policy:
    """Return the policy that an attribute names. Raises `UsageError`."""
    try:
        return Policy(value.decode().strip())
    except ValueError:
        names = ", ".join(policy.value for policy in Policy)
        raise UsageError(f"no policy {value[:40]!r}; there are: {names}") from None


def parse_model(value: bytes) -> bytes:
    """Return the fingerprint that an attribute names. Raises `UsageError`."""
    try:
        fingerprint = bytes.fromhex(value.decode().strip())
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != schema.HASH_SIZE:
        raise UsageError(f"a model is named by {2 * schema.HASH_SIZE} hexadecimal digits, its fingerprint")
    return fingerprint


def check(name: bytes, value: bytes) -> None:
    """Raise `UsageError` for a value that an attribute of nnfs must not have."""
    (parse_policy if name == POLICY else parse_model)(value)


def refine(snapshot: Snapshot, inode: Inode, rules: Rules) -> Rules:
    """Return the rules for an inode and everything below it, given those from above."""
    if not inode.xattrs:
        return rules
    for name in NAMES:
        key = schema.KEY.pack(inode.ino) + name
        try:
            record = snapshot.hint("xattr", key)
            if record is None:
                continue
            value = schema.unpack_xattr(key, record)
            if name == POLICY:
                rules = replace(rules, policy=parse_policy(value))
            else:
                rules = replace(rules, model=parse_model(value))
        except (RecordDamaged, UsageError):
            continue  # as if it were not there: fsck names what is damaged
    return rules


def own(snapshot: Snapshot, inode: Inode) -> Policy | None:
    """Return the policy that is set on an inode itself."""
    one, other = (refine(snapshot, inode, Rules(above)).policy for above in (Policy.AUTO, Policy.HOT))
    return one if one is other else None


def inherited(snapshot: Snapshot, ino: int, rules: Rules, parent: int = 0) -> tuple[Rules, int]:
    """Return the rules for an inode, and the inode that the policy comes from (0: the mount).

    `parent` is the directory that a file lies in: if a file has several names, only the caller knows which is meant.
    Without it a file inherits nothing. Raises `StoreDamaged`, `UsageError` when a directory on the way up is gone.
    """
    above: list[Inode] = []
    while True:
        record = snapshot.get("inode", schema.KEY.pack(ino))
        if record is None:
            raise UsageError(f"inode {ino} is not in the store")
        inode = Inode.unpack(ino, record)
        above.append(inode)
        if len(above) > 10_000:
            raise StoreDamaged("directories that contain each other: run nnfs fsck")
        up = inode.aux if inode.is_directory else parent if len(above) == 1 else 0
        if ino == schema.ROOT_INO or not up:
            break
        ino = up
    source = 0
    for inode in reversed(above):
        refined = refine(snapshot, inode, rules)
        if snapshot.hint("xattr", schema.KEY.pack(inode.ino) + POLICY) is not None:
            source = inode.ino
        rules = refined
    return rules, source
