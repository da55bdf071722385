"""Free pages of an LMDB data file: the right ones, given back, and nothing else touched."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lmdb import verify as lmdb_verify

from nnfs.errors import PunchUnsupported
from nnfs.store import freepages
from nnfs.store.freepages import FreeDb, check_data_file, give_back, oldest_reader, reusable, runs
from tests.store.kit import PAGE, contents, data_file, free_by_us, open_env, verify

verifier: Any = lmdb_verify._Verifier
ALL = 1 << 30


def blocks(env: Any) -> int:
    return data_file(env).stat().st_blocks * 512


def punch(env: Any, keep: int = 0, budget: int = ALL, seen: dict[int, int] | None = None) -> int:
    return give_back(env, data_file(env), keep=keep, budget=budget, seen=seen)


def free_by_verifier(path: Path) -> dict[int, set[int]]:
    """Return by record the pages that py-lmdb's own walker of the file finds."""
    with path.open("rb") as file:
        walker = verifier(file, path.stat().st_size)
        assert walker.verify() == []
        found = {}
        for txnid, data in walker.free_records:
            found[txnid] = set(struct.unpack(f"={len(data) // 8 - 1}Q", data[8:]))
        return found


def change(rng: random.Random, env: Any, model: dict[bytes, bytes]) -> None:
    """One txn of puts, deletions and replacements, of records from a few bytes to 40 pages.

    Each key once: LMDB shortens a large value that the same txn has written in place, which py-lmdb's verifier rejects.
    """
    with env.begin(write=True) as txn:
        for number in rng.sample(range(3000), rng.randrange(1, 60)):
            key = b"%06d" % number
            if rng.random() < 0.45:
                assert txn.delete(key) == (model.pop(key, None) is not None)
            else:
                value = rng.randbytes(rng.choice((5, 100, 1500, 2500, 9000, 60_000)))
                txn.put(key, value)
                model[key] = value


def test_runs() -> None:
    assert runs([]) == []
    assert runs([7]) == [(7, 1)]
    assert runs([20, 9, 8, 7, 5, 3, 2]) == [(2, 2), (5, 1), (7, 3), (20, 1)]
    rng = random.Random(1)
    pages = sorted(rng.sample(range(2, 4000), 2500), reverse=True)
    found = runs(pages)
    assert [page for start, length in found for page in range(start, start + length)] == pages[::-1]
    assert all(a + n < b for (a, n), (b, _) in pairwise(found))


@pytest.mark.parametrize("seed", range(6))
def test_free_set_equals_the_verifiers(tmp_path: Path, seed: int) -> None:
    rng, model = random.Random(seed), dict[bytes, bytes]()
    with open_env(tmp_path) as env:
        for _ in range(40):
            change(rng, env, model)
            assert free_by_us(data_file(env)) == free_by_verifier(data_file(env))


def test_overflow_records_and_a_deep_tree(env: Any) -> None:
    """A txn that frees 20,000 pages needs an overflow record; hundreds of small txns need branch pages."""
    with env.begin(write=True) as txn:
        for n in range(800):
            txn.put(b"%06d" % n, bytes(100_000))
    with env.begin() as reader:  # keeps every record from being used
        assert reader.get(b"000000")
        for n in range(500):
            with env.begin(write=True) as txn:
                txn.put(b"a%06d" % (n % 7), bytes(3000))
        with env.begin(write=True) as txn:
            for n in range(800):
                txn.delete(b"%06d" % n)
        fd = os.open(data_file(env), os.O_RDONLY)
        free_db = FreeDb(fd)
        assert any(record.page for record in free_db.records())
        assert free_db._read(free_db.meta.free_root * PAGE, PAGE)[10] == freepages.P_BRANCH
        os.close(fd)
        assert free_by_us(data_file(env)) == free_by_verifier(data_file(env))
        assert punch(env) == 0


