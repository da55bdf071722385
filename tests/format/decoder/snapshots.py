"""Reads a snapshot of a store as `nnfs/store/FORMAT.md`, "Snapshots", says."""

from __future__ import annotations

from struct import calcsize, pack, unpack_from

from xxhash import xxh3_64_digest

from tests.format.decoder.store import INODE, M64, TAGS, Broken, Inode, Store

SNAPSHOT = ">QQqQQBQ"
COMMIT_AT = {"inode": calcsize(INODE) - 8, "dentry": 9, "xattr": 0, "map": 8}


class SnapshotStore(Store):
    """A store that shows one of its snapshots instead of the live tree."""

    def __init__(self, path: str, name: bytes) -> None:
        super().__init__(path)
        found = []
        for key, _ in self.range("meta", b"nnfs.snap"):
            taken, self.next_ino, _, _, _, flags, _ = self.twice(key, SNAPSHOT)
            body = self.unsealed("meta", key, self.txn.get(key, db=self.tables["meta"]))
            found.append((taken, key[-2:], flags, body[calcsize(SNAPSHOT) :]))
        found.sort()
        place = next(n for n, (_, _, flags, known) in enumerate(found) if known == name and not flags & 1)
        self.taken = found[place][0]
        self.levels = [*(number for _, number, _, _ in found[place:]), b"\0\0"]

    def shown(self, table: str, prefix: bytes) -> dict[bytes, bytes]:
        """Live key and body of the records that the snapshot has, of those that begin with a prefix."""
        first: dict[bytes, bytes | None] = {}
        for level in self.levels:
            for key, record in self.range(table, level + prefix[2:]):
                body = self.unsealed(table, key, record)
                commit = unpack_from(">Q", body, COMMIT_AT[table])[0]
                first.setdefault(b"\0\0" + key[2:], body if commit <= self.taken else None)
        return {key: body for key, body in sorted(first.items()) if body is not None}

    def sealed(self, table: str, prefix: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
        """Key and body of all records with a prefix, and the sum of the checksums that they have under live keys."""
        if table not in COMMIT_AT:
            return super().sealed(table, prefix)
        found = list(self.shown(table, prefix).items())
        sums = (xxh3_64_digest(bytes([TAGS[table]]) + key + body) for key, body in found)
        return found, sum(int.from_bytes(one, "big") for one in sums) & M64

    def inode(self, ino: int) -> tuple[Inode, bytes]:
        """An inode and its target."""
        body = self.shown("inode", pack(">Q", ino)).get(pack(">Q", ino))
        if body is None:
            raise Broken(f"the snapshot has no inode {ino}")
        return Inode(*unpack_from(INODE, body)), body[calcsize(INODE) :]
