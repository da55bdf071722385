"""POSIX ACLs are enforced, inherited, and kept in step with the mode."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.harness import Mount, Plain
from tests.semantics.kit import ALICE, BOB, CREW, acl, as_user, can, fails, mode, owned

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def test_acl_is_enforced(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o600)
    os.setxattr(f, ACCESS, acl(6, 0, 0, mask=6, users={ALICE: 4}, groups={CREW: 6}))
    mounted.remount()
    assert can(ALICE, f) == "r"
    assert can(BOB, f) == ""
    assert can(BOB, f, groups=(CREW,)) == "rw"
    os.chmod(f, 0o640)  # changes the mask, not the group entry
    assert can(BOB, f, groups=(CREW,)) == "r"
    assert os.getxattr(f, ACCESS) == acl(6, 0, 0, mask=4, users={ALICE: 4}, groups={CREW: 6})
    os.removexattr(f, ACCESS)
    assert can(ALICE, f) == ""


def test_acl_mask_is_the_group_bits(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o644)
    os.setxattr(f, ACCESS, acl(7, 5, 1, mask=3, users={ALICE: 7}))
    assert mode(f) == 0o731
    mounted.drop_caches()
    assert mode(f) == 0o731
    assert ACCESS in os.listxattr(f)


def test_minimal_acl_is_only_the_mode(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o644)
    os.setxattr(f, ACCESS, acl(7, 5, 1))
    mounted.drop_caches()
    assert mode(f) == 0o751
    assert ACCESS not in os.listxattr(f)
    with fails(errno.ENODATA):
        os.getxattr(f, ACCESS)


def test_default_acl_is_inherited(mnt: Path, mounted: Mount | Plain) -> None:
    """The umask does not count under a default ACL: the requested mode limits the entries instead."""
    d = mnt / "d"
    d.mkdir()
    default = acl(7, 5, 0, mask=7, users={ALICE: 7})
    os.setxattr(d, DEFAULT, default)
    assert mode(d) == 0o755
    os.umask(0o077)
    os.close(os.open(d / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(d / "sub", 0o777)
    os.mknod(d / "p", 0o010664)
    os.symlink("t", d / "l")
    mounted.remount()
    assert os.getxattr(d / "f", ACCESS) == acl(6, 5, 0, mask=6, users={ALICE: 7})
    assert mode(d / "f") == 0o660
    assert os.getxattr(d / "sub", ACCESS) == acl(7, 5, 0, mask=7, users={ALICE: 7})
    assert os.getxattr(d / "sub", DEFAULT) == default
    assert mode(d / "sub") == 0o770
    assert os.getxattr(d / "p", ACCESS) == acl(6, 5, 0, mask=6, users={ALICE: 7})
    assert mode(d / "p") == 0o660
    assert os.listxattr(d / "l", follow_symlinks=False) == []
    os.mkdir(d / "sub" / "deep", 0o700)
    assert os.getxattr(d / "sub" / "deep", DEFAULT) == default
    assert mode(d / "sub" / "deep") == 0o700
    assert can(ALICE, d / "f") == "rw"


def test_default_acl_without_mask_limits_the_mode(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    os.setxattr(d, DEFAULT, acl(7, 5, 1))
    os.umask(0o077)
    os.close(os.open(d / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(d / "s", 0o777)
    assert mode(d / "f") == 0o640
    assert mode(d / "s") == 0o751
    assert os.listxattr(d / "f") == []
    assert os.listxattr(d / "s") == [DEFAULT]
    os.removexattr(d, DEFAULT)
    os.close(os.open(d / "g", os.O_CREAT | os.O_WRONLY, 0o666))
    assert mode(d / "g") == 0o600


def test_default_acl_and_setgid_together(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    os.chown(d, 0, CREW)
    os.chmod(d, 0o2777)
    os.setxattr(d, DEFAULT, acl(7, 7, 0))
    as_user(ALICE, lambda: os.mkdir(d / "s"))
    assert mode(d / "s") == 0o2770
    assert os.stat(d / "s").st_gid == CREW


def test_acl_refusals(mnt: Path) -> None:
    f = owned(mnt / "f", 0, 0, 0o666)
    with fails(errno.EACCES):
        os.setxattr(f, DEFAULT, acl(7, 7, 7))  # only directories have one
    for bad in (b"\x01\x00\x00\x00", b"\x02\x00\x00\x00\x01", acl(7, 7, 7, users={ALICE: 7}), acl(7, 7, 7)[:-8]):
        with fails(errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.EIO):
            os.setxattr(f, ACCESS, bad)

    def stranger() -> None:
        with fails(errno.EPERM):
            os.setxattr(f, ACCESS, acl(7, 7, 7))
        with fails(errno.EPERM):
            os.removexattr(f, ACCESS)

    as_user(BOB, stranger)
    assert mode(f) == 0o666


def test_big_acl(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o600)
    value = acl(6, 4, 0, mask=6, users={30000 + i: 6 for i in range(200)})
    os.setxattr(f, ACCESS, value)
    mounted.drop_caches()
    assert os.getxattr(f, ACCESS) == value
    assert can(30199, f) == "rw"
    assert can(30200, f) == ""


def test_setting_an_acl_from_outside_the_group_clears_sgid(mnt: Path) -> None:
    """posix_acl_update_mode: else a stranger to the group could make a setgid program."""
    f = owned(mnt / "f", ALICE, CREW, 0o755)
    os.chmod(f, 0o2755)
    as_user(ALICE, lambda: os.setxattr(f, ACCESS, acl(7, 5, 5, mask=5, users={BOB: 4})))
    assert mode(f) == 0o755


def test_removing_an_acl_that_is_not_there(mnt: Path) -> None:
    """setfacl -b does it; every Linux filesystem says yes."""
    f = owned(mnt / "f", 0, 0, 0o640)
    os.removexattr(f, ACCESS)
    os.removexattr(mnt, DEFAULT)
    os.setxattr(f, ACCESS, b"")  # means the same
    assert mode(f) == 0o640
