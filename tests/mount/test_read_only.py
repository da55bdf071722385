"""A store on a read-only filesystem: it mounts, lists and is backed up; a writable mount is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, umount

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")


def test_a_store_on_a_read_only_filesystem(tmp_path: Path) -> None:
    with Mount(tmp_path / "store") as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d/file").write_bytes(b"content")
        nnfs("quota", "set", str(mount.path / "d"), "--bytes", "1M")
    medium = tmp_path / "medium"
    medium.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "store", medium], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", medium], check=True)
        (tmp_path / "mnt").mkdir()
        done = nnfs("mount", str(medium), str(tmp_path / "mnt"), check=False)
        assert done.returncode != 0
        assert "-o ro" in done.stderr
        with Mount(medium, options=["ro"]) as mount:
            assert (mount.path / "d/file").read_bytes() == b"content"
            assert "/d" in nnfs("quota", "show", str(mount.path)).stdout
            done = nnfs("quota", "set", str(mount.path / "d"), "--bytes", "2M", check=False)
            assert (done.returncode, "read-only" in done.stderr) == (2, True)
            nnfs("backup", str(mount.path), str(tmp_path / "copy"))
        nnfs("restore", str(tmp_path / "copy"), str(tmp_path / "again"))
        assert nnfs("fsck", str(medium)).returncode == nnfs("fsck", str(tmp_path / "again")).returncode == 0
    finally:
        umount(medium)
