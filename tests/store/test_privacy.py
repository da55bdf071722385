"""Files that nnfs writes belong to their owner alone, with any umask; files left open are closed at the next mount."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.background.history import History
from nnfs.blockio.thawcache import Thawed
from nnfs.constants import DATA_FILE
from nnfs.fs.backup import backup
from nnfs.mount import logs
from nnfs.store import privacy
from nnfs.store.env import Store
from nnfs.store.reserve import Reserve
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, work_dir

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


@pytest.fixture(params=[0, 0o022, 0o077], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def below(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def open_ones(folder: Path) -> list[str]:
    """Return the files to which others have any right."""
    return [f"{path} {mode(path):o}" for path in below(folder) if mode(path) & 0o077]


def test_a_store_is_made_closed(tmp_path: Path, umask: int) -> None:
    Store.create(tmp_path / "new").close()
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    store = Store.create(tmp_path / "there")
    backup(store, tmp_path / "there" / "copy")
    store.close()
    for name in ("new", "there"):
        assert open_ones(tmp_path / name) == []
        assert mode(tmp_path / name) == 0o700
        assert mode(tmp_path / name / DATA_FILE) == 0o600


def test_a_backup_does_not_take_over_an_open_file(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    for name in ("copy", "copy.partial"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o666)
    with (tmp_path / "copy.partial").open("rb") as spy:
        backup(store, tmp_path / "copy")
        assert spy.read() == b"old"
    store.close()
    assert mode(tmp_path / "copy") == 0o600
    assert not (tmp_path / "copy.partial").exists()


def test_thawed_copies(tmp_path: Path, umask: int) -> None:
    copies = Thawed(tmp_path / "thawed", 1 << 20)
    assert copies.put(1, b"plain" * 1000)
    assert open_ones(tmp_path / "thawed") == []
    for path in (tmp_path / "thawed").iterdir():
        path.chmod(0o644)
    Thawed(tmp_path / "thawed", 1 << 20).scan()
    assert open_ones(tmp_path / "thawed") == []


def test_logs_and_those_rotated_away(tmp_path: Path, umask: int) -> None:
    old = os.umask(0o022)
    file = tmp_path / "logs" / "log"
    file.parent.mkdir(mode=0o700)
    for name in ("log", "log.1", "log.3"):
        (file.parent / name).write_text("an earlier version's\n")
        (file.parent / name).chmod(0o644)
    os.umask(old)
    handler = logs._File(file, maxBytes=1000, backupCount=logs.FILES_KEPT)
    assert open_ones(file.parent) == []
    for number in range(60):
        handler.emit(logging.makeLogRecord({"msg": f"{number} {'x' * 50}"}))
    handler.close()
    assert {path.name for path in file.parent.iterdir()} == {"log", "log.1", "log.2", "log.3"}
    assert open_ones(file.parent) == []


def test_a_log_on_a_terminal_or_a_pipe_keeps_its_mode(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").chmod(0o666)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open(tmp_path / "pipe", "wb", opener=privacy.opener):
        assert mode(tmp_path / "pipe") == 0o666
    os.close(reader)


# -- a store that is open already


def opened_up(store: Path) -> None:
    """Open a store to others, as an earlier version made it."""
    (store / "thawed").mkdir(exist_ok=True)
    store.chmod(0o2755)
    for path in store.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_close_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store.create(store).close()
    opened_up(store)
    (store / "lost+found").mkdir(mode=0o700)
    closed, left = privacy.close_up(store)
    assert left == []
    assert len(closed) == len({"the directory itself", *os.listdir(store)} - {"lost+found"})
    assert f"{store} (2755)" in closed
    assert mode(store) == 0o2700, "what is not about others stays"
    assert open_ones(store) == []
    assert privacy.close_up(store) == ([], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_in_a_store_is_its_owners(tmp_path: Path) -> None:
    """The owner may be the next one to mount the store, and needs the reserve on a full disk."""
    store = tmp_path / "store"
    Store.create(store).close()
    os.chown(store, 4711, 4712)
    Reserve(store).close()
    history = History(store / "jobs.json")
    history.write()
    Thawed(store / "thawed", 1 << 30).put(1, b"plain")
    for name in ("reserve", "jobs.json", "thawed"):
        assert ((store / name).stat().st_uid, (store / name).stat().st_gid) == (4711, 4712), name


def test_what_a_link_leads_to_keeps_its_mode(tmp_path: Path) -> None:
    """Copies on another disk; on one that is not mounted."""
    store = tmp_path / "store"
    Store.create(store).close()
    (tmp_path / "ssd").mkdir()
    (tmp_path / "ssd").chmod(0o1777)
    (store / "thawed").symlink_to("../ssd")
    (store / "jobs.json").symlink_to("../gone")
    assert privacy.close_up(store) == ([], [])
    (tmp_path / "ssd").rmdir()
    assert privacy.close_up(store) == ([], [])


def test_a_directory_that_holds_other_things_keeps_its_mode(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store.create(store).close()
    (store / "README").write_text("for all")
    opened_up(store)
    store.chmod(0o755)
    closed, left = privacy.close_up(store)
    assert (mode(store), mode(store / "README"), mode(store / DATA_FILE)) == (0o755, 0o644, 0o600)
    assert closed
    assert left == []
    store.chmod(0o1777)
    assert privacy.close_up(store) == ([], [])
    store.chmod(0o775)
    assert "can exchange the store's files" in privacy.close_up(store)[1][0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_belongs_to_others_is_told() -> None:
    base = work_dir()
    store = base / "store"
    Store.create(store).close()
    opened_up(store)
    count = len(below(store))
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.seteuid(65534)
            closed, left = privacy.close_up(store)
            status = 0 if not closed and len(left) == count and all("cannot be closed" in line for line in left) else 98
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shutil.rmtree(base)


@needs_mount
@pytest.mark.mount
def test_a_mount_closes_what_is_open_and_says_so(tmp_path: Path) -> None:
    with Mount() as mount:
        assert "closed to other users" not in mount.log()
        (mount.path / "secret").write_text("to be kept")
        mount.unmount()
        opened_up(mount.store)
        mount.mount()
        assert mount.log().count("closed to other users") == 1
        assert "WARNING nnfs.mount.daemon: closed to other users, who could read what is stored: " in mount.log()
        assert open_ones(mount.store) == []
        nnfs("scrub", str(mount.path), "--wait")
        assert set(os.listdir(mount.store)) <= {*privacy.FILES, *privacy.FOLDERS}, "who else is to close it?"
        nnfs("backup", str(mount.path), str(tmp_path / "copy"))
        assert mode(tmp_path / "copy") == 0o600
        seen = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(mount.store / DATA_FILE)],
            capture_output=True,
        )
        assert seen.returncode != 0
        assert b"Permission denied" in seen.stderr


@needs_mount
@pytest.mark.mount
def test_the_root_of_a_filesystem_that_is_all_the_stores(tmp_path: Path) -> None:
    """Its mode is that of its own root directory: the mount point below keeps its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    disk.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=32m", "tmpfs", disk], check=True)
    try:
        nnfs("mkfs", str(disk))
        assert mode(disk) == 0o700
    finally:
        subprocess.run(["umount", disk], check=True)
    assert mode(disk) == 0o755


@needs_mount
@pytest.mark.mount
def test_others_are_told_whom_to_ask() -> None:
    """The mount is for all, what its daemon knows is not."""
    with Mount() as mount:
        (mount.path / "file").write_text("for all")
        for words in (["status", mount.path], ["df", mount.path], ["stat", mount.path / "file"], ["df", mount.store]):
            done = as_nobody(*map(str, words))
            assert done.returncode != 0
            assert done.stderr.count("\n") == 1, done.stderr
            assert "use sudo" in done.stderr
        done = as_nobody("umount", str(mount.path))
        assert done.returncode != 0
        assert "only that user and root may unmount it, use sudo" in done.stderr


def as_nobody(*args: str) -> subprocess.CompletedProcess[str]:
    """`nnfs ARGS` by an ordinary user. Forked: the interpreter may lie where others cannot enter."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(ours)
            os.dup2(theirs, 2)
            import sys

            from nnfs.cli import locate, maintain, mounting, show
            from nnfs.cli.main import main

            assert all((locate, maintain, mounting, show))
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status = main(args)
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    return subprocess.CompletedProcess(args, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "", text)
