"""Small filesystems of their own for tests: ext4, xfs, btrfs and tmpfs, also with a quota."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import umount, work_dir

MIB = 1 << 20
KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
SIZES = (48, 64, 96, 200, 320, 512)  # MiB
_SMALLEST = {"xfs": 300, "btrfs": 16}  # MiB that mkfs takes
_MIXED = 256  # MiB: below it btrfs keeps data and metadata in the same block groups, as its manual advises
_PROJECT = 77
_QUOTAS = ("ext4", "xfs", "btrfs")


@functools.cache
def why_not(kind: str, size: int) -> str:
    """Why there can be no such filesystem here; empty when there can."""
    if size < _SMALLEST.get(kind, 0):
        return f"{kind} has at least {_SMALLEST[kind]} MiB"
    if kind != "tmpfs" and shutil.which(f"mkfs.{kind}") is None:
        return f"no mkfs.{kind} here"
    if kind not in Path("/proc/filesystems").read_text().split():
        subprocess.run(["modprobe", "-q", kind], check=False)
        if kind not in Path("/proc/filesystems").read_text().split():
            return f"this kernel has no {kind}"
    return ""


@functools.cache
def why_no_quota(kind: str) -> str:
    """Why such a filesystem can have no quota here; empty when it can."""
    size = max(100, _SMALLEST.get(kind, 0))
    if kind not in _QUOTAS or why_not(kind, size):
        return why_not(kind, size) or f"{kind} has no quota for a folder"
    try:
        with disk(kind, size, quota=50):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no quota for {kind} here: {error}"


def _make(kind: str, image: Path, size: int, quota: bool) -> None:
    with image.open("wb") as file:
        file.truncate(size * MIB)
    options = {
        "ext4": ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", *(["-O", "quota,project"] if quota else [])],
        "xfs": ["-q", "-f"],
        "btrfs": ["-q", "-f", *(["--mixed"] if size < _MIXED else [])],
    }[kind]
    subprocess.run([f"mkfs.{kind}", *options, image], check=True, capture_output=True)


@contextmanager
def disk(kind: str, size: int, *, quota: int = 0) -> Iterator[Path]:
    """A filesystem of `size` MiB, mounted; with `quota` its folder `limited` may hold so many MiB."""
    base = work_dir()
    image, point = base / "image", base / "disk"
    point.mkdir()
    try:
        if kind == "tmpfs":
            command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", point]
        else:
            _make(kind, image, size, bool(quota))
            options = "loop,prjquota" if quota and kind != "btrfs" else "loop"
            command = ["mount", "-o", options, image, point]
        subprocess.run(command, check=True, capture_output=True)
        try:
            if quota:
                _limit(kind, point, quota)
            yield point
        finally:
            umount(point)
    finally:
        shutil.rmtree(base)


def _limit(kind: str, point: Path, size: int) -> None:
    folder = point / "limited"
    if kind == "btrfs":
        steps: tuple[tuple[str | Path, ...], ...] = (
            ("quota", "enable", point),
            ("subvolume", "create", folder),
            ("qgroup", "limit", f"{size}M", folder),
        )
        for one in steps:
            subprocess.run(["btrfs", *one], check=True, capture_output=True)
        return
    folder.mkdir()
    if kind == "ext4":
        subprocess.run(["chattr", "-p", str(_PROJECT), "+P", folder], check=True)
        blocks = str(size * 1024)
        subprocess.run(["setquota", "-P", str(_PROJECT), blocks, blocks, "0", "0", point], check=True)
    else:
        setup = (f"project -s -p {folder} {_PROJECT}", f"limit -p bhard={size}m {_PROJECT}")
        for step in setup:
            subprocess.run(["xfs_quota", "-x", "-c", step, point], check=True, capture_output=True)


def free(path: Path) -> int:
    """Bytes that an ordinary user may still write."""
    lower = os.statvfs(path)
    return lower.f_bavail * lower.f_frsize
