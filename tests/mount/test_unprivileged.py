"""Mounting, looking, checking and saving without root, without a home, on media that cannot be written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.errors import NotAStore, StoreError
from nnfs.mount import logs
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.txn import Snapshot
from tests.conftest import why_no_mount
from tests.harness import REPO, Mount, mounted_at, nnfs, umount, work_dir

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
NOBODY = 65534
CONTENT = b"content\n" * 30_000


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory on disk that everybody may enter."""
    path = work_dir()
    try:
        yield path
    finally:
        for name in ("mnt", "medium"):
            with contextlib.suppress(OSError):
                while mounted_at(path / name):
                    umount(path / name, 3)
        shutil.rmtree(path)


class Nobody:
    """An ordinary user without a home, who runs this Python from where everybody can enter."""

    def __init__(self, program: Path) -> None:
        self.mounts: list[Path] = []
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        roots: tuple[str | Path, ...] = (sys.base_prefix, sys.prefix, REPO)
        places = [self._shown(program / str(n), place) for n, place in enumerate(roots)]
        self.python = [str(places[0] / "bin" / version), "-P"]
        path = [places[2], places[1] / "lib" / version / "site-packages"]
        self.env = {
            "PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent", "LD_LIBRARY_PATH": str(places[0] / "lib"),
        }  # fmt: skip
        if not os.stat("/dev/fuse").st_mode & 0o006:  # as it is without udev
            node = program / "fuse"
            os.mknod(node, 0o20666, os.stat("/dev/fuse").st_rdev)
            node.chmod(0o666)
            subprocess.run(["mount", "--bind", node, "/dev/fuse"], check=True)
            self.mounts.append(Path("/dev/fuse"))

    def _shown(self, at: Path, place: str | Path) -> Path:
        at.mkdir(parents=True)
        subprocess.run(["mount", "--bind", place, at], check=True)
        self.mounts.append(at)
        subprocess.run(["mount", "-o", "remount,bind,ro", at], check=True)  # whatever clears up must not delete there
        return at

    def close(self) -> None:
        for at in self.mounts:
            subprocess.run(["umount", "-l", at], check=True)

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        return subprocess.run(
            [*user, *self.python, *words], env={**self.env, **env}, cwd="/", capture_output=True, text=True, timeout=300
        )

    def nnfs(self, *args: object, status: int = 0, **env: str) -> str:
        """Return the output of a command, errors first."""
        done = self.run("-m", "nnfs", *map(str, args), **env)
        assert done.returncode == status, f"nnfs {args}: {done.returncode}\n{done.stderr}{done.stdout}"
        return done.stderr + done.stdout

    def says(self, expression: str) -> object:
        """The value of a Python expression, worked out by the user."""
        done = self.run("-c", f"import json, os, pathlib, stat; print(json.dumps({expression}))")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def nobody(base: Path) -> Iterator[Nobody]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    user = Nobody(base / "program")
    try:
        yield user
    finally:
        user.close()


def owned(path: Path) -> Path:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    return path


# -- an ordinary user


