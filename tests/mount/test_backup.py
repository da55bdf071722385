"""Incremental backups of a mount that is written to, restored by the command; and its errors."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")


def test_a_chain_of_a_mount_that_is_written_to() -> None:
    with Mount() as mount:
        mount.deadline()
        mnt, base = mount.path, mount.base
        (mnt / "first").write_bytes(b"first" * 50_000)
        whole = json.loads(nnfs("backup", str(mnt), str(base / "whole"), "--json").stdout)
        stop = threading.Event()

        def scribble() -> None:
            number = 0
            while not stop.is_set():
                (mnt / f"noise{number % 5}").write_bytes(os.urandom(1000))
                number += 1

        writer = threading.Thread(target=scribble)
        writer.start()
        try:
            (mnt / "second").write_bytes(b"second" * 50_000)
            os.unlink(mnt / "first")
            nnfs("backup", str(mnt), str(base / "one"), "--since", str(base / "whole"))
            (mnt / "third").write_bytes(b"third")
            last = json.loads(
                nnfs("backup", str(mnt), str(base / "two"), "--since", str(base / "one"), "--json").stdout
            )
        finally:
            stop.set()
            writer.join()
        assert last["bytes"] < whole["bytes"]
        done = nnfs("restore", *(str(base / name) for name in ("whole", "two", "again")), check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "a part before it is missing" in done.stderr
        nnfs("restore", *(str(base / name) for name in ("whole", "one", "two", "again")))
        assert nnfs("fsck", str(base / "again"), "--data").returncode == 0
        with Mount(base / "again") as again:
            assert not (again.path / "first").exists()
            assert (again.path / "second").read_bytes() == b"second" * 50_000
            assert (again.path / "third").read_bytes() == b"third"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("backup", "STORE", "BASE/x", "--since", "BASE/none"), "is not a file"),
        (("restore", "BASE/none", "BASE/new"), "is not a file"),
        (("restore", "BASE/text", "BASE/new"), "is no backup of a store"),
    ],
)
def test_bad_words_are_told(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    (tmp_path / "text").write_bytes(b"text")
    nnfs("mkfs", str(tmp_path / "store"))
    named = (word.replace("BASE", str(tmp_path)).replace("STORE", str(tmp_path / "store")) for word in words)
    done = nnfs(*named, check=False)
    assert done.returncode != 0
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
