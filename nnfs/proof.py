"""The proof of a block: decoded bytes against BLAKE2b-512 (content), stored bytes against XXH3-64 and length (payload).

Reads, commits, scrub, recompression and fsck compare here and nowhere else, and say what is wrong in the same words.
The checksum tells quickly that stored bytes are as they were written; only the hash proves content.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeGuard

from xxhash import xxh3_64_intdigest

FILE_PERSON = b"nnfs file 1"  # BLAKE2b's personal string of fingerprints of files
MAX_CHUNKS = 1 << 26  # of a file with a fingerprint: those of 8 TiB of holes, by 128 KiB, are hashed in 5 s
WRONG_CONTENT = "its content does not have the BLAKE2b-512 of what was written"
WRONG_CHECKSUM = "its stored bytes do not have their XXH3-64"

payload_checksum = xxh3_64_intdigest  # no function of ours: the search of a repair calls it millions of times


def content_hash(plain: bytes) -> bytes:
    """Return the BLAKE2b-512 of plain bytes, by which a block is found and proved."""
    return blake2b(plain).digest()


def file_hash(chunk_size: int, size: int) -> blake2b:
    """Return the hash of a file's fingerprint, to be updated with the BLAKE2b-512 of each chunk in order."""
    return blake2b(chunk_size.to_bytes(4, "big") + size.to_bytes(8, "big"), person=FILE_PERSON)


def has_content(plain: object, expected: bytes) -> TypeGuard[bytes]:
    """Return whether `plain` is bytes with this hash. A decoder's result of another type is refused."""
    return isinstance(plain, bytes) and blake2b(plain).digest() == expected


def wrong_length(payload: bytes, stored: int) -> str:
    """Return the fault of the length of stored bytes, "" if it is right."""
    return "" if len(payload) == stored else f"{len(payload)} of {stored} stored bytes are there"


def wrong_payload(payload: bytes, stored: int, checksum: int) -> str:
    """Return the fault of stored bytes, "" if length and checksum are right."""
    return wrong_length(payload, stored) or ("" if payload_checksum(payload) == checksum else WRONG_CHECKSUM)
