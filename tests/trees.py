"""A tree as tests compare it: names, links, attributes, content."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.semantics.kit import acl

# Times that no clock gives: such an mtime is compared, any other one only moves.
STRANGE_NS = [1, -7 * 10**9 + 3, 999_999_999, 2**33 * 10**9 + 5, -(2**30) * 10**9]
XATTRS = ["user.a", "user.b", "trusted.t", "security.test"]
ACLS = [acl(7, 5, 0, mask=7, users={12001: 7}), acl(7, 7, 1), acl(6, 0, 0, mask=4, groups={12100: 6})]
Answer = object


def attempt(run: Callable[[Path], Answer], base: Path) -> Answer:
    """Return the result of *run* below *base*, or the name of its errno."""
    try:
        return run(base)
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))


def strange(ns: int) -> int | None:
    """A time that was set by hand."""
    return ns if ns in STRANGE_NS else None


def special(path: Path) -> bool:
    """Whether opening waits for a peer or is a matter of nodev."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return False
    return kind not in (stat.S_IFREG, stat.S_IFDIR)


def look(path: Path) -> dict[str, object]:
    """All that must be equal on both sides about one node."""
    st_ = path.lstat()
    found: dict[str, object] = {
        "mode": oct(st_.st_mode),
        "owner": (st_.st_uid, st_.st_gid),
        "nlink": st_.st_nlink,
        "mtime": strange(st_.st_mtime_ns),
        "rdev": st_.st_rdev,
        "xattrs": {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)},
    }
    if stat.S_ISREG(st_.st_mode):
        found |= {"size": st_.st_size, "content": path.read_bytes()}
    elif stat.S_ISLNK(st_.st_mode):
        found |= {"target": os.readlink(path)}
    elif stat.S_ISDIR(st_.st_mode):
        found |= {"names": sorted(os.listdir(path))}
    return found


def nodes(base: Path) -> list[str]:
    """All paths below *base*, sorted; the base itself is the empty string."""
    return ["", *sorted(str(Path(d, n).relative_to(base)) for d, ds, fs in os.walk(base) for n in ds + fs)]


def links(base: Path) -> set[frozenset[str]]:
    """Which names are one file."""
    seen: dict[int, set[str]] = {}
    for name in nodes(base):
        seen.setdefault((base / name).lstat().st_ino, set()).add(name)
    return {frozenset(names) for names in seen.values()}


def shortened(differ: dict[str, tuple[object, object]]) -> dict[str, object]:
    """Cut contents to the part around their first difference."""
    out: dict[str, object] = {}
    for key, (got, want) in differ.items():
        if isinstance(got, bytes) and isinstance(want, bytes):
            at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
            out[key] = f"at {at}: {got[at : at + 16]!r} {want[at : at + 16]!r}, lengths {len(got)} {len(want)}"
        else:
            out[key] = (got, want)
    return out
