"""Snapshots on a mount: what `.nnfs/snapshots` shows and refuses, and the command."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import keeprules
from nnfs.fs.pasts import HOME, SNAPSHOTS
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, wait_for
from tests.mount.kit import emptied

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
CHUNK = 16384
FOLDER = Path(".nnfs/snapshots")


def snapshot(action: str, path: Path, *more: str) -> Any:
    """The answer of `nnfs snapshot ACTION PATH ... --json`."""
    return json.loads(nnfs("snapshot", action, str(path), *more, "--json").stdout)


def names(mnt: Path) -> list[str]:
    return [one["name"] for one in snapshot("list", mnt)["snapshots"]]


@pytest.fixture
def mnt(mounted: Mount) -> Iterator[Path]:
    """The root of the module's mount, empty and without snapshots."""
    mnt = emptied(mounted)
    known = os.listdir(mnt / FOLDER)
    if known:
        nnfs("snapshot", "delete", str(mnt), *known)
        wait_for("an empty list", lambda: not names(mnt))
    yield mnt
    mounted.deadline(0)


@pytest.fixture
def past(mnt: Path) -> Path:
    """The folder of a snapshot of a tree that has changed since."""
    (mnt / "d/e").mkdir(parents=True)
    (mnt / "d/file").write_bytes(b"before" * 30_000)
    (mnt / "d/e/gone").write_bytes(b"to be removed")
    os.link(mnt / "d/file", mnt / "hard")
    os.symlink("d/file", mnt / "link")
    os.setxattr(mnt / "d", "user.colour", b"blue")
    snapshot("create", mnt, "one")
    with (mnt / "d/file").open("r+b") as file:
        file.write(b"after!")
    (mnt / "d/e/gone").unlink()
    os.setxattr(mnt / "d", "user.colour", b"red")
    os.chmod(mnt / "d", 0o700)
    (mnt / "link").rename(mnt / "renamed")
    (mnt / "new").write_bytes(b"new")
    return mnt / FOLDER / "one"


def test_it_shows_what_was_there(mnt: Path, past: Path) -> None:
    assert sorted(os.listdir(past)) == ["d", "hard", "link"]
    assert (past / "d/file").read_bytes() == (past / "hard").read_bytes() == b"before" * 30_000
    assert (mnt / "d/file").read_bytes()[:6] == b"after!"
    assert (past / "d/file").stat().st_ino == (past / "hard").stat().st_ino
    assert (past / "d/file").stat().st_nlink == 2
    assert (past / "d/e/gone").read_bytes() == b"to be removed"
    assert os.readlink(past / "link") == "d/file"
    assert os.getxattr(past / "d", "user.colour") == b"blue"
    assert os.listxattr(past / "d") == ["user.colour"]
    assert (past / "d").stat().st_mode & 0o777 == 0o755
    assert not (past / "new").exists()
    assert (past / "d/..").samefile(past)
    assert (past / "../..").samefile(mnt / ".nnfs")
    assert os.getxattr(past / "d/file", "user.nnfs.fingerprint") != os.getxattr(mnt / "d/file", "user.nnfs.fingerprint")


def test_no_listing_shows_the_folder(mnt: Path, past: Path) -> None:
    assert ".nnfs" not in os.listdir(mnt)
    assert os.listdir(mnt / ".nnfs") == ["snapshots"]
    assert os.listdir(mnt / FOLDER) == ["one"]
    assert (mnt / ".nnfs").stat().st_ino == HOME
    assert (mnt / FOLDER).stat().st_ino == SNAPSHOTS
    assert not (mnt / "d/.nnfs").exists()


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda _, past: (past / "d/file").write_bytes(b"x"),
    "append": lambda _, past: (past / "d/file").open("ab"),
    "create": lambda _, past: (past / "d/new").touch(),
    "mkdir": lambda _, past: (past / "d/new").mkdir(),
    "mkdir beside": lambda _, past: (past.parent / "two").mkdir(),
    "unlink": lambda _, past: (past / "d/file").unlink(),
    "rmdir": lambda _, past: (past / "d/e").rmdir(),
    "rmdir of a snapshot": lambda _, past: past.rmdir(),
    "rename": lambda _, past: (past / "d/file").rename(past / "d/other"),
    "rename into": lambda mnt, past: (mnt / "new").rename(past / "new"),
    "rename out": lambda mnt, past: (past / "hard").rename(mnt / "hard2"),
    "chmod": lambda _, past: (past / "d/file").chmod(0o600),
    "chown": lambda _, past: os.chown(past / "d/file", 1, 1),
    "times": lambda _, past: os.utime(past / "d/file", (1, 1)),
    "truncate": lambda _, past: os.truncate(past / "d/file", 3),
    "setxattr": lambda _, past: os.setxattr(past / "d", "user.colour", b"green"),
    "removexattr": lambda _, past: os.removexattr(past / "d", "user.colour"),
    "symlink": lambda _, past: os.symlink("x", past / "d/x"),
    "link within": lambda _, past: os.link(past / "d/file", past / "d/x"),
}