def test_the_limit_is_lmdbs_own(env: Any) -> None:
    """Every page that a write txn takes for its changes is new or was free by our rule: LMDB agrees with us."""
    rng, model = random.Random(5), dict[bytes, bytes]()
    for _ in range(50):
        fd = os.open(data_file(env), os.O_RDONLY)
        free_db = FreeDb(fd)
        allowed = {page for record in reusable(free_db, oldest_reader(env)) for page in free_db.pages(record)}
        before = data_file(env).read_bytes()
        change(rng, env, model)
        after = data_file(env).read_bytes()
        places = range(2 * PAGE, len(before), PAGE)
        written = {place // PAGE for place in places if before[place : place + PAGE] != after[place : place + PAGE]}
        assert written <= allowed
        os.close(fd)


@pytest.mark.parametrize("seed", range(8))
def test_content_is_never_touched(tmp_path: Path, seed: int) -> None:
    """Random txns with punching after each, readers held open meanwhile, and the environment opened anew at times."""
    rng, model = random.Random(seed), dict[bytes, bytes]()
    env, seen = open_env(tmp_path), dict[int, int]()
    readers: list[tuple[Any, dict[bytes, bytes]]] = []
    given = 0
    for turn in range(60):
        change(rng, env, model)
        if rng.random() < 0.2 and len(readers) < 3:
            readers.append((env.begin(), dict(model)))
        given += punch(env, keep=rng.choice((0, 0, 20)), budget=rng.choice((3, ALL)), seen=rng.choice((None, seen)))
        if rng.random() < 0.2 and readers:
            reader, old = readers.pop(0)
            assert dict(reader.cursor()) == old
            reader.abort()
        if turn % 10 == 9:
            for reader, old in readers:
                assert dict(reader.cursor()) == old
            assert contents(env) == model
            assert verify(env.path()) == []
            assert free_by_us(data_file(env)) == free_by_verifier(data_file(env))
        if turn % 25 == 24:  # the copy is what a crash leaves: no lock file, nothing closed
            crashed = tmp_path / f"crash{turn}"
            crashed.mkdir()
            shutil.copyfile(data_file(env), crashed / "data.mdb")
            assert check_data_file(crashed / "data.mdb").txnid == env.info()["last_txnid"]
            with open_env(crashed) as other:
                assert contents(other) == model
                change(rng, other, dict(model))
    for reader, _ in readers:
        reader.abort()
    env.close()
    assert given > 0
    with open_env(tmp_path) as again:
        assert contents(again) == model


def test_space_comes_back(env: Any) -> None:
    with env.begin(write=True) as txn:
        for n in range(300):
            txn.put(b"%06d" % n, os.urandom(50_000))
    full = blocks(env)
    with env.begin(write=True) as txn:
        for n in range(290):
            txn.delete(b"%06d" % n)
    assert punch(env) < full // 20, "the last commit's pages belong to the other meta page still"
    with env.begin(write=True) as txn:
        txn.put(b"x", b"x")
    before = blocks(env)
    given = punch(env)
    assert given == before - blocks(env)
    assert given > full * 9 // 10
    assert blocks(env) < full // 10
    assert punch(env) == 0


def test_reader_holds_pages_back(env: Any) -> None:
    with env.begin(write=True) as txn:
        txn.put(b"big", os.urandom(4_000_000))
    with env.begin() as reader:
        assert oldest_reader(env) == env.info()["last_txnid"]
        for n in range(3):
            with env.begin(write=True) as txn:
                txn.put(b"big", os.urandom(4_000_000)) if n else txn.delete(b"big")
        punch(env)
        assert len(reader.get(b"big")) == 4_000_000
        assert len(set(reader.get(b"big"))) == 256
    assert oldest_reader(env) is None
    assert punch(env) > 3_900_000


def test_keep_and_budget(env: Any) -> None:
    for n in range(400):
        with env.begin(write=True) as txn:
            txn.put(b"%06d" % n, os.urandom(9000))
    with env.begin(write=True) as txn:
        for n in range(0, 400, 2):
            txn.delete(b"%06d" % n)
    with env.begin(write=True) as txn:
        txn.put(b"x", b"x")
    fd = os.open(data_file(env), os.O_RDONLY)
    free_db = FreeDb(fd)
    free = [page for record in reusable(free_db, None) for page in reversed(free_db.pages(record))]
    os.close(fd)
    seen = dict[int, int]()
    slices = 0
    while punch(env, keep=100, budget=10, seen=seen):
        slices += 1
    assert slices >= 10
    kept = free[:100]
    with data_file(env).open("rb") as file:
        held = [page for page in kept if os.lseek(file.fileno(), page * PAGE, os.SEEK_HOLE) >= (page + 1) * PAGE]
    assert held == kept
    assert punch(env, seen=seen) >= 90 * PAGE
    assert punch(env, seen=seen) == 0
    assert len(seen) == len({record for record in free_by_us(data_file(env)) if record < env.info()["last_txnid"]})


def test_seen_records_are_not_read_again(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with env.begin(write=True) as txn:
        txn.put(b"big", os.urandom(8_000_000))
    with env.begin(write=True) as txn:
        txn.delete(b"big")
    with env.begin(write=True) as txn:
        txn.put(b"x", b"x")
    seen = dict[int, int]()
    assert punch(env, seen=seen) > 7_900_000
    monkeypatch.setattr(FreeDb, "pages", None)
    assert punch(env, seen=seen) == 0


def test_filesystem_without_holes(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (os.urandom(100_000), b"x", b"y"):
        with env.begin(write=True) as txn:
            txn.put(b"big", value)

    def refuse(fd: int, mode: int, offset: int, length: int) -> int:
        freepages.ctypes.set_errno(errno.EOPNOTSUPP)  # type: ignore[attr-defined]
        return -1

    monkeypatch.setattr(freepages._libc, "fallocate", refuse)
    with pytest.raises(PunchUnsupported):
        punch(env)
