"""Policies and models as attributes that directories pass on, and what makes recompression look at files again."""

from __future__ import annotations

from typing import Any

import pytest

from nnfs.constants import Policy
from nnfs.errors import FsError, UsageError
from nnfs.fs import policy, swapping
from nnfs.fs.namespace import RENAME_EXCHANGE
from nnfs.fs.policy import MODEL, POLICY, Rules
from nnfs.store import schema
from nnfs.store.schema import Inode, State
from tests.fs.test_apply import Files, damage, files

__all__ = ["files"]  # a fixture

MOUNT = Rules(Policy.AUTO)
HEX = b"ab" * 64


def mkdir(files: Files, name: bytes, parent: int = schema.ROOT_INO) -> Inode:
    return files.names.create(parent, name, 0o040755, 0, 0, 0)


def create(files: Files, name: bytes, parent: int) -> Inode:
    return files.names.create(parent, name, 0o100644, 0, 0, 0)


def rules(files: Files, inode: Inode, parent: int = 0) -> tuple[Rules, int]:
    with files.store.read() as snapshot:
        return policy.inherited(snapshot, inode.ino, MOUNT, parent)


def is_unsettled(files: Files) -> bool:
    """Whether the last commit told so; the mark is taken away."""
    flags = files.store.state.flags
    files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    assert files.store.state.flags & ~State.ROUND_BITS == 0
    return bool(flags & State.FLAG_UNSETTLED)


def test_the_nearest_one_holds(files: Files) -> None:
    xattrs = files.names.xattrs
    above = mkdir(files, b"above")
    below = mkdir(files, b"below", above.ino)
    file = create(files, b"file", below.ino)
    xattrs.set(above, POLICY, b"cold")
    xattrs.set(above, MODEL, HEX)
    xattrs.set(file, POLICY, b" hot\n")
    files.commit()
    assert rules(files, files.fs.inode(schema.ROOT_INO)) == (MOUNT, 0)
    assert rules(files, below) == (Rules(Policy.COLD, b"\xab" * 64), above.ino)
    assert rules(files, file) == (Rules(Policy.HOT), file.ino)  # nobody said under which name
    assert rules(files, file, below.ino) == (Rules(Policy.HOT, b"\xab" * 64), file.ino)
    xattrs.set(below, POLICY, b"never")
    xattrs.remove(file, POLICY)
    files.commit()
    assert rules(files, file, below.ino) == (Rules(Policy.NEVER, b"\xab" * 64), below.ino)


def test_bad_values_are_refused(files: Files) -> None:
    inode = mkdir(files, b"d")
    for name, value in ((POLICY, b"warm"), (POLICY, b""), (POLICY, b"\xff"), (MODEL, b"ab"), (MODEL, b"zz" * 64)):
        with pytest.raises(FsError, match="Invalid argument"):
            files.names.xattrs.set(inode, name, value)
    with pytest.raises(UsageError, match="auto, hot, cold, never"):
        policy.parse_policy(b"warm")
    with pytest.raises(UsageError, match="128 hexadecimal digits"):
        policy.parse_model(b"ab")
    link = files.names.create(schema.ROOT_INO, b"link", 0o120777, 0, 0, 0, target=b"to")
    with pytest.raises(FsError, match="not permitted"):
        files.names.xattrs.set(link, POLICY, b"hot")


def test_a_damaged_attribute_is_as_if_it_were_not_there(files: Files) -> None:
    inode = mkdir(files, b"d")
    files.names.xattrs.set(inode, POLICY, b"hot")
    files.commit()
    damage(files.store, "xattr", schema.KEY.pack(inode.ino) + POLICY)
    assert rules(files, inode)[0] == MOUNT


def test_what_is_gone_is_named(files: Files) -> None:
    with files.store.read() as snapshot, pytest.raises(UsageError, match="inode 999 is not in the store"):
        policy.inherited(snapshot, 999, MOUNT)


def test_a_change_is_noted_with_its_commit(files: Files) -> None:
    inode, xattrs = mkdir(files, b"d"), files.names.xattrs
    xattrs.set(inode, b"user.other", b"x")
    files.commit()
    assert not is_unsettled(files)
    steps: tuple[Any, ...] = (
        lambda: xattrs.set(inode, POLICY, b"hot"), lambda: xattrs.remove(inode, POLICY),
        lambda: xattrs.set(inode, MODEL, HEX), lambda: xattrs.remove(inode, MODEL),
    )  # fmt: skip
    for step in steps:
        step()
        files.commit()
        assert is_unsettled(files)
    files.commit()
    assert not is_unsettled(files)


def test_a_change_in_a_commit_that_failed_is_noted_with_the_next(files: Files) -> None:
    inode = mkdir(files, b"d")
    files.names.xattrs.set(inode, POLICY, b"hot")
    files.fs.freeze()  # and its commit fails
    files.create(b"later")
    files.commit()
    assert is_unsettled(files)


def test_moves_between_policies_are_noted(files: Files) -> None:
    names = files.names
    hot, plain, other = (mkdir(files, name) for name in (b"hot", b"plain", b"other"))
    names.xattrs.set(hot, POLICY, b"hot")
    below = mkdir(files, b"below", hot.ino)
    create(files, b"file", plain.ino)
    create(files, b"second", hot.ino)
    mkdir(files, b"folder", other.ino)
    files.commit()
    assert is_unsettled(files)

    def moved(*args: Any) -> bool:
        names.rename(*args)
        files.commit()
        return is_unsettled(files)

    assert not moved(plain.ino, b"file", plain.ino, b"renamed", 0)
    assert not moved(plain.ino, b"renamed", other.ino, b"file", 0)
    assert not moved(hot.ino, b"second", below.ino, b"second", 0)
    assert moved(other.ino, b"file", below.ino, b"file", 0)
    assert moved(below.ino, b"file", schema.ROOT_INO, b"file", 0)
    assert moved(other.ino, b"folder", hot.ino, b"folder", 0)
    assert moved(schema.ROOT_INO, b"file", below.ino, b"second", RENAME_EXCHANGE)
    assert not moved(hot.ino, b"folder", below.ino, b"second", RENAME_EXCHANGE)
