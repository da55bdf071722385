"""Mount points: checks before a mount is made, and umount(2)."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Mapping

from nnfs.constants import MNT_DETACH
from nnfs.errors import MountError
from nnfs.mount.table import FSTYPE, MountInfo, mounts, resolve

log = logging.getLogger(__name__)

LOOK_S = 5.0  # for a mount to show whether its daemon lives
libc = ctypes.CDLL(None, use_errno=True)


def check_call(result: int, what: str, advice: Mapping[int, str]) -> None:
    """Raise `MountError` if a call has failed (`result` < 0), with the advice for its errno."""
    if result < 0:
        code = ctypes.get_errno()
        raise mount_error(code, what, advice)


def mount_error(code: int, what: str, advice: Mapping[int, str]) -> MountError:
    """Return the error about a failed system call, with its errno in words."""
    hint = advice.get(code)
    error = MountError(f"{what}: {os.strerror(code)}" + (f" ({hint})" if hint else ""))
    error.errno = code
    return error


def umount2(mountpoint: str, flags: int) -> int:
    """Call umount2(2) and return its errno, 0 when it is done. Blocks until the kernel has written everything back."""
    return 0 if libc.umount2(os.fsencode(mountpoint), flags) == 0 else ctypes.get_errno()


def check_uncovered(mountpoint: str, device: str) -> None:
    """Raise `MountError` if something else is mounted over a mount: umount(2) would unmount that."""
    top = _top(mountpoint)
    if top is not None and top.device != device:
        raise MountError(f"{top.source} (type {top.fstype}) is mounted over {mountpoint}: unmount that first")


def unmount_path(mountpoint: str, *, device: str = "", lazy: bool = False) -> None:
    """Unmount as root by umount2(2), as another user by fusermount3. Raises `MountError`.

    `device` is the device number of the mount that is meant.
    """
    if device:
        check_uncovered(mountpoint, device)
    if os.geteuid() == 0:
        advice = {errno.EBUSY: "files are open or a shell stands in it: close them, or unmount lazily"}
        code = umount2(mountpoint, MNT_DETACH if lazy else 0)
        if code:
            raise mount_error(code, f"cannot unmount {mountpoint}", advice)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    if done.returncode:
        raise MountError(f"cannot unmount {mountpoint}: {done.stderr.strip()}")


def usable(mountpoint: str) -> str:
    """Return the real path of a usable mount point. Mounts that killed daemons left on it are unmounted first.

    Raises `MountError`, also where a living nnfs is mounted already: a second mount would hide it.
    """
    path = resolve(mountpoint)
    while (top := _top(path)) is not None and top.fstype == FSTYPE:
        if not is_dead(path):
            busy = MountError(f"{path}: {top.source} is mounted there already; nnfs umount {path} first")
            busy.errno = errno.EBUSY
            raise busy
        log.warning("%s: taking off the mount of a daemon that has died", path)
        unmount_path(path, lazy=True)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise MountError(f"{mountpoint} is not a directory: a filesystem is mounted on an (empty) directory")
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist: create it with mkdir -p") from None
    except OSError as problem:
        raise mount_error(problem.errno or errno.EIO, f"cannot use {mountpoint}", {}) from problem
    return path


def _top(path: str) -> MountInfo | None:
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def is_dead(path: str) -> bool:
    """Return whether the daemon of the mount at a mount point has died. A daemon that does not answer may live.

    It asks by statfs(2), since the kernel may answer a stat(2) of the root from its cache. The thread that waits for a
    hung daemon ends with this process.
    """
    found: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            found.append(error.errno or 0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LOOK_S)
    return found in ([errno.ENOTCONN], [errno.ECONNABORTED])
