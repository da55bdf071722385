"""Free pages of an LMDB data file: the right ones, given back, and nothing else touched."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import pytest
from lmdb import verify as lmdb_verify

from nnfs.errors import NotAStore, PunchUnsupported, StoreDamaged, StoreTooNew
from nnfs.store import freepages
from nnfs.store.freepages import FreeDb, check_data_file, give_back, oldest_reader, reusable, runs
from nnfs.store.restore import restore_meta

verify: Any = lmdb_verify.verify
verifier: Any = lmdb_verify._Verifier
PAGE = 4096
ALL = 1 << 30


def open_env(path: Path) -> Any:
    """Not durable: what is tested here is not, and commits are 20 times faster."""
    return lmdb.open(os.fspath(path), map_size=1 << 30, lib_version=0, meminit=False, max_dbs=4, sync=False)


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Any]:
    opened = open_env(tmp_path)
    yield opened
    opened.close()


def data_file(env: Any) -> Path:
    return Path(env.path()) / "data.mdb"


def blocks(env: Any) -> int:
    return data_file(env).stat().st_blocks * 512


def punch(env: Any, keep: int = 0, budget: int = ALL, seen: dict[int, int] | None = None) -> int:
    return give_back(env, data_file(env), keep=keep, budget=budget, seen=seen)


def free_by_verifier(path: Path) -> dict[int, set[int]]:
    """What py-lmdb's own walker of the file finds, by record."""
    with path.open("rb") as file:
        walker = verifier(file, path.stat().st_size)
        assert walker.verify() == []
        found = {}
        for txnid, data in walker.free_records:
            found[txnid] = set(struct.unpack(f"={len(data) // 8 - 1}Q", data[8:]))
        return found


def free_by_us(path: Path) -> dict[int, set[int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        free_db = FreeDb(fd)
        return {record.txnid: set(free_db.pages(record)) for record in free_db.records()}
    finally:
        os.close(fd)


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


def contents(env: Any, txn: Any = None) -> dict[bytes, bytes]:
    with txn or env.begin() as reader:
        return dict(reader.cursor())


# --- which pages ------------------------------------------------------------------------------------------------------


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
    """Whatever page a write txn takes for its changes is new or was free by our rule: LMDB agrees with us."""
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


# --- giving them back -------------------------------------------------------------------------------------------------


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


# --- before it is opened ----------------------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A closed data file with two commits and free pages."""
    with open_env(tmp_path) as env:
        for value in (os.urandom(100_000), b"x" * 30_000, b"y"):
            with env.begin(write=True) as txn:
                txn.put(b"big", value)
                txn.put(value[:8], b"z" * 1000)
    return tmp_path / "data.mdb"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_sound_file(sound: Path) -> None:
    meta = check_data_file(sound)
    assert (meta.page_size, meta.txnid) == (PAGE, 3)
    assert (meta.last_page + 1) * PAGE == sound.stat().st_size


NOISE = random.Random(1).randbytes(1 << 16)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1 << 16), NOISE, b"\xde\xc0\xef\xbe" * 3])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(content)
    with pytest.raises(NotAStore, match="not a data file"):
        check_data_file(path)
    with pytest.raises(NotAStore, match="mkfs"):
        check_data_file(tmp_path / "none")


def test_cut_short_anywhere(sound: Path) -> None:
    whole = sound.read_bytes()
    for size in [1, 16, 20, 151, 4095, 4096, 4200, *range(8192, len(whole), 4096), len(whole) - 1]:
        sound.write_bytes(whole[:size])
        with pytest.raises((StoreDamaged, NotAStore)) as caught:
            check_data_file(sound)
        assert isinstance(caught.value, StoreDamaged) == (size >= 20)
        assert str(sound) in str(caught.value)


def test_only_free_pages_may_be_missing_at_the_end(env: Any) -> None:
    with env.begin(write=True) as txn:
        txn.put(b"small", b"x")
    with env.begin(write=True) as txn:
        txn.put(b"big", bytes(1_000_000))
    with env.begin(write=True) as txn:
        txn.delete(b"big")
    for value in (b"1", b"2", b"3", b"4", b"5", b"6"):
        with env.begin(write=True) as txn:
            txn.put(b"small", value)
    path = data_file(env)
    last = check_data_file(path).last_page
    free = set().union(*free_by_us(path).values())
    tail = next(page for page in range(last, 0, -1) if page not in free) + 1
    assert tail < last - 50
    os.truncate(path, tail * PAGE)
    assert check_data_file(path).last_page == last
    os.truncate(path, tail * PAGE - 1)
    with pytest.raises(StoreDamaged):
        check_data_file(path)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"\7"), (10, b"\0"), (16, b"\0"), (20, b"\0"), (20, b"\2"), (40, b"\1"), (44, b"\4"), (92, b"\4"),
     (144, b"\x77"), (128, bytes(8)), (136, bytes(8)), (0, bytes(PAGE)), (0, b"\xff" * PAGE)],
)  # fmt: skip
def test_damaged_meta_page_is_found_and_restored(sound: Path, number: int, offset: int, data: bytes) -> None:
    newest = check_data_file(sound)
    overwrite(sound, number * PAGE + offset, data)
    with pytest.raises(StoreDamaged, match="meta page"):
        check_data_file(sound)
    before = sound.read_bytes()
    told = restore_meta(sound, dry_run=True)
    assert sound.read_bytes() == before
    assert restore_meta(sound) == told
    restored = check_data_file(sound)
    is_back = newest.txnid % 2 == number and (offset in (128, 136) or len(data) == PAGE)
    assert restored.txnid == newest.txnid - is_back
    assert is_back <= ("undone" in told)
    assert verify(os.fspath(sound)) == []
    with open_env(sound.parent) as env:
        assert contents(env)[b"big"] == (b"y" if restored.txnid == 3 else b"x" * 30_000)
        with env.begin(write=True) as txn:
            txn.put(b"more", b"z")
    assert verify(os.fspath(sound)) == []
    assert not restore_meta(sound), "both are sound"


def test_both_meta_pages_damaged(sound: Path) -> None:
    overwrite(sound, 20, bytes(4))
    overwrite(sound, PAGE + 20, bytes(4))
    assert not restore_meta(sound)
    with pytest.raises(StoreDamaged):
        check_data_file(sound)


def test_later_formats(sound: Path, tmp_path: Path) -> None:
    overwrite(sound, 20, b"\2")
    with pytest.raises(StoreDamaged):  # only one page says so
        check_data_file(sound)
    overwrite(sound, PAGE + 20, b"\2")
    with pytest.raises(StoreTooNew):
        check_data_file(sound)
    later = tmp_path / "later"
    with lmdb.open(os.fspath(later), lib_version=1):
        pass
    with pytest.raises(StoreTooNew):
        check_data_file(later / "data.mdb")


def test_garbage_in_the_free_list_is_damage_or_nothing(sound: Path) -> None:
    """Flip every byte of the freeDB's root page: a clear error or a list of records, never a crash."""
    fd = os.open(sound, os.O_RDWR)
    meta = FreeDb(fd).meta
    whole = os.pread(fd, PAGE, meta.free_root * PAGE)
    damaged = 0
    for place in range(PAGE):
        os.pwrite(fd, bytes([whole[place] ^ 0xFF]), meta.free_root * PAGE + place)
        try:
            free_db = FreeDb(fd)
            for record in free_db.records():
                free_db.pages(record)
        except StoreDamaged:
            damaged += 1
        os.pwrite(fd, whole[place : place + 1], meta.free_root * PAGE + place)
    os.close(fd)
    assert damaged > 20
