"""Sealed records: a checksum binds each record to its table and its key.

A *sealed* record ends in the XXH3-64 of (table tag, key, body): it covers the key, so a record that turns up under
another key, or in another table, is found out.
"""

from __future__ import annotations

from struct import Struct

from xxhash import xxh3_64_digest

from nnfs.errors import RecordDamaged

TABLES = (
    "meta", "inode", "dentry", "xattr", "map", "block", "payload", "hash", "model", "orphan", "queue", "total",
    "vector",
)  # fmt: skip
OPTIONAL = ("vector",)  # made when it is first needed
TAGS = {name: bytes([number]) for number, name in enumerate(TABLES, start=1)}
_CHECKSUM = 8  # bytes


def seal(table: str, key: bytes, body: bytes) -> bytes:
    """Return `body` followed by the checksum that binds it to `key` in `table`."""
    return body + xxh3_64_digest(TAGS[table] + key + body)


def unseal(table: str, key: bytes, record: bytes) -> bytes:
    """Return the body of a sealed record. Raises `RecordDamaged` when the checksum does not fit."""
    if not is_sealed(table, key, record):
        raise RecordDamaged(table, key, "checksum mismatch")
    return record[:-_CHECKSUM]


def is_sealed(table: str, key: bytes, record: bytes) -> bool:
    """Return whether a record is one that was stored in this table under this key."""
    return len(record) >= _CHECKSUM and record[-_CHECKSUM:] == xxh3_64_digest(TAGS[table] + key + record[:-_CHECKSUM])


def checksum_of(record: bytes) -> int:
    """Return the checksum at the end of a sealed record: the element that it adds to its inode's proof."""
    return int.from_bytes(record[-_CHECKSUM:], "big")


def fields_of(table: str, key: bytes, record: bytes, layout: Struct) -> tuple[tuple[int, ...], bytes]:
    """Return the fields of a sealed record by its layout, and what stands behind them. Raises `RecordDamaged`."""
    body = unseal(table, key, record)
    if len(body) < layout.size:
        raise RecordDamaged(table, key, "too short")
    return layout.unpack_from(body), body[layout.size :]
