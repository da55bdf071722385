"""Random operations on one file against a model in memory: what fsx does, with seeds that are kept."""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from pathlib import Path

import pytest

from tests.harness import FULL, Mount, Plain
from tests.semantics.kit import CHUNK

OPERATIONS = 4000 if FULL else 400
SEEDS = range(30) if FULL else range(6)
MAX_SIZE = 14 * CHUNK + 1234
PAGE = 4096


class Checker:
    """The file, its model, and the last operations for whoever has to understand a failure."""

    def __init__(self, path: Path, mounted: Mount | Plain, seed: int) -> None:
        self.path = path
        self.mounted = mounted
        self.random = random.Random(seed)
        self.model = bytearray()
        self.past: deque[str] = deque(maxlen=40)
        self.serial = 0
        path.touch()
        self.fd = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)

    def close(self) -> None:
        """Both handles."""
        os.close(self.fd)
        os.close(self.direct)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def span(self, limit: int) -> tuple[int, int]:
        """Offset and length, often near a border of chunk or page."""
        border = self.random.choice((1, PAGE, CHUNK, CHUNK))
        offset = self.random.randrange(limit + 1) // border * border + self.random.choice((0, 0, -1, 1, -7))
        offset = min(max(offset, 0), limit)
        length = self.random.choice((1, 9, 100, PAGE, 5000, CHUNK, 2 * CHUNK + 3, 4 * CHUNK))
        return offset, min(length, limit - offset)

    def data(self, length: int) -> bytes:
        """Bytes that name the operation they are of; now and then zeros or noise."""
        self.serial += 1
        kind = self.random.random()
        if kind < 0.1:
            return bytes(length)
        if kind < 0.3:
            return self.random.randbytes(length)
        return (b"%07d|" % self.serial * (length // 8 + 1))[:length]

    def put(self, offset: int, data: bytes) -> None:
        """Into the model, as write(2) does."""
        if offset > len(self.model) and data:
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def compare(self, offset: int, got: bytes, length: int) -> None:
        """AssertionError that says where and since when."""
        want = bytes(self.model[offset : offset + length])
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
            raise AssertionError(
                f"differs at {offset + at} (chunk {(offset + at) // CHUNK} + {(offset + at) % CHUNK}): "
                f"{got[at : at + 20]!r}, not {want[at : at + 20]!r}; lengths {len(got)}, {len(want)}; past:\n"
                + "\n".join(self.past)
            )

    # -- operations -----------------------------------------------------------------------------------------------

    def read(self) -> None:
        offset, length = self.span(len(self.model))
        self.past.append(f"read {offset} {length}")
        self.compare(offset, os.pread(self.fd, length, offset), length)

    def write(self) -> None:
        offset, length = self.span(MAX_SIZE)
        self.past.append(f"write {offset} {length}")
        data = self.data(length)
        assert os.pwrite(self.fd, data, offset) == length
        self.put(offset, data)

    def append(self) -> None:
        length = min(self.random.choice((1, 77, PAGE, CHUNK)), MAX_SIZE - len(self.model))
        self.past.append(f"append {len(self.model)} {length}")
        data = self.data(length)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, data) == length
        os.close(fd)
        self.put(len(self.model), data)

    def truncate(self) -> None:
        size = self.span(MAX_SIZE if self.random.random() < 0.5 else len(self.model))[0]
        self.past.append(f"truncate {len(self.model)} -> {size}")
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def map_read(self) -> None:
        offset, length = self.span(len(self.model))
        self.past.append(f"map_read {offset} {length}")
        if length:
            with mmap.mmap(self.fd, len(self.model), mmap.MAP_SHARED, mmap.PROT_READ) as m:
                self.compare(offset, m[offset : offset + length], length)

    def map_write(self) -> None:
        offset, length = self.span(len(self.model))
        flush = self.random.random() < 0.3
        self.past.append(f"map_write {offset} {length} flush={flush}")
        if length:
            data = self.data(length)
            with mmap.mmap(self.fd, len(self.model)) as m:
                m[offset : offset + length] = data
                if flush:
                    m.flush()
            self.put(offset, data)

    def direct_read(self) -> None:
        offset, length = (n // PAGE * PAGE for n in self.span(MAX_SIZE))
        self.past.append(f"direct_read {offset} {length}")
        if length:
            buffer = mmap.mmap(-1, length)
            got = os.preadv(self.direct, [buffer], offset)
            self.compare(offset, buffer[:got], length)

    def direct_write(self) -> None:
        offset, length = (n // PAGE * PAGE for n in self.span(MAX_SIZE))
        self.past.append(f"direct_write {offset} {length}")
        if length:
            buffer = mmap.mmap(-1, length)
            buffer[:] = self.data(length)
            assert os.pwritev(self.direct, [buffer], offset) == length
            self.put(offset, buffer[:])

    def sync(self) -> None:
        self.past.append("sync")
        self.random.choice((os.fsync, os.fdatasync))(self.fd)

    def reopen(self) -> None:
        self.past.append("reopen")
        self.close()
        self.fd = os.open(self.path, os.O_RDWR)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def drop(self) -> None:
        self.past.append("drop_caches")
        self.mounted.drop_caches()

    def remount(self) -> None:
        self.past.append("remount")
        self.close()
        self.mounted.remount()
        self.fd = os.open(self.path, os.O_RDWR)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def whole(self) -> None:
        self.past.append("whole")
        assert os.fstat(self.fd).st_size == len(self.model), "\n".join(self.past)
        self.compare(0, self.path.read_bytes(), MAX_SIZE)

    def run(self, count: int) -> None:
        """*count* operations, weighted; the rare ones cost a hundred times more."""
        weights = {
            self.read: 12, self.write: 16, self.append: 4, self.truncate: 8, self.map_read: 8, self.map_write: 12,
            self.direct_read: 6, self.direct_write: 6, self.sync: 3, self.reopen: 3, self.drop: 1.2, self.remount: 0.25,
            self.whole: 6,
        }  # fmt: skip
        for operation in self.random.choices(list(weights), list(weights.values()), k=count):
            operation()
            assert os.fstat(self.fd).st_size == len(self.model), "\n".join(self.past)
        self.remount()
        self.whole()


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations_on_one_file(mnt: Path, mounted: Mount | Plain, seed: int) -> None:
    mounted.deadline()
    checker = Checker(mnt / "f", mounted, seed)
    try:
        checker.run(OPERATIONS)
    finally:
        checker.close()
