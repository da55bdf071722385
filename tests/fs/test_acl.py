"""acl.py against the kernel's own behaviour, on whatever filesystem the temporary directory is (tmpfs, ext4...)."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.fs import acl
from nnfs.fs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
PLAIN = (Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 4), Entry(OTHER, 0))
NAMED = (
    Entry(USER_OBJ, 7),
    Entry(USER, 5, 1000),
    Entry(GROUP_OBJ, 4),
    Entry(GROUP, 6, 7),
    Entry(MASK, 5),
    Entry(OTHER, 1),
)


def random_acl(rng: random.Random) -> tuple[Entry, ...]:
    users = [Entry(USER, rng.randrange(8), uid) for uid in sorted(rng.sample(range(5000), rng.choice((0, 0, 1, 3))))]
    groups = [Entry(GROUP, rng.randrange(8), gid) for gid in sorted(rng.sample(range(5000), rng.choice((0, 0, 1, 3))))]
    mask = [Entry(MASK, rng.randrange(8))] if users or groups or rng.random() < 0.3 else []
    first, middle, last = (rng.randrange(8) for _ in range(3))
    return (Entry(USER_OBJ, first), *users, Entry(GROUP_OBJ, middle), *groups, *mask, Entry(OTHER, last))


def get(path: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        assert error.errno == errno.ENODATA
        return None


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A directory on a filesystem with ACLs."""
    try:
        os.setxattr(tmp_path, ACCESS, acl.pack(NAMED))
    except OSError as error:
        pytest.skip(f"no ACLs on {tmp_path}: {error}")
    os.removexattr(tmp_path, ACCESS)
    os.chmod(tmp_path, 0o755)
    return tmp_path


@contextlib.contextmanager
def umask(value: int) -> Iterator[None]:
    old = os.umask(value)
    try:
        yield
    finally:
        os.umask(old)


def test_format() -> None:
    packed = acl.pack(NAMED)
    assert packed[:12] == b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff"
    assert packed[12:20] == b"\2\0\5\0\xe8\3\0\0"
    assert acl.parse(packed) == NAMED
    assert acl.parse(acl.pack(())) == ()


