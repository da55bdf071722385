"""A store is made where it is meant: by mkfs, with -o create, or by a person who mounts an empty directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.cli import making
from nnfs.cli.main import main
from nnfs.constants import DATA_FILE
from nnfs.errors import NotAStore, StoreError, UsageError
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.harness import REPO, command, environment, mounted_at, nnfs, umount, work_dir

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


def provide(store: Path, *, create: bool = False, at_terminal: bool = False, chunk_size: int | None = None) -> None:
    making.provide(store, create=create, at_terminal=at_terminal, chunk_size=chunk_size)


@pytest.fixture
def fstab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "fstab"
    file.write_text("# comment\n\nproc /proc proc defaults 0 0\n")
    monkeypatch.setattr(making, "FSTAB", str(file))
    return file


def test_only_a_person_or_a_word_makes_a_store(tmp_path: Path, fstab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "new"
    store.mkdir()
    with pytest.raises(NotAStore, match=r"is empty.*nnfs mkfs .*/new, or mount with -o create"):
        provide(store)
    assert os.listdir(store) == []
    assert capsys.readouterr().err == ""
    provide(store, at_terminal=True)
    assert capsys.readouterr().err == f"nnfs: {store} was empty: made a new store in it\n"
    provide(store)
    provide(store, at_terminal=True)
    assert capsys.readouterr().err == ""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lost+found").mkdir()
    provide(tmp_path / "other", create=True, chunk_size=16384)
    opened = Store.open(tmp_path / "other")
    assert opened.superblock.chunk_size == 16384
    opened.close()
    with pytest.raises(UsageError, match="already has chunks of 16384 bytes"):
        provide(tmp_path / "other", create=True, chunk_size=32768)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("at_terminal", [False, True])
def test_a_path_that_is_not_there_is_always_an_error(
    tmp_path: Path, fstab: Path, create: bool, at_terminal: bool
) -> None:
    (tmp_path / "data").mkdir()
    for path, hint in (
        (tmp_path / "dta", f"{tmp_path}/data is there"),
        (tmp_path / "nothing" / "like" / "it", f"nor does {tmp_path}/nothing"),
        (tmp_path / "date" / "store", f"nor does {tmp_path}/date .*{tmp_path}/data is there"),
    ):
        with pytest.raises(NotAStore, match=hint) as caught:
            provide(path, create=create, at_terminal=at_terminal)
        assert f"nnfs mkfs {path}" in str(caught.value)
        assert not path.exists()
    with pytest.raises(NotAStore, match="not a directory"):
        provide(fstab, create=create, at_terminal=at_terminal)


def test_a_disk_that_is_not_mounted(tmp_path: Path, fstab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "my disk"
    disk.mkdir()
    with fstab.open("a") as file:
        file.write("UUID=0 " + str(disk).replace(" ", "\\040") + "/ ext4 noauto 0 0\n")
    for path in (disk, disk / "store"):
        with pytest.raises(NotAStore, match=f"has a filesystem for {disk}, which is not mounted"):
            provide(path, at_terminal=True)
    assert os.listdir(disk) == []
    capsys.readouterr()
    assert main(["mkfs", str(disk / "inner")]) == 0
    assert "which is not mounted" in capsys.readouterr().err
    shutil.rmtree(disk / "inner")
    provide(disk, create=True)  # says so in as many words
    assert DATA_FILE in os.listdir(disk)


def test_a_directory_that_is_no_store(tmp_path: Path, fstab: Path) -> None:
    for name in ("b", "a"):
        Store.create(tmp_path / name).close()
    for options in ({}, {"create": True}, {"at_terminal": True}):
        with pytest.raises(NotAStore, match=f"there is one in {tmp_path}/a and in {tmp_path}/b"):
            provide(tmp_path, **options)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_store_of_somebody_else(tmp_path: Path, fstab: Path) -> None:
    store = tmp_path / "store"
    Store.create(store).close()
    os.chmod(tmp_path, 0o711)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setgid(65534)
            os.seteuid(65534)
            provide(store)
        except StoreError as error:
            status = 0 if "cannot be read by this user" in str(error) else 98
        except PermissionError:
            status = 0  # of a directory above
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("words", [["mkfs", ""], ["fsck", ""], ["df", ""], ["mount", "", "mnt"], ["mount", "s", ""]])
def test_an_empty_path_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A variable of a shell that was never set: `nnfs mkfs "$STORE"`."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == (8 if words[0] == "fsck" else 1)
    assert "'': No such file or directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_mkfs_goes_where_the_kernel_does(tmp_path: Path) -> None:
    """LINK/.. is above what the link leads to, as it is for `nnfs mount`."""
    (tmp_path / "deep" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/a")
    assert main(["mkfs", f"{tmp_path}/link/../store"]) == 0
    assert os.listdir(tmp_path / "deep" / "store") == [DATA_FILE]
    assert not (tmp_path / "store").exists()
    assert main(["fsck", f"{tmp_path}/link/../store"]) == 0


def test_a_name_with_a_line_feed_is_told_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "a\n\x1b[1mb"
    store.mkdir()
    provide(store, at_terminal=True)
    assert capsys.readouterr().err == f"nnfs: {tmp_path}/a\\n\\x1b[1mb was empty: made a new store in it\n"


def test_mkfs_wants_the_parent(tmp_path: Path) -> None:
    done = nnfs("mkfs", str(tmp_path / "no" / "store"), check=False)
    assert done.returncode == UsageError.exit_code
    assert f"{tmp_path}/no does not exist" in done.stderr
    assert not (tmp_path / "no").exists()


class Places:
    """An empty directory, and one to mount it on."""

    def __init__(self, base: Path) -> None:
        self.base, self.store, self.mnt = base, base / "store", base / "mnt"
        self.store.mkdir()
        self.mnt.mkdir()

    def unmount(self) -> None:
        nnfs("umount", str(self.mnt))


@pytest.fixture
def places() -> Iterator[Places]:
    places = Places(work_dir())
    try:
        yield places
    finally:
        if mounted_at(places.mnt):
            umount(places.mnt, 3)
        subprocess.run(["rm", "-r", str(places.base)], check=True)


def at_terminal(*args: str) -> tuple[int, str]:
    """Exit status and output of `nnfs ARGS` on a terminal of its own."""
    ours, theirs = os.openpty()
    try:
        child = subprocess.Popen(command(*args), env=environment(), stdin=theirs, stdout=theirs, stderr=theirs)
    finally:
        os.close(theirs)
    said = b""
    with open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                data = terminal.read(4096)
            except OSError:  # EIO: the last one has closed it
                break
            if not data:
                break
            said += data
    return child.wait(), said.decode()


@needs_mount
@pytest.mark.mount
def test_a_person_mounts_an_empty_directory(places: Places) -> None:
    status, said = at_terminal("mount", str(places.store), str(places.mnt), "--log", str(places.base / "log"))
    assert (status, said) == (0, f"nnfs: {places.store} was empty: made a new store in it\r\n")
    assert mounted_at(places.mnt)
    places.unmount()


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("more", [[], ["-f"], ["--chunk-size", "16K"]], ids=["background", "foreground", "chunks"])
def test_a_script_does_not(places: Places, more: list[str]) -> None:
    done = nnfs("mount", str(places.store), str(places.mnt), *more, check=False)
    assert done.returncode == NotAStore.exit_code
    assert "nnfs mkfs" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(places.store) == []
    assert not mounted_at(places.mnt)


@needs_mount
@pytest.mark.mount
def test_the_helper_does_not_at_a_terminal_either(places: Places) -> None:
    """`mount /mnt/nn` is typed by a person, but the line in fstab was written long ago."""
    ours, theirs = os.openpty()
    try:
        helper = ["sh", str(REPO / "nnfs/cli/sbin/mount.nnfs"), str(places.store), str(places.mnt)]
        done = subprocess.run(helper, stdin=theirs, stdout=theirs, stderr=theirs)
        assert done.returncode == 32
        assert b"nnfs mkfs" in os.read(ours, 4096)
    finally:
        os.close(theirs)
        os.close(ours)
    assert os.listdir(places.store) == []
    assert not mounted_at(places.mnt)


@needs_mount
@pytest.mark.mount
def test_a_wrong_option_is_told_first(places: Places) -> None:
    done = nnfs("mount", str(places.store), str(places.mnt), "-o", "create,cache=much", check=False)
    assert done.returncode == UsageError.exit_code
    assert os.listdir(places.store) == []