def test_nothing_there_can_be_changed(mnt: Path, past: Path) -> None:
    for name, change in CHANGES.items():
        with pytest.raises(OSError, match=r"Read-only|busy") as caught:
            change(mnt, past)
        assert caught.value.errno in (errno.EROFS, errno.EBUSY), name
    assert (past / "d/file").read_bytes() == b"before" * 30_000


def test_no_link_leads_out_of_a_snapshot(mnt: Path, past: Path) -> None:
    with pytest.raises(OSError, match="cross-device") as caught:
        os.link(past / "d/file", mnt / "linked")
    assert caught.value.errno == errno.EXDEV


def test_the_folder_stays_where_it_is(mnt: Path, past: Path) -> None:
    with pytest.raises(FileExistsError):
        (mnt / ".nnfs").mkdir()
    for change in (lambda: (mnt / ".nnfs").rename(mnt / "x"), (mnt / ".nnfs").rmdir):
        with pytest.raises(OSError, match="busy"):
            change()
    (mnt / "dir").mkdir()
    with pytest.raises(OSError, match="busy"):
        (mnt / "dir").rename(mnt / ".nnfs")
    assert (past / "d/file").exists()


def test_open_files_and_deletion(mnt: Path, past: Path) -> None:
    """A file that is open is served until its snapshot is deleted; nothing of that snapshot is read then."""
    with (past / "d/e/gone").open("rb") as file:
        nnfs("snapshot", "delete", str(mnt), "one")
        assert os.listdir(mnt / FOLDER) == []
        with pytest.raises(OSError, match="Stale"):
            os.fstat(file.fileno())
    assert not past.exists()
    wait_for("the deletion", lambda: not names(mnt))
    snapshot("create", mnt, "one")
    assert not (past / "d/e/gone").exists()
    assert (past / "new").read_bytes() == b"new"


def test_a_file_that_is_deleted_and_open_belongs_to_its_snapshot(mnt: Path) -> None:
    with (mnt / "f").open("w+b") as file:
        file.write(b"x" * 3 * CHUNK)
        snapshot("create", mnt, "one")
        (mnt / "f").unlink()
        snapshot("create", mnt, "two")
        file.write(b"y" * CHUNK)
    assert (mnt / FOLDER / "one/f").read_bytes() == b"x" * 3 * CHUNK
    assert os.listdir(mnt / FOLDER / "two") == []
    nnfs("snapshot", "delete", str(mnt), "two")
    wait_for("the deletion", lambda: names(mnt) == ["one"])
    assert (mnt / FOLDER / "one/f").read_bytes() == b"x" * 3 * CHUNK


def test_dirty_pages_of_the_kernel_are_in_it(mnt: Path) -> None:
    with (mnt / "f").open("wb", buffering=0) as file:
        file.write(b"written")
        snapshot("create", mnt, "one")
        file.write(b" and more")
        assert (mnt / FOLDER / "one/f").read_bytes() == b"written"


def test_list_tells_what_only_a_snapshot_holds(mnt: Path, past: Path) -> None:
    snapshot("create", mnt, "two")
    one, two = snapshot("list", mnt)["snapshots"]
    assert (one["name"], two["name"]) == ("one", "two")
    assert one["inodes"] == 6
    assert one["only_here_bytes"] > 0
    assert two["only_here_bytes"] == two["written_since_bytes"] == 0
    assert one["written_since_bytes"] == CHUNK + len(b"new")
    assert "written since" in nnfs("snapshot", "list", str(mnt)).stdout


def test_diff_tells_content_from_attributes(mnt: Path, past: Path) -> None:
    changes = snapshot("diff", mnt, "one")["changes"]
    told = {(one["change"], one["path"], one.get("to")) for one in changes}
    content = next(one["path"] for one in changes if one["change"] == "content")
    assert content in ("d/file", "hard")
    assert told == {
        ("content", content, None), ("attributes", "d", None), ("removed", "d/e/gone", None), ("added", "new", None),
        ("renamed", "link", "renamed"),
    }  # fmt: skip
    snapshot("create", mnt, "two")
    assert snapshot("diff", mnt, "one", "two")["changes"] == changes
    assert snapshot("diff", mnt, "two")["changes"] == []
    assert {one["path"] for one in snapshot("diff", mnt / "d/e", "one")["changes"]} == {"d/e/gone"}
    assert "- d/e/gone" in nnfs("snapshot", "diff", str(mnt), "one").stdout