def test_ids_of_the_unnamed_are_ignored() -> None:
    value = b"\2\0\0\0" + b"".join(struct.pack("<HHI", tag, 4, 17) for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    assert {entry.id for entry in acl.parse(value)} == {acl.NO_ID}


def test_mode_follows_acl() -> None:
    assert acl.acl_to_mode(PLAIN, 0o104777) == 0o104640
    assert acl.acl_to_mode(NAMED, 0o100000) == 0o100751
    assert acl.acl_to_mode((), 0o100644) == 0o100644
    assert acl.is_equiv_mode(PLAIN)
    assert not acl.is_equiv_mode(NAMED)


def test_acl_follows_mode() -> None:
    assert [entry.perm for entry in acl.mode_to_acl(NAMED, 0o100624)] == [6, 5, 4, 6, 2, 4]
    assert [entry.perm for entry in acl.mode_to_acl(PLAIN, 0o100751)] == [7, 5, 1]


def test_inherit() -> None:
    default = acl.pack(NAMED)
    mode, access, handed_on = acl.inherit(default, stat.S_IFREG | 0o666, False)
    assert mode == stat.S_IFREG | 0o640
    assert access is not None
    assert [entry.perm for entry in acl.parse(access)] == [6, 5, 4, 6, 4, 0]
    assert handed_on is None
    assert acl.inherit(default, stat.S_IFDIR | 0o2777, True)[0::2] == (stat.S_IFDIR | 0o2751, default)
    assert acl.inherit(acl.pack(PLAIN), stat.S_IFREG | 0o777, False) == (stat.S_IFREG | 0o640, None, None)


@pytest.mark.parametrize("seed", range(4))
def test_inheritance_is_the_kernels(real: Path, seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(100):
        default, mode = acl.pack(random_acl(rng)), rng.randrange(0o10000)
        parent, child = real / f"d{turn}", real / f"d{turn}" / "child"
        parent.mkdir()
        os.setxattr(parent, DEFAULT, default)
        is_dir = rng.random() < 0.5
        with umask(rng.randrange(0o1000)):
            if is_dir:
                mode &= 0o1777  # mkdir(2) knows no other bits
                os.mkdir(child, mode)
            else:
                os.close(os.open(child, os.O_CREAT | os.O_RDONLY, mode))
        expected = acl.inherit(default, (stat.S_IFDIR if is_dir else stat.S_IFREG) | mode, is_dir)
        found = child.stat().st_mode, get(child, ACCESS), get(child, DEFAULT)
        assert found == expected


@pytest.mark.parametrize("seed", range(4))
def test_setting_and_chmod_are_the_kernels(real: Path, seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(100):
        file, mode = real / f"f{turn}", rng.randrange(0o10000)
        file.touch()
        os.chmod(file, mode)
        entries = random_acl(rng)
        os.setxattr(file, ACCESS, acl.pack(entries))
        mode = acl.acl_to_mode(entries, mode)
        expected = None if acl.is_equiv_mode(entries) else acl.pack(entries)
        assert (stat.S_IMODE(file.stat().st_mode), get(file, ACCESS)) == (mode, expected)
        mode = rng.randrange(0o10000)
        os.chmod(file, mode)
        changed = None if expected is None else acl.pack(acl.mode_to_acl(entries, mode))
        assert (stat.S_IMODE(file.stat().st_mode), get(file, ACCESS)) == (mode, changed)


def broken(rng: random.Random) -> bytes:
    """An ACL value with something wrong, most of the time."""
    entries = list(random_acl(rng))
    place = rng.randrange(len(entries))
    match rng.randrange(7):
        case 0:
            del entries[place]
        case 1:
            entries.insert(place, rng.choice(NAMED))
        case 2:
            entries[place] = entries[place]._replace(perm=rng.randrange(20))
        case 3:
            entries[place] = entries[place]._replace(tag=rng.choice((0, 1, 2, 3, 4, 8, 16, 32, 64)))
        case 4:
            entries[place] = entries[place]._replace(id=acl.NO_ID)
        case 5:
            rng.shuffle(entries)
        case _:
            value = acl.pack(entries)
            return rng.choice(
                (value[:-1], value[:-4], value + b"\0", value[1:], b"", b"\2", b"\1" + value[1:], value[:4])
            )
    return acl.pack(entries)


@pytest.mark.parametrize("seed", range(4))
def test_refused_is_what_the_kernel_refuses(real: Path, seed: int) -> None:
    rng = random.Random(seed)
    file = real / "f"
    file.touch()
    refused = 0
    for _ in range(400):
        value = broken(rng)
        try:
            entries: tuple[Entry, ...] | None = acl.parse(value)
        except ValueError:
            entries = None
        if not value:
            assert entries is None  # the kernel takes no value at all for a removal; FUSE then sends removexattr
            continue
        try:
            os.setxattr(file, ACCESS, value)
        except OSError as error:
            assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
            assert entries is None
            refused += 1
        else:
            assert entries is not None
            if entries and not acl.is_equiv_mode(entries):
                assert get(file, ACCESS) == acl.pack(entries)
    assert refused > 100


def test_setfacl_understands_us(real: Path) -> None:
    file = real / "f"
    file.touch()
    os.setxattr(file, ACCESS, acl.pack(NAMED))
    try:
        shown = subprocess.run(["getfacl", "-nc", file], capture_output=True, text=True, check=True).stdout
        subprocess.run(["setfacl", "-m", "u:1000:rwx,m::rwx", file], check=True)
    except FileNotFoundError:
        pytest.skip("needs setfacl and getfacl")
    assert shown.split()[:3] == ["user::rwx", "user:1000:r-x", "group::r--"]
    assert "mask::r-x" in shown
    value = get(file, ACCESS)
    assert value is not None
    assert [entry.perm for entry in acl.parse(value)] == [7, 7, 4, 6, 7, 1]
