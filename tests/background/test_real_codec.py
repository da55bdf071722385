"""Real codecs on a mount, once each: they are slow to start, so everything is in one test."""

from __future__ import annotations

import struct

import pytest

from nnfs.cli import client
from tests.conftest import why_no_mount
from tests.harness import REPO, Mount, nnfs

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
LIMIT_S = 3600.0


@pytest.mark.mount
def test_text_turns_neural_and_is_read_cold_by_another_mount() -> None:
    text = (REPO / "tests" / "background" / "prose.txt").read_bytes()
    with Mount(options=["compact=off", "thawed=0"]) as mount:
        mount.deadline(LIMIT_S)
        (mount.path / "file").write_bytes(text)
        nnfs("compact", str(mount.path), "--all", "--wait", timeout=LIMIT_S)
        mount.options.append("threads=1")
        mount.remount()
        mount.deadline(LIMIT_S)
        found = client.ask(mount.store, "stat", ino=(mount.path / "file").stat().st_ino)
        assert [(line["codec"], line["chunks"]) for line in found["codecs"]] == [("neural", 1)]
        assert 0 < found["stored_bytes"] < len(text) // 2
        assert (mount.path / "file").read_bytes() == text
        mount.unmount()
        done = nnfs("fsck", str(mount.store), "--data", timeout=LIMIT_S)
        assert done.returncode == 0


@pytest.mark.mount
def test_records_are_stored_under_an_id_that_older_versions_do_not_know() -> None:
    records = b"".join(struct.pack("<II", 50 + n % 7, 1000 + 53 * n) for n in range(8000))
    with Mount(options=["compact=off", "thawed=0", "neural=off", "policy=cold"]) as mount:
        mount.deadline(LIMIT_S)
        (mount.path / "file").write_bytes(records)
        for _ in range(2):  # the second finds nothing that it would do again
            nnfs("compact", str(mount.path), "--all", "--wait", timeout=LIMIT_S)
            found = client.ask(mount.store, "stat", ino=(mount.path / "file").stat().st_ino)
            assert [(line["codec"], line["chunks"]) for line in found["codecs"]] == [("fields", 1)]
        mount.remount()
        mount.deadline(LIMIT_S)
        assert (mount.path / "file").read_bytes() == records
        mount.unmount()
        assert nnfs("fsck", str(mount.store), "--data", timeout=LIMIT_S).returncode == 0
