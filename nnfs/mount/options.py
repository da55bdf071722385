"""The ``-o`` options of a mount: mount(2) flags, those of FUSE, those of mount(8), and our own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nnfs.config import DEVICE
from nnfs.errors import UsageError

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS = 1, 2, 4, 8, 16
MS_DIRSYNC, MS_NOSYMFOLLOW, MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 128, 256, 1024, 2048, 1 << 21
MS_STRICTATIME, MS_LAZYTIME = 1 << 24, 1 << 25

SUBTYPE = "nnfs"

_FLAGS: Mapping[str, tuple[int, int]] = MappingProxyType({  # option: (bits set, bits cleared)
    "ro": (MS_RDONLY, 0), "rw": (0, MS_RDONLY),
    "suid": (0, MS_NOSUID), "nosuid": (MS_NOSUID, 0),
    "dev": (0, MS_NODEV), "nodev": (MS_NODEV, 0),
    "exec": (0, MS_NOEXEC), "noexec": (MS_NOEXEC, 0),
    "sync": (MS_SYNCHRONOUS, 0), "async": (0, MS_SYNCHRONOUS), "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, MS_RELATIME | MS_STRICTATIME), "atime": (0, MS_NOATIME),
    "relatime": (MS_RELATIME, MS_NOATIME | MS_STRICTATIME), "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, MS_NOATIME | MS_RELATIME), "nostrictatime": (0, MS_STRICTATIME),
    "nodiratime": (MS_NODIRATIME, 0), "diratime": (0, MS_NODIRATIME),
    "lazytime": (MS_LAZYTIME, 0), "nolazytime": (0, MS_LAZYTIME),
    "nosymfollow": (MS_NOSYMFOLLOW, 0), "symfollow": (0, MS_NOSYMFOLLOW),
})  # fmt: skip
# Options that mount(8), fstab and systemd use themselves; "user" and similar ones imply nosuid,nodev,noexec.
_IGNORED = frozenset((
    "auto", "noauto", "nouser", "nousers", "noowner", "nogroup", "defaults", "_netdev", "nofail", "silent", "loud",
    "mand", "nomand", "iversion", "noiversion", "comment",
))  # fmt: skip
# Options of other FUSE filesystems, of which people copy lines of fstab: nnfs does these anyway, or never.
# Options of the kernel are among them, for lines copied from /proc/mounts.
_OF_OTHERS = frozenset((
    "ac_attr_timeout", "acl", "attr_timeout", "async_read", "atomic_o_trunc", "auto_cache",
    "auto_unmount", "big_writes", "blksize", "clone_fd", "congestion_threshold", "debug",
    "direct_io", "discard", "dmask", "entry_timeout", "fd", "fmask", "gid", "group_id",
    "hard_remove", "intr", "intr_signal", "kernel_cache",
    "kernel_permissions", "large_read", "max_background", "max_idle_threads", "max_readahead",
    "max_threads", "max_write", "modules", "negative_timeout", "no_remote_flock", "no_remote_lock",
    "no_remote_posix_lock", "no_splice_move", "no_splice_read", "no_splice_write", "noauto_cache", "nodiscard",
    "nonempty",
    "noforget", "nolock", "nopath", "nullpath_ok", "parallel_direct_writes", "permissions",
    "readdir_ino", "reconnect", "remember", "rootmode", "setuid", "splice_move", "splice_read",
    "splice_write", "sync_read", "uid", "umask", "use_ino", "user_id", "user_xattr", "writeback_cache",
    "no_writeback_cache",
))  # fmt: skip
_BY_USER = {"user": MS_NOEXEC, "users": MS_NOEXEC, "owner": 0, "group": 0}


@dataclass(frozen=True)
class MountOptions:
    """The ``-o`` options for mount(2), for FUSE and (``own``, bare ones with the value ``""``) for nnfs itself."""

    flags: int = MS_NOSUID | MS_NODEV
    fsname: str = "nnfs"
    subtype: str = "nnfs"
    allow_other: bool = False
    allow_root: bool = False
    default_permissions: bool = True
    max_read: int = 0
    create: bool = False
    own: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether the mount is read-only (``ro``)."""
        return bool(self.flags & MS_RDONLY)

    @property
    def atime(self) -> str:
        """``noatime``, ``relatime`` (the default) or ``strictatime``: FUSE leaves this duty to the filesystem."""
        if self.flags & MS_NOATIME:
            return "noatime"
        return "strictatime" if self.flags & MS_STRICTATIME else "relatime"

    def flag_names(self) -> list[str]:
        """The mount flags as the words that fusermount3 knows."""
        words = ("ro", "noexec", "sync", "dirsync", "noatime")
        return [word for word in words if self.flags & _FLAGS[word][0]]


