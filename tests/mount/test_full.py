"""Recompression on a full disk: what makes the store smaller may go on there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.background.coding import model_file, text
from tests.background.kit import COLD, Chaos, fsck_clean
from tests.background.mountkit import CHUNK, done, end_of, sync
from tests.caches import wrote
from tests.conftest import why_no_mount
from tests.harness import libc, umount, wait_for, work_dir
from tests.semantics.kit import checked

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    path = work_dir()
    checked(libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=8m"))
    try:
        yield path
    finally:
        umount(path)
        path.rmdir()


def fill(folder: Path) -> dict[Path, bytes]:
    """Write files of text until one does not fit; that one goes."""
    written: dict[Path, bytes] = {}
    while True:
        path, data = folder / f"f{len(written)}", text(len(written), CHUNK)
        if not wrote(path, data):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return written
        written[path] = data


def test_a_model_that_does_not_fit_is_told(small_disk: Path) -> None:
    with Chaos(small_disk / "store", mode="none") as mount:
        mount.expect_log("full|space|model")
        (mount.base / "models" / "default.safetensors").write_bytes(model_file("default", 4 << 20))
        written = fill(mount.path)
        job = end_of(mount, mount.ask("compact", ino=1, all=True)["job"])
        assert job["state"] == "failed"
        assert "neural=off" in job["error"]
        for path, data in written.items():
            assert path.read_bytes() == data


def test_a_full_disk_is_recompressed(small_disk: Path) -> None:
    with Chaos(small_disk / "store", mode="none", options=(*COLD, "neural=off")) as mount:
        mount.deadline()
        mount.expect_log("full|space")
        written = fill(mount.path)
        with contextlib.suppress(OSError):  # syncfs tells of the write that failed, once
            sync(mount)
        before = os.statvfs(mount.path).f_bavail
        job = done(mount, "compact", mount.path, all=True)
        assert job["cold_chunks"] > 0.9 * job["total_chunks"] > 0
        wait_for("room to be given back", lambda: os.statvfs(mount.path).f_bavail > before, 60)
        more = mount.path / "more"
        more.write_bytes(text(9999, 8 * CHUNK))  # there is room again
        mount.unmount()
        fsck_clean(mount.store)
        mount.mount()
        for path, data in written.items():
            assert path.read_bytes() == data
        assert more.read_bytes() == text(9999, 8 * CHUNK)
