"""The tar programs, a tree of awkward names, and what of two trees must be the same."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.apps.test_apps import make_everything, manifest
from tests.harness import WAIT_S

__all__ = ["PROGRAMS", "create", "extract", "make_everything", "make_names", "same", "times"]

PROGRAMS = ["tar", "bsdtar"]
_EXTRACT = {
    "tar": ["tar", "--xattrs", "--xattrs-include=*", "--acls", "--warning=no-unknown-keyword", "--same-owner", "-xpf"],
    "bsdtar": ["bsdtar", "--xattrs", "--acls", "--same-owner", "-xpf"],
}
_CREATE = {
    "tar": ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "-cf"],
    "bsdtar": ["bsdtar", "--format=pax", "--xattrs", "--acls", "--read-sparse", "-cf"],
}


def _run(argv: list[str | Path]) -> None:
    if shutil.which(os.fspath(argv[0])) is None:
        pytest.skip(f"{argv[0]} is not installed")
    done = subprocess.run([os.fspath(word) for word in argv], capture_output=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")


def extract(program: str, archive: Path, folder: Path) -> None:
    """Extract an archive with another program, attributes and all."""
    folder.mkdir()
    _run([*_EXTRACT[program], archive, "-C", folder])


def create(program: str, folder: Path, archive: Path) -> None:
    """Make an archive of a directory with another program, attributes and all."""
    _run([*_CREATE[program], archive, "-C", folder, "."])


def make_names(base: Path, attribute: bytes = b"user.%3D=%25=x") -> None:
    """Paths at the borders of the fields of a header, beyond all of them, and names that are no UTF-8."""
    base.mkdir()
    root = os.fsencode(base)
    for length in (99, 100, 101, 154, 155, 156, 254, 255):
        with open(root + b"/" + b"n" * length, "wb") as file:
            file.write(b"%d" % length)
    for first in (98, 99, 154, 155, 156):
        folder = root + b"/" + b"d" * first
        os.mkdir(folder)
        for second in (98, 99, 100, 101):
            with open(folder + b"/" + b"f" * second, "wb") as file:
                file.write(b"%d %d" % (first, second))
            os.symlink(b"t" * (second + 1), folder + b"/" + b"s" * second)
    deep = root
    for name in (b"\xff\xfe" * 40, b"=%20%3D", b"line\nfeed", b"z" * 200):
        deep += b"/" + name
        os.mkdir(deep)
        with open(deep + b"/\xe4 file", "wb") as file:
            file.write(name)
        os.setxattr(deep, attribute, b"\0\xff\n= 7 a=b\n")
    os.link(deep + b"/\xe4 file", root + b"/second name")


def times(base: Path) -> dict[bytes, tuple[int, int]]:
    """The atime and mtime of everything, in nanoseconds; of directories, which this lists, the mtime alone."""
    root = os.fsencode(base)
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files, b"."):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            atime = 0 if stat.S_ISDIR(status.st_mode) else status.st_atime_ns
            found[os.path.relpath(path, root)] = atime, status.st_mtime_ns
    return found


def same(one: Path, other: Path) -> None:
    """Assert that two trees have the same content, modes, owners, mtimes, attributes and hard links."""
    first, second = manifest(one), manifest(other)
    assert first.keys() == second.keys()
    assert {name: (first[name], second[name]) for name in first if first[name] != second[name]} == {}
    assert any(stat.S_ISREG(int(str(found[0]))) for found in first.values())
