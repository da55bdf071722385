"""`nnfs warm` on a mount with quick codecs: what is decoded ahead, within which limits, and what it tells."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import client
from tests.background import coding
from tests.background.kit import COLD, Chaos
from tests.background.mountkit import Start, cold_read, done, end_of, mounts, sync, write
from tests.harness import command, environment, wait_for

pytestmark = [mounts, pytest.mark.mount]

SIZE = 16_000


def cold(start: Start, *options: str, files: int = 6, folder: str = "d", **knobs: str) -> Chaos:
    """A mount with cold files below `folder`, of one chunk each."""
    mount = start(mode="none", options=(*COLD, "cache=0", *options), **knobs)
    (mount.path / folder).mkdir()
    for number in range(files):
        write(mount.path / folder / f"f{number}", coding.text(number, SIZE))
    sync(mount)
    assert done(mount, "compact", mount.path, all=True)["cold_chunks"] == files
    return mount


def warm(mount: Chaos, *paths: Path, **request: Any) -> dict[str, Any]:
    inodes = [path.stat().st_ino for path in paths]
    task = end_of(mount, mount.ask("warm", inodes=inodes, **request)["job"])
    assert task["state"] == "done", task
    return {**task["result"], "note": task["note"], "failed": task["failed_chunks"]}


def decoded(mount: Chaos) -> int:
    return int(mount.ask("counters")["decoded_bytes"])


def nnfs(mount: Chaos, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*words), env=environment(), capture_output=True, cwd=mount.path, **how)


def test_what_is_warm_is_read_without_decoding(start: Start) -> None:
    mount = cold(start)
    found = warm(mount, mount.path / "d")
    assert (found["files"], found["decoded_chunks"], found["warm_chunks"], found["left_files"]) == (6, 6, 0, 0)
    assert (found["kept_in"], found["full"]) == ("disk", "")
    assert found["copies_bytes"] == mount.ask("status")["thawed_bytes"]
    before = decoded(mount)
    for number in range(6):
        assert cold_read(mount.path / "d" / f"f{number}") == coding.text(number, SIZE)
    assert decoded(mount) == before
    again = warm(mount, mount.path)
    assert (again["decoded_chunks"], again["warm_chunks"], again["copies_bytes"]) == (0, 6, found["copies_bytes"])
    hot = write(mount.path / "hot", b"x" * SIZE)
    sync(mount)
    assert warm(mount, hot)["note"] == "nothing there is cold"


def test_no_more_than_the_limit_and_no_copy_of_its_own_is_lost(start: Start) -> None:
    mount = cold(start, "thawed=40K")
    warm(mount, mount.path / "d" / "f5")
    found = warm(mount, mount.path / "d")
    assert found["copies_bytes"] <= 40 << 10
    assert found["full"] == "the limit of copies on disk is reached"
    assert found["left_files"] == 6 - found["decoded_chunks"] - found["warm_chunks"] > 0
    assert (found["warm_chunks"], found["left_bytes"]) == (1, SIZE * found["left_files"])
    left = {one["path"] for one in found["left"]}
    assert len(left) == found["left_files"]
    before = decoded(mount)
    for name in {f"f{number}" for number in range(6)} - left:
        cold_read(mount.path / "d" / name)
    assert decoded(mount) == before, "each copy of the task is still there"
    told = nnfs(mount, "warm", "d", "--wait")
    text = told.stdout.decode()
    assert (told.returncode, told.stderr) == (8, b"")
    assert f"did not fit: {SIZE * len(left) / 1024:.1f} KiB of {len(left)} files" in text
    assert all(f"{mount.path}/d/{name} (15.6 KiB)" in text for name in left)


def test_a_smaller_limit_holds_at_once(start: Start) -> None:
    mount = cold(start)
    warm(mount, mount.path / "d")
    assert mount.ask("status")["thawed_bytes"] > 20 << 10
    mount.ask("set", options={"thawed": "20K"})
    assert 0 < mount.ask("status")["thawed_bytes"] <= 20 << 10
    copies = list((mount.store / "thawed").iterdir())
    assert sum(copy.stat().st_blocks * 512 for copy in copies) <= 20 << 10
    mount.ask("set", options={"thawed": "0", "cache": "1M"})
    warm(mount, mount.path / "d")
    assert mount.ask("status")["cache_bytes"] >= 6 * SIZE
    mount.ask("set", options={"cache": "40K"})
    assert 0 < mount.ask("status")["cache_bytes"] <= 40 << 10
    mount.ask("set", options={"cache": "0"})
    assert mount.ask("status")["cache_bytes"] == 0


def test_files_listed_on_standard_input(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = cold(start, folder="a\nb\udcff")
    names = sorted((mount.path / "a\nb\udcff").iterdir())
    given = b"\0".join(os.fsencode(name.relative_to(mount.path)) for name in names[:2]) + b"\0none\0/etc/passwd"
    told = nnfs(mount, "warm", ".", "-0", "--json", input=given)
    result = json.loads(told.stdout.splitlines()[-1])["result"]
    assert (told.returncode, result["files"], result["decoded_chunks"]) == (1, 2, 2), told.stderr
    assert told.stderr.splitlines() == [
        b"nnfs: none: No such file or directory",
        b"nnfs: /etc/passwd: not on this mount",
    ]
    told = nnfs(mount, "warm", ".", "-0", input=b"")
    assert (told.returncode, b"standard input lists nothing" in told.stderr) == (2, True)
    told = nnfs(mount, "warm", ".", "-0", input=b"\0".join(os.fsencode(name) for name in names))
    assert told.stdout.splitlines()[0] == b"warm: 6 cold files: 4 chunks decoded, 2 were warm already"


def test_batches_of_a_list_share_one_limit(start: Start) -> None:
    mount = cold(start, "thawed=40K")
    first = warm(mount, *(mount.path / "d" / f"f{number}" for number in range(2)))
    second = warm(
        mount, *(mount.path / "d" / f"f{number}" for number in range(2, 6)), spent=first["copies_bytes"]
    )  # fmt: skip
    assert first["left_files"] == 0
    assert first["copies_bytes"] < second["copies_bytes"] <= 40 << 10
    assert second["left_files"] > 0
    again = warm(mount, *(mount.path / "d" / f"f{number}" for number in range(2)))
    assert again["warm_chunks"] == 2, "those of the first batch are still there"


def test_depth(start: Start) -> None:
    mount = cold(start)
    assert warm(mount, mount.path, depth=0)["note"] == "nothing there is cold"
    told = nnfs(mount, "warm", "..", "--depth=1", "--wait", timeout=60)
    assert told.returncode == 2, "not on the mount"
    told = nnfs(mount, "warm", ".", "--depth=1", "--wait")
    assert told.stdout.splitlines()[0] == b"warm: 6 cold files: 6 chunks decoded, 0 were warm already"


def test_into_memory_where_there_are_no_copies(start: Start) -> None:
    mount = cold(start, "thawed=0")
    client.ask(mount.store, "set", options={"cache": "50K"})
    found = warm(mount, mount.path)
    assert (found["kept_in"], found["decoded_chunks"], found["left_files"]) == ("memory", 3, 3)
    assert (found["copies_bytes"], found["limit_bytes"]) == (3 * SIZE, 50 << 10)
    assert found["full"] == "the limit of the cache in memory is reached"
    before = decoded(mount)
    left = {one["path"] for one in found["left"]}
    for name in {f"d/f{number}" for number in range(6)} - left:
        cold_read(mount.path / name)
    assert decoded(mount) == before


def test_a_snapshot_is_warmed_too(start: Start) -> None:
    mount = cold(start)
    assert nnfs(mount, "snapshot", "create", ".", "then").returncode == 0
    for number in range(6):
        (mount.path / "d" / f"f{number}").unlink()
    sync(mount)
    found = warm(mount, mount.path / ".nnfs" / "snapshots" / "then")
    assert (found["files"], found["decoded_chunks"]) == (6, 6)


def test_it_ends_in_the_middle_and_beside_other_tasks(start: Start, tmp_path: Path) -> None:
    mount = cold(start, slow="0.2")
    gate = tmp_path / "gate"
    write(mount.path / "gate", b"gate:%s\n" % os.fsencode(gate) + coding.text(9, SIZE))
    sync(mount)
    other = mount.ask("compact", ino=1, all=True)["job"]
    wait_for("the other task", Path(f"{gate}.reached").exists)
    task = mount.ask("warm", inodes=[1])["job"]
    wait_for("the task", lambda: mount.ask("job", job=task)["state"] == "running")
    assert mount.ask("job", job=other)["state"] == "running", "it does not wait for the other one"
    mount.ask("cancel", job=task)
    assert end_of(mount, task)["state"] == "cancelled"
    gate.touch()
    assert end_of(mount, other)["state"] == "done"
    assert nnfs(mount, "warm", ".", "--cancel").stdout == b"there is no warm under way\n"


def test_damage_is_counted_and_told_by_the_status(start: Start) -> None:
    mount = cold(start)
    mount.set(wrong="read+reference")
    mount.remount()
    mount.expect_log("(?s).*block .*")
    found = warm(mount, mount.path)
    assert (found["decoded_chunks"], found["failed"]) == (0, 6)
    assert mount.ask("status")["damaged_blocks"] == 6
