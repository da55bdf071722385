"""The command `nnfs policy`: the policy of recompression of a path, an extended attribute that is inherited."""

from __future__ import annotations

import argparse
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from nnfs import names
from nnfs.cli import client
from nnfs.cli.locate import MountEntry, Place, locate, mounts
from nnfs.config import load_options
from nnfs.constants import POLICY_XATTR
from nnfs.errors import DaemonError, UsageError
from nnfs.mount.table import resolve

INHERIT = "inherit"
_NOT_SET = (errno.ENODATA, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Found:
    """A policy and the path that it was set on (None: it is the option of the mount)."""

    policy: str
    source: Path | None

    def __str__(self) -> str:
        source = f"set on {names.printable(self.source)}" if self.source else "option of the mount"
        return f"{self.policy}, {source}"


def find(place: Place) -> Found:
    """Return the policy of a place on a mount, from the nearest attribute at or above it. Raises OSError."""
    assert place.mount is not None
    path = Path(os.path.realpath(place.path.parent)) / place.path.name  # the directories that it really lies in
    path, top = _from_above(path, place.mount)
    for directory in (path, *path.parents):
        try:
            return Found(os.fsdecode(os.getxattr(directory, POLICY_XATTR, follow_symlinks=False)), directory)
        except OSError as error:
            if error.errno not in _NOT_SET:
                raise
        if os.fspath(directory) == top:
            break
    return Found(_of_mount(place.store), None)


def _from_above(path: Path, mount: MountEntry) -> tuple[Path, str]:
    """Return (path, mount point) on a mount that also shows the directories above a bind mount, if there is one."""
    whole = next((entry for entry in mounts() if (entry.device, entry.root) == (mount.device, "/")), mount)
    if mount.root == "/" or whole is mount:
        return path, mount.mountpoint
    return Path(whole.mountpoint + mount.root) / path.relative_to(mount.mountpoint), whole.mountpoint


def _of_mount(store: Path) -> str:
    try:
        told = client.ask(store, "status").get("compaction", {}).get("policy")
    except DaemonError:
        told = None  # not for everyone to ask
    return str(told or load_options(store, {}, resolve=resolve).policy)


def policy(args: argparse.Namespace) -> int:
    """Set the policy of a path if one is given, and print the policy that holds."""
    place = locate(args.path, follow=True)
    if place.mount is None:
        raise UsageError(f"{args.path} is a store: give a path on its mount")
    if args.policy == INHERIT:
        try:
            os.removexattr(place.path, POLICY_XATTR)
        except OSError as error:
            if error.errno not in _NOT_SET:
                raise
    elif args.policy is not None:
        os.setxattr(place.path, POLICY_XATTR, args.policy.encode())
    print(f"{names.printable(place.path)}: {find(place)}")
    return 0