@needs_mount
@pytest.mark.mount
def test_a_user_makes_mounts_uses_and_unmounts(base: Path, nobody: Nobody) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is missing")
    store, mnt = owned(base / "store"), owned(base / "mnt")
    nobody.nnfs("mkfs", store)
    said = nobody.nnfs("mount", store, mnt)
    if not os.path.exists(logs.JOURNAL_SOCKET):
        assert said == "nnfs: no log is kept: there is no home directory to keep it in; --log FILE names another one\n"
    assert mounted_at(mnt)
    assert nobody.says(f"os.stat({str(mnt)!r})[4:6]") == [NOBODY, NOBODY]
    assert nobody.says(f"pathlib.Path({str(mnt)!r}, 'file').write_bytes({CONTENT[:800]!r})") == 800
    assert json.loads(nobody.nnfs("stat", mnt / "file", "--json"))["size"] == 800
    status = json.loads(nobody.nnfs("status", mnt, "--json"))
    assert (status["mountpoint"], status["store"]) == (str(mnt), str(store))
    nobody.nnfs("df", mnt)
    nobody.nnfs("backup", mnt, store.parent / "store" / ".." / "mnt" / "x", status=2)
    nobody.nnfs("umount", mnt)
    assert not mounted_at(mnt)
    assert "clean" in nobody.nnfs("fsck", store)
    assert not Path("/nonexistent").exists()
    assert {path.stat().st_uid for path in [store, *store.iterdir()]} == {NOBODY}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_root_directory_is_theirs_who_made_the_store(base: Path, nobody: Nobody) -> None:
    nobody.nnfs("mkfs", owned(base / "all") / "store")
    opened = Store.open(base / "all" / "store", readonly=True)
    with opened.read() as snapshot:
        root = env_inode(snapshot)
    opened.close()
    assert (root.uid, root.gid) == (NOBODY, NOBODY)


def env_inode(snapshot: Snapshot) -> schema.Inode:
    record = snapshot.get("inode", schema.inode_key(schema.ROOT_INO))
    assert record is not None
    return schema.Inode.unpack(schema.ROOT_INO, record)


# -- logs


@pytest.fixture
def no_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "none"))