def test_reports_tell_of_what_lies_in_a_snapshot(mnt: Path, past: Path) -> None:
    told = json.loads(nnfs("stat", str(past / "d/file"), "--json").stdout)
    assert told["size"] == len(b"before" * 30_000)
    assert told["damaged"] == 0
    assert json.loads(nnfs("stat", str(past), "--json").stdout)["inodes"] == 5
    usage = json.loads(nnfs("du", str(past), "--json").stdout)
    assert usage[-1]["logical_bytes"] == len(b"before" * 30_000) + len(b"to be removed")
    assert json.loads(os.getxattr(past / "d/file", "user.nnfs.info"))["damaged"] == 0
    assert nnfs("compact", str(past), check=False).returncode == 2
    assert nnfs("scrub", str(mnt), "--deep", "--wait").returncode == 0


def test_recompression_and_deletion(mnt: Path, past: Path) -> None:
    nnfs("compact", str(mnt), "--all", "--quick", "--wait")
    mnt_stat = json.loads(nnfs("stat", str(past / "d/e"), "--json").stdout)
    assert mnt_stat["damaged"] == 0
    codecs = {line["codec"] for line in json.loads(nnfs("stat", str(past / "d/file"), "--json").stdout)["codecs"]}
    assert codecs == {"ppm"} or "zstd" in codecs
    assert (past / "d/file").read_bytes() == b"before" * 30_000


def test_restore(mnt: Path, past: Path) -> None:
    nnfs("snapshot", "restore", str(mnt / "d/e/gone"), "one")
    assert (mnt / "d/e/gone").read_bytes() == b"to be removed"
    done = nnfs("snapshot", "restore", str(mnt / "d"), "one", check=False)
    assert done.returncode == 2
    nnfs("snapshot", "restore", str(mnt / "d"), "one", "--to", str(mnt / "old"))
    assert (mnt / "old/file").read_bytes() == b"before" * 30_000
    assert os.getxattr(mnt / "old", "user.colour") == b"blue"
    nnfs("snapshot", "restore", str(mnt / "d"), "one", "--replace")
    assert (mnt / "d/file").read_bytes() == b"before" * 30_000
    assert (mnt / "d").stat().st_mode & 0o777 == 0o755
    assert not [name for name in os.listdir(mnt) if name.startswith(".restoring")]


def test_prune_deletes_only_its_own(mnt: Path) -> None:
    for name in ("auto-1", "auto-2", "mine", "auto-3"):
        (mnt / "f").write_text(name)
        snapshot("create", mnt, name)
    told = snapshot("prune", mnt, "--keep", "last=1", "--dry-run")
    assert told == {"deleted": ["auto-1", "auto-2"], "kept": ["auto-3"]}
    assert len(names(mnt)) == 4
    snapshot("prune", mnt, "--keep", "last=1")
    assert os.listdir(mnt / FOLDER) == ["mine", "auto-3"]
    assert (mnt / FOLDER / "mine/f").read_text() == "mine"


def test_wrong_names_and_rules_are_told(mnt: Path) -> None:
    snapshot("create", mnt, "one")
    for arguments in (["create", str(mnt), "one"], ["create", str(mnt), "a/b"], ["delete", str(mnt), "two"]):
        assert nnfs("snapshot", *arguments, check=False).returncode == 2
    for rule in ("daily", "daily=0", "minutely=3"):
        assert nnfs("snapshot", "prune", str(mnt), "--keep", rule, check=False).returncode == 2


def test_rules_keep_the_newest_of_each_period() -> None:
    day = 86400
    start = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))
    known = {f"day {number} {hour}": start + number * day + hour * 3600 for number in range(40) for hour in (0, 5)}
    kept = keeprules.kept(known, keeprules.rules("daily=3,monthly=12"))
    assert kept == {"day 39 5", "day 38 5", "day 37 5", "day 30 5"}
    assert keeprules.kept(known, {"last": 2}) == {"day 39 5", "day 39 0"}


def test_a_remount_shows_them_and_goes_on_with_a_deletion(mnt: Path, mounted: Mount) -> None:
    (mnt / "f").write_bytes(b"x" * CHUNK)
    snapshot("create", mnt, "one")
    snapshot("create", mnt, "two")
    (mnt / "f").unlink()
    nnfs("snapshot", "delete", str(mnt), "one")
    mounted.remount()
    wait_for("the deletion", lambda: names(mnt) == ["two"])
    assert (mnt / FOLDER / "two/f").read_bytes() == b"x" * CHUNK
