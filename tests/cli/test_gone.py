"""A store that is deleted, replaced or moved while it is mounted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nnfs.cli import bymount
from nnfs.cli.locate import mounts
from nnfs.constants import DATA_FILE
from nnfs.errors import DaemonError, MountError, StoreDamaged, StoreGone
from nnfs.mount import rendezvous
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.harness import Mount, mounted_at, nnfs, wait_for

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}"),
]
KEPT = os.urandom(200_000)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def delete_all(mount: Mount) -> None:
    shutil.rmtree(mount.store)


def delete_data(mount: Mount) -> None:
    (mount.store / DATA_FILE).unlink()


def replace_data(mount: Mount) -> None:
    """Replace the data file, as a restore under a live mount does."""
    shutil.copy(mount.store / DATA_FILE, mount.store / "new")
    (mount.store / "new").rename(mount.store / DATA_FILE)


def move_data_out(mount: Mount) -> None:
    (mount.store / DATA_FILE).rename(mount.base / DATA_FILE)


def another_store(mount: Mount) -> None:
    shutil.rmtree(mount.store)
    Store.create(mount.store).close()


@pytest.mark.parametrize(
    "lose", [delete_all, delete_data, replace_data, move_data_out, another_store], ids=lambda lose: lose.__name__
)
def test_nothing_more_is_accepted_and_all_can_be_saved(lose: Callable[[Mount], None], tmp_path: Path) -> None:
    with Mount() as mount:
        mount.expect_log("was deleted|was replaced|was moved out|the last commit failed")
        write_synced(mount.path / "kept", KEPT)
        lose(mount)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - one of two
            write_synced(mount.path / "late", b"late" * 10_000)
        assert caught.value.errno in (errno.EIO, errno.EROFS)
        with pytest.raises(OSError, match="Read-only"):
            (mount.path / "later").touch()
        assert (mount.path / "kept").read_bytes() == KEPT
        assert mount.log().count("CRITICAL nnfs.blockio.commit") == 1
        assert "nothing is accepted any more" in mount.log()
        status = json.loads(nnfs("status", str(mount.path), "--json").stdout)
        assert status["pid"] == mount.pid
        assert f"{mount.store}/{DATA_FILE} was " in status["read_only"]

        said = nnfs("status", str(mount.path)).stdout
        assert said.startswith("LOST")
        assert f"nnfs backup {mount.path} FILE" in said
        nnfs("backup", str(mount.path), str(tmp_path / "saved"))
        done = nnfs("umount", str(mount.path), check=False)
        assert done.returncode == MountError.exit_code
        assert "was deleted or replaced while it was mounted" in done.stderr
        mount.unmount(expect=StoreGone.exit_code)
        mount.store.mkdir(exist_ok=True)
    (tmp_path / "restored").mkdir()
    (tmp_path / "saved").rename(tmp_path / "restored" / DATA_FILE)
    assert nnfs("fsck", "--data", str(tmp_path / "restored"), check=False).returncode == 0
    with Mount(store=tmp_path / "restored") as mount:
        assert (mount.path / "kept").read_bytes() == KEPT
        assert (mount.path / "late").exists(), "what was accepted before it was noticed is saved as well"


@pytest.mark.parametrize("by", ["copy", "backup", "another store"])
def test_a_data_file_that_is_written_over_is_not_written_to(by: str, tmp_path: Path) -> None:
    """`cp BACKUP STORE/data.mdb` beneath a mount: nothing is accepted, and what was copied there stays as it is."""
    file = tmp_path / "restored"
    with Mount() as mount:
        mount.expect_log("was overwritten or cut short|missing, and its directory has it|damaged")
        write_synced(mount.path / "kept", KEPT)
        if by == "copy":
            shutil.copy(mount.store / DATA_FILE, file)
        elif by == "backup":
            nnfs("backup", str(mount.path), str(file))
        else:
            Store.create(tmp_path / "other").close()
            (tmp_path / "other" / DATA_FILE).rename(file)
        write_synced(mount.path / "later", KEPT * 20)
        content = file.read_bytes().ljust((mount.store / DATA_FILE).stat().st_size, b"\0")
        with (mount.store / DATA_FILE).open("r+b") as data:  # not even cut short
            data.write(content)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - one of two
            write_synced(mount.path / "late", b"late" * 10_000)
        assert caught.value.errno in (errno.EIO, errno.EROFS)
        assert "overwritten or cut short by another program" in mount.log()
        done = nnfs("backup", str(mount.path), str(tmp_path / "saved"), check=False)
        assert done.returncode == StoreDamaged.exit_code
        assert not (tmp_path / "saved").exists()
        done = nnfs("umount", str(mount.path), check=False)
        assert done.returncode == MountError.exit_code, done.stderr
        mount.unmount(expect=StoreDamaged.exit_code)
        assert (mount.store / DATA_FILE).read_bytes() == content


def test_it_is_noticed_without_a_write() -> None:
    with Mount() as mount:
        mount.expect_log("was deleted|the last commit failed")
        write_synced(mount.path / "kept", KEPT)
        delete_all(mount)
        wait_for("the daemon to notice", lambda: "CRITICAL" in mount.log())
        mount.unmount(expect=StoreGone.exit_code)
        mount.store.mkdir()


def test_an_idle_unmount_does_not_say_that_all_is_well() -> None:
    with Mount() as mount:
        mount.expect_log("was deleted|the last commit failed")
        write_synced(mount.path / "kept", KEPT)
        delete_all(mount)
        done = nnfs("umount", str(mount.path), check=False)
        assert done.returncode == MountError.exit_code
        assert str(mount.store) in done.stderr
        mount.unmount(expect=StoreGone.exit_code)
        mount.store.mkdir()


def test_a_lazy_unmount_says_it_as_well() -> None:
    with Mount() as mount:
        mount.expect_log("was deleted|the last commit failed")
        delete_all(mount)
        done = nnfs("umount", "-l", str(mount.path), check=False)
        assert done.returncode == MountError.exit_code
        assert "was deleted" in done.stderr
        mount.unmount(expect=StoreGone.exit_code)
        mount.store.mkdir()


def test_the_name_of_a_deleted_store_finds_its_mount(tmp_path: Path) -> None:
    with Mount() as mount:
        mount.expect_log("was deleted|the last commit failed")
        write_synced(mount.path / "kept", KEPT)
        delete_all(mount)
        nnfs("backup", str(mount.store), str(tmp_path / "saved"))
        assert nnfs("umount", str(mount.store), check=False).returncode == MountError.exit_code
        assert not mounted_at(mount.path)
        mount.unmount(expect=StoreGone.exit_code)
        mount.store.mkdir()


def test_each_mount_has_its_own_daemon_asked(tmp_path: Path) -> None:
    """Another store lies where the deleted one was, and is mounted, too: the backup is of the mount that was named."""
    with Mount() as mount:
        mount.expect_log("was deleted|the last commit failed")
        write_synced(mount.path / "kept", KEPT)
        another_store(mount)
        with Mount(store=mount.store) as other:
            pids = [json.loads(nnfs("status", str(m), "--json").stdout)["pid"] for m in (mount.path, other.path)]
            assert pids == [mount.pid, other.pid]
            nnfs("backup", str(mount.path), str(tmp_path / "saved"))
            assert json.loads(nnfs("status", str(mount.store), "--json").stdout)["pid"] == other.pid
        mount.unmount(expect=StoreGone.exit_code)
    (tmp_path / "restored").mkdir()
    (tmp_path / "saved").rename(tmp_path / "restored" / DATA_FILE)
    with Mount(store=tmp_path / "restored") as mount:
        assert (mount.path / "kept").read_bytes() == KEPT


def test_a_moved_store_goes_on(tmp_path: Path) -> None:
    with Mount() as mount:
        write_synced(mount.path / "kept", KEPT)
        moved = mount.base / "elsewhere"
        mount.store.rename(moved)
        write_synced(mount.path / "later", KEPT)
        for path in (mount.path, moved):
            status = json.loads(nnfs("status", str(path), "--json").stdout)
            assert (status["pid"], status["store"], status["read_only"]) == (mount.pid, str(moved), "")
            nnfs("df", str(path))
        assert os.getxattr(mount.path, "user.nnfs.store") == os.fsencode(moved)
        nnfs("umount", str(moved))
        assert not mounted_at(mount.path)
        mount.unmount()
        assert not mount.store.exists(), "nothing is made where the store was"
        assert not (moved / "control").exists()
        moved.rename(mount.store)
        mount.mount()
        assert (mount.path / "later").read_bytes() == KEPT


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120) / ("y" * 120)
    deep.mkdir(parents=True)
    with Mount(store=deep) as mount:
        for path in (mount.path, deep):
            assert json.loads(nnfs("status", str(path), "--json").stdout)["pid"] == mount.pid
        nnfs("umount", str(deep))
        mount.unmount()


def test_the_socket_for_all_is_for_the_owner() -> None:
    with Mount() as mount:
        write_synced(mount.path / "kept", KEPT)
        entry = next(entry for entry in mounts() if entry.mountpoint == str(mount.path))
        address = rendezvous.address(entry.device, entry.source)
        script = (
            "import json, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(bytes.fromhex(sys.argv[1]))\n"
            's.sendall(b\'{"command": "status"}\\n\'); print(s.makefile().readline())\n'
        )
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-I", "-c"]
        if not os.path.exists("/usr/bin/python3"):
            pytest.skip("needs a Python that others can run")
        answer = json.loads(subprocess.run([*command, script, address.hex()], capture_output=True, check=True).stdout)
        assert not answer["ok"]
        assert answer["exit"] == DaemonError.exit_code
        assert "only who has mounted" in answer["error"]


def test_a_name_that_somebody_else_has_taken_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The peer must be the one who mounted, or root."""
    bymount.remember(tmp_path, "0:0", "/nowhere", "rw,user_id=4711,group_id=0", is_first=True)
    address = rendezvous.address("0:0", "/nowhere")
    with socket.socket(socket.AF_UNIX) as squatter, socket.socket(socket.AF_UNIX) as client:
        squatter.bind(address)
        squatter.listen()
        monkeypatch.setattr(rendezvous, "peer", lambda _: (1, 65534))
        assert not bymount.connect(client, tmp_path, 1.0)
    bymount.forget(tmp_path)