def test_a_log_that_cannot_be_written_falls_back(
    no_journal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(logs, "LOG_DIR", tmp_path / "log")
    handler, where = logs._handler(Path("/s"), False, tmp_path / "file" / "log")
    assert where == str(logs.default_file(Path("/s")))
    assert capsys.readouterr().err == (
        f"nnfs: the log {tmp_path}/file/log cannot be written (Not a directory): logging to {where}\n"
    )
    handler.close()
    monkeypatch.setattr(logs, "LOG_DIR", tmp_path / "file")
    for file in (None, tmp_path / "file" / "log"):
        handler, where = logs._handler(Path("/s"), False, file)
        assert where == logs.NOWHERE
        said = capsys.readouterr().err
        assert said.startswith("nnfs: no log is kept: ")
        assert said.count("\n") == 1
    handler, where = logs._handler(Path("/s"), True, tmp_path / "file" / "log")
    assert where == logs.STDERR


@pytest.mark.parametrize("home", [None, "/nonexistent", "relative"])
def test_no_home(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert logs.default_file(Path("/s")) is None
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert str(logs.default_file(Path("/s"))).startswith("/state/nnfs/s-")


def test_a_log_that_fails_later_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logs._File(tmp_path / "folder" / "log", delay=True)
    (tmp_path / "folder").touch()
    record = logging.makeLogRecord({"msg": "lost"})
    for _ in range(3):
        handler.emit(record)
    assert capsys.readouterr().err.count("cannot be written") == 1
    handler.close()


@needs_mount
@pytest.mark.mount
def test_no_mount_is_refused_for_want_of_a_log(base: Path) -> None:
    (base / "mnt").mkdir()
    nnfs("mkfs", str(base / "store"))
    done = nnfs("mount", str(base / "store"), str(base / "mnt"), "--log", "/proc/nowhere/log")
    assert "the log /proc/nowhere/log cannot be written" in done.stderr
    assert mounted_at(base / "mnt")
    nnfs("umount", str(base / "mnt"))


# -- what cannot be written


def listing(store: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names, sizes, times and content."""
    found = {"": (0, store.stat().st_mtime_ns, b"")}
    for path in store.rglob("*"):
        status = path.stat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(store))] = (status.st_size, status.st_mtime_ns, data)
    return found


@pytest.fixture(params=[True, False], ids=["clean", "unclean"])
def written(request: pytest.FixtureRequest, base: Path) -> Path:
    """A store with a file, cleanly unmounted or as a snapshot of a running one is."""
    with Mount() as mount:
        with (mount.path / "file").open("wb") as file:
            file.write(CONTENT)
            file.flush()
            os.fsync(file.fileno())
        if not request.param:
            shutil.copytree(mount.store, base / "store", ignore=shutil.ignore_patterns("control"))
        else:
            mount.unmount()
            shutil.copytree(mount.store, base / "store")
            mount.mount()
    (base / "mnt").mkdir()
    return base / "store"


def look_at(store: Path, mnt: Path, saved: Path) -> None:
    """Everything that can be done with a store that may not be written to."""
    assert json.loads(nnfs("df", str(store), "--json").stdout)["logical_bytes"] == len(CONTENT)
    assert nnfs("stat", str(store)).stdout
    assert json.loads(nnfs("status", str(store), "--json").stdout)["mounted"] is False
    assert "clean" in nnfs("fsck", str(store)).stdout
    assert "clean" in nnfs("fsck", "--data", str(store)).stdout
    nnfs("backup", str(store), str(saved))
    saved.unlink()
    done = nnfs("mount", str(store), str(mnt), "-o", "ro")
    assert done.stderr == ""
    assert (mnt / "file").read_bytes() == CONTENT
    with pytest.raises(OSError, match="Read-only"):
        (mnt / "new").touch()
    for path in (mnt, store):
        assert json.loads(nnfs("status", str(path), "--json").stdout)["read_only"] == "mounted read-only"
        assert json.loads(nnfs("df", str(path), "--json").stdout)["logical_bytes"] == len(CONTENT)
    assert json.loads(nnfs("stat", str(mnt / "file"), "--json").stdout)["size"] == len(CONTENT)
    nnfs("scrub", str(mnt), "--wait")
    nnfs("backup", str(mnt), str(saved))
    nnfs("umount", str(store))
    assert not mounted_at(mnt)


@needs_mount
@pytest.mark.mount
def test_a_read_only_medium(written: Path, base: Path, tmp_path: Path) -> None:
    image, medium = base / "image", base / "medium"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    medium.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-d", written, image], check=True)
    before = image.read_bytes()
    subprocess.run(["mount", "-o", "ro,loop", image, medium], check=True)
    done = nnfs("mount", str(medium), str(base / "mnt"), check=False)
    assert done.returncode == StoreError.exit_code
    assert "lies on a read-only filesystem: -o ro mounts it" in done.stderr
    assert nnfs("fsck", "--repair", str(medium), check=False).returncode == 8
    look_at(medium, base / "mnt", tmp_path / "saved")
    umount(medium)
    assert image.read_bytes() == before


@needs_mount
@pytest.mark.mount
def test_a_read_only_mount_writes_nothing(written: Path, base: Path, tmp_path: Path) -> None:
    before = listing(written)
    look_at(written, base / "mnt", tmp_path / "saved")
    assert listing(written) == before


@needs_mount
@pytest.mark.mount
def test_a_directory_without_the_right_to_write(written: Path, base: Path, nobody: Nobody) -> None:
    for path in (written, *written.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o500 if path.is_dir() else 0o400)
    os.chown(base / "mnt", NOBODY, NOBODY)
    before = listing(written)
    assert "may not be written to" in nobody.nnfs("mount", written, base / "mnt", status=StoreError.exit_code)
    assert json.loads(nobody.nnfs("df", written, "--json"))["logical_bytes"] == len(CONTENT)
    assert "clean" in nobody.nnfs("fsck", written)
    nobody.nnfs("mount", written, base / "mnt", "-o", "ro")
    assert nobody.says(f"len(pathlib.Path({str(base / 'mnt')!r}, 'file').read_bytes())") == len(CONTENT)
    assert json.loads(nobody.nnfs("status", base / "mnt", "--json"))["read_only"] == "mounted read-only"
    nobody.nnfs("umount", base / "mnt")
    assert listing(written) == before


def test_nothing_to_open_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStore):
        Store.open(tmp_path, readonly=True)
    assert os.listdir(tmp_path) == []