def split_options(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Split ``-o`` arguments at commas (``\\,`` is a comma inside a value) into (name, value)."""
    pairs = list[tuple[str, str]]()
    for text in texts:
        for word in re.findall(r"(?:\\.|[^,\\]|\\$)+", text):
            name, _, value = re.sub(r"\\(.)", r"\1", word).partition("=")
            if pairs and pairs[-1][0] == "device" and not value and DEVICE.fullmatch(name):
                pairs[-1] = "device", f"{pairs[-1][1]}+{name}"  # device=cuda:0,cpu is one list
            else:
                pairs.append((name, value))
    return pairs


def words() -> list[str]:
    """Return all options that are not nnfs's own, as words."""
    fuse = ("allow_other", "allow_root", "default_permissions", "fsname", "subtype")
    return [*_FLAGS, *_IGNORED, *_BY_USER, *fuse, "create"]


def _is_of_others(name: str, value: str) -> bool:
    return name in _OF_OTHERS or (name == "subtype" and value not in ("", SUBTYPE))  # commands know mounts by it


def parse_options(texts: Iterable[str], *, fsname: str = "nnfs", root: bool | None = None) -> MountOptions:
    """Parse ``-o`` arguments as mount(8) passes them; later ones win. Root gets ``allow_other`` by default."""
    is_root = os.geteuid() == 0 if root is None else root
    flags, names, max_read, own = MS_NOSUID | MS_NODEV, {"fsname": fsname, "subtype": SUBTYPE}, 0, dict[str, str]()
    pairs = list(split_options(texts))
    ignored = tuple(dict.fromkeys(name for name, value in pairs if _is_of_others(name, value)))
    switches = {"allow_other": is_root, "allow_root": False, "default_permissions": True, "create": False}
    for name, value in pairs:
        if name in _FLAGS:
            flags = flags & ~_FLAGS[name][1] | _FLAGS[name][0]
        elif name in _BY_USER:
            flags |= MS_NOSUID | MS_NODEV | _BY_USER[name]
        elif name in switches:
            switches[name] = True
        elif name in names and name not in ignored:
            if not value or "\0" in value:
                raise UsageError(f"option {name} needs a value: {name}=NAME")
            names[name] = value
        elif name == "max_read":
            if not value.isdecimal() or int(value) < 4096:
                raise UsageError("option max_read needs a number of bytes, 4096 or more")
            max_read = int(value)
        elif name not in _IGNORED and name not in ignored and not name.startswith(("x-", "X-")):
            own[name] = value
    if switches["allow_root"]:  # as in libfuse: the kernel lets all in, libfuse sends all but root and the owner away
        switches["allow_other"] = True
    return MountOptions(
        flags=flags, max_read=max_read, own=own, ignored=ignored,
        **names, **switches,  # type: ignore[arg-type]
    )  # fmt: skip


def atime_of(shown: str) -> str:
    """Return `MountOptions.atime` of the options that the mount table shows."""
    words = shown.split(",")
    return next((word for word in ("noatime", "relatime") if word in words), "strictatime")
