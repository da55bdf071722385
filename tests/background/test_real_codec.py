"""The real network on a mount, once: slow to start, so everything is in one test."""

from __future__ import annotations

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
