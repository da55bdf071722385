"""The command line: arguments, messages, exit statuses, and what it does to stores, mounted and not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnfs as nnfs_package
from nnfs import errors
from nnfs.cli import client, tables
from nnfs.cli.main import byte_count, main
from nnfs.constants import DATA_FILE, SOCKET_NAME
from nnfs.mount.mountpoint import is_dead
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.ending import gone, wait_gone
from tests.harness import Mount, command, environment, mounted_at, nnfs, umount, wait_for, work_dir

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit status and the one line of error of a command that must fail."""
    try:
        status = main(args)
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    assert captured.err.startswith("nnfs: "), captured.err
    assert "Traceback" not in captured.err
    return status, captured.err


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    Store.create(path, 16384).close()
    return path


# -- without a mount


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["fsck", "--help"], ["mount", "--help"], ["help"]])
def test_help_is_quick_and_loads_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys\nfrom nnfs.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'trio', 'pyfuse3', 'rich', 'lmdb', 'zstandard', 'numpy', 'xxhash', 'subprocess'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *args], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert done.stdout


COMMANDS = """
    mount umount df status stat jobs compact thaw scrub pause resume policy model train mkfs fsck backup help version
"""


@pytest.mark.parametrize("name", COMMANDS.split())
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"nnfs {name}" in text.partition("examples:")[2]


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "COMMAND"),
        (["nonsense"], 2, "no command 'nonsense'\n"),
        (["compcat", "/"], 2, "did you mean compact?"),
        (["model", "lst"], 2, "did you mean list?"),
        (["help", "mont"], 2, "did you mean mount?"),
        (["policy", "/", "cald"], 2, "did you mean cold?"),
        (["df", "--jsn", "/"], 2, "unrecognized arguments: --jsn; did you mean --json?\ntry: nnfs df --help"),
        (["model", "list", "/", "--jason"], 2, "did you mean --json?\ntry: nnfs model list --help"),
        (["--json", "df", "/"], 2, "options go behind the command\ntry: nnfs df --help"),
        (["stat", "/", "more"], 2, "unrecognized arguments: more\ntry: nnfs stat --help"),
        (["stat"], 2, "FILE\ntry: nnfs stat --help"),
        (["fsck", "--repiar", "x"], 16, "did you mean --repair?\ntry: nnfs fsck --help"),
        (["fsck"], 16, "STORE"),
        (["fsck", "--nonsense", "x"], 16, "unrecognized arguments: --nonsense\ntry: nnfs fsck --help"),
        (["mkfs", "/nowhere", "--chunk-size", "many"], 2, "not a number of bytes"),
        (["df", "/nowhere/at/all"], 1, "No such file"),
        (["df", "/"], 2, "neither a store nor on an nnfs mount"),
        (["status", "/etc"], 2, "neither a store nor on an nnfs mount"),
        (["umount", "/nowhere"], 1, "No such file"),
        (["umount", "/etc"], 2, "not mounted"),
        (["umount", "/proc"], 2, "a mount of type proc"),
        (["fsck", "/nowhere"], 8, "not a directory"),
        (["backup", "/etc", "/tmp/copy.mdb"], 2, "neither a store"),
    ],
)
def test_wrong_arguments(args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, text = error_of(capsys, *args)
    assert message in text
    assert found == status


@pytest.mark.parametrize("bad", ["5", "4K", "100000", "2M", "0"])
def test_mkfs_refuses_chunk_sizes(tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = error_of(capsys, "mkfs", str(tmp_path / "new"), "--chunk-size", bad)
    assert status == 2
    assert "power of two from 16384 to 1048576" in text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("text", "size"), [("16384", 16384), ("64K", 65536), ("64k", 65536), ("1M", 1 << 20)])
def test_mkfs_makes_a_store(tmp_path: Path, text: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mkfs", str(tmp_path / "new"), "--chunk-size", text]) == 0
    assert "new store" in capsys.readouterr().out
    opened = Store.open(tmp_path / "new")
    assert opened.superblock.chunk_size == size == byte_count(text)
    opened.close()


def test_mkfs_refuses_what_is_there(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = error_of(capsys, "mkfs", str(store))
    assert status == 2
    assert "already holds a store" in text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    status, text = error_of(capsys, "mkfs", str(tmp_path / "full"))
    assert status == errors.NotAStore.exit_code
    assert "choose an empty directory" in text
    assert (tmp_path / "full" / "letter").read_text() == "dear"


def test_a_store_in_use_is_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Store.open(store)
    try:
        assert error_of(capsys, "df", str(store))[0] == errors.StoreBusy.exit_code
        assert error_of(capsys, "fsck", str(store))[0] == 8
        assert error_of(capsys, "backup", str(store), str(tmp_path / "copy"))[0] == errors.StoreBusy.exit_code
    finally:
        opened.close()


def test_a_broken_store_is_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / DATA_FILE).write_bytes(b"\0" * 32768)
    status, _ = error_of(capsys, "df", str(store))
    assert status in (errors.StoreDamaged.exit_code, errors.NotAStore.exit_code, errors.StoreError.exit_code)
    assert main(["fsck", str(store)]) == 4
    assert "error: " in capsys.readouterr().out


def test_answers_without_a_mount(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["df", str(store), "--json"]) == 0
    df = json.loads(capsys.readouterr().out)
    assert (df["logical_bytes"], df["stored_bytes"], df["codecs"]) == (0, 0, [])
    assert df["physical_bytes"] > 0
    assert main(["status", str(store), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status == {"store": str(store), "mounted": False, "commit": 0, "clean": True}
    assert main(["stat", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "directory"
    for name in ("df", "status", "stat"):
        assert main([name, str(store)]) == 0
        assert capsys.readouterr().out.strip()


def test_fsck_of_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fsck", str(store), "--data"]) == 0
    assert "clean" in capsys.readouterr().out
    assert main(["fsck", str(store), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["clean"]
    assert answer["counts"]["inode"] == 1


def test_backup_without_a_mount(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "copy.mdb"
    assert main(["backup", str(store), str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"file": str(file), "bytes": file.stat().st_size}
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name] == []
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / DATA_FILE).write_bytes(file.read_bytes())
    assert main(["fsck", str(tmp_path / "again"), "--data"]) == 0


def test_backup_refuses_bad_targets(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a directory" in error_of(capsys, "backup", str(store), str(tmp_path))[1]
    assert "lies in the store" in error_of(capsys, "backup", str(store), str(store / "copy"))[1]
    assert "not a directory" in error_of(capsys, "backup", str(store), str(tmp_path / "no" / "copy"))[1]
    assert sorted(os.listdir(store)) == [DATA_FILE]


def test_mount_refuses_bad_places(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = store / "mnt"
    inner.mkdir()
    outer = tmp_path / "outer"
    (outer / "store").mkdir(parents=True)
    file = tmp_path / "file"
    file.touch()
    for where, mnt, message in (
        (store, tmp_path / "missing", "not a directory to mount on"),
        (store, file, "not a directory to mount on"),
        (store, inner, "lies in the store"),
        (store, store, "beneath its own mount point"),
        (outer / "store", outer, "beneath its own mount point"),
    ):
        status, text = error_of(capsys, "mount", str(where), str(mnt))
        assert message in text
        assert status == errors.UsageError.exit_code


def test_mount_refuses_another_chunk_size(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mnt").mkdir()
    status, text = error_of(capsys, "mount", str(store), str(tmp_path / "mnt"), "--chunk-size", "128K")
    assert status == 2
    assert "already has chunks of 16384 bytes" in text


def test_nobody_answers(store: Path) -> None:
    assert client.daemon_pid(store) is None
    with pytest.raises(errors.DaemonError, match="no daemon answers"):
        client.ask(store, "status")


def test_a_pipe_that_closes_early_is_no_traceback(store: Path) -> None:
    script = f"{' '.join(command('df', str(store), '--json'))} | true"
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (10240, "10.0 KiB"), (102400, "100 KiB"),
     ((1 << 20) - 1, "1.00 MiB"), (1 << 40, "1.00 TiB"), ((1 << 63) - 1, "8.00 EiB"), (1 << 75, "32768 EiB")],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    assert tables.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (65, "1 min 5 s"), (7200, "2 h 0 s"), (90061, "1 d 1 h")]
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert tables.span(seconds) == text


def test_tables() -> None:
    assert tables.table(["a", "b"], [["x", "1"], ["yy", "22"]]) == "a    b\nx    1\nyy  22"
    assert tables.ratio(10, 4) == "2.50"
    assert tables.ratio(0, 5) == tables.ratio(5, 0) == "-"


# -- with a mount


@pytest.fixture
def mount() -> Iterator[Mount]:
    with Mount(chunk_size=16384) as mount:
        mount.deadline()
        yield mount


@needs_mount
@pytest.mark.mount
def test_df_stat_and_status_of_a_mount(mount: Mount) -> None:
    (mount.path / "text").write_bytes(b"the same line\n" * 10_000)
    (mount.path / "copy").write_bytes(b"the same line\n" * 10_000)
    (mount.path / "noise").write_bytes(os.urandom(40_000))
    with (mount.path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (mount.path / "link").symlink_to("text")
    for path in (mount.path, mount.path / "text", mount.store):
        df = json.loads(nnfs("df", "--json", str(path)).stdout)
        assert df["logical_bytes"] == 2 * 140_000 + 40_000
        assert {line["codec"] for line in df["codecs"]} == {"raw", "zstd"}
        assert df["stored_bytes"] == sum(line["stored_bytes"] for line in df["codecs"]) < 60_000
        assert all(line["fingerprint"] is None for line in df["codecs"])
    stat = json.loads(nnfs("stat", "--json", str(mount.path / "text")).stdout)
    assert (stat["size"], stat["chunks"], stat["holes"], stat["type"]) == (140_000, 9, 0, "file")
    assert stat["ino"] == (mount.path / "text").stat().st_ino
    assert stat["shared"] == 9
    sparse = json.loads(nnfs("stat", "--json", str(mount.path / "sparse")).stdout)
    assert (sparse["chunks"], sparse["holes"]) == (0, (1 << 40) // 16384)
    assert json.loads(nnfs("stat", "--json", str(mount.path / "link")).stdout)["type"] == "symbolic link"
    tree = json.loads(nnfs("stat", "--json", str(mount.path)).stdout)
    assert (tree["inodes"], tree["size"]) == (5, (1 << 40) + 2 * 140_000 + 40_000)
    status = json.loads(nnfs("status", "--json", str(mount.path)).stdout)
    assert (status["pid"], status["mountpoint"], status["store"]) == (mount.pid, str(mount.path), str(mount.store))
    assert client.daemon_pid(mount.store) == mount.pid
    for name in ("df", "status", "stat"):
        assert nnfs(name, str(mount.path)).stdout.strip()
    mount.deadline(0)


@needs_mount
@pytest.mark.mount
def test_the_control_socket_is_the_owners_only(mount: Mount) -> None:
    assert (mount.store / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    mount.unmount()
    assert not (mount.store / SOCKET_NAME).exists()
    mount.mount()


@needs_mount
@pytest.mark.mount
def test_others_are_told_that_they_may_not(mount: Mount) -> None:
    child = os.fork()
    if child == 0:  # no exec: the interpreter may lie where others cannot read
        status = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            client.ask(mount.store, "df")
        except errors.DaemonError as error:
            status = error.exit_code if "only the owner" in str(error) else 98
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errors.DaemonError.exit_code
    assert mounted_at(mount.path)


@needs_mount
@pytest.mark.mount
def test_a_second_mount_is_refused(mount: Mount, tmp_path: Path) -> None:
    done = nnfs("mount", str(mount.store), str(tmp_path), check=False)
    assert done.returncode == errors.StoreBusy.exit_code
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr
    assert nnfs("fsck", str(mount.store), check=False).returncode == 8


@needs_mount
@pytest.mark.mount
def test_hot_backup(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "file").write_bytes(b"content" * 5000)
    nnfs("backup", str(mount.path), str(tmp_path / "copy.mdb"))
    refused = nnfs("backup", str(mount.path), str(mount.path / "copy.mdb"), check=False)
    assert refused.returncode == 2
    (tmp_path / "restored").mkdir()
    (tmp_path / "copy.mdb").rename(tmp_path / "restored" / DATA_FILE)
    assert nnfs("fsck", "--data", str(tmp_path / "restored"), check=False).returncode == 0
    with Mount(store=tmp_path / "restored") as restored:
        assert (restored.path / "file").read_bytes() == b"content" * 5000


class Background:
    """`nnfs mount` without -f, unmounted in all cases."""

    def __init__(self, *args: str) -> None:
        self.base = work_dir()
        self.store, self.mnt = self.base / "store", self.base / "mnt"
        self.log = self.base / "log"
        self.mnt.mkdir()
        self.store.mkdir()
        self.args = args

    def __enter__(self) -> Background:
        options = ["--log", str(self.log), "-o", "create"]
        self.done = nnfs("mount", str(self.store), str(self.mnt), *options, *self.args)
        return self

    def __exit__(self, *_: object) -> None:
        pid = client.daemon_pid(self.store)
        if mounted_at(self.mnt):
            umount(self.mnt, 2)
        if pid is not None:
            wait_gone(pid, self.log)
        subprocess.run(["rm", "-r", str(self.base)], check=True)


@needs_mount
@pytest.mark.mount
def test_mount_returns_when_mounted_and_umount_when_committed() -> None:
    with Background("--chunk-size", "32K", "-o", "noatime") as back:
        assert back.done.stdout == ""
        assert back.done.stderr == f"nnfs: {back.store} was empty: made a new store in it\n"
        assert mounted_at(back.mnt)
        (back.mnt / "file").write_text("kept")
        status = json.loads(nnfs("status", str(back.mnt), "--json").stdout)
        assert os.getsid(status["pid"]) == status["pid"]
        assert os.readlink(f"/proc/{status['pid']}/fd/0") == os.devnull
        nnfs("umount", str(back.mnt))
        assert gone(status["pid"])
        opened = Store.open(back.store)
        assert opened.superblock.chunk_size == 32768
        assert opened.state.clean_commit == opened.state.commit > 0
        opened.close()
        assert "INFO nnfs" in back.log.read_text()


@needs_mount
@pytest.mark.mount
def test_umount_by_the_stores_name_and_of_a_busy_mount() -> None:
    with Background() as back:
        with (back.mnt / "open").open("w"):
            done = nnfs("umount", str(back.mnt), check=False)
            assert done.returncode == errors.MountError.exit_code
            assert "is busy" in done.stderr
            assert mounted_at(back.mnt)
        nnfs("umount", str(back.store))
        assert not mounted_at(back.mnt)
        assert nnfs("umount", str(back.mnt), check=False).returncode == 2


@needs_mount
@pytest.mark.mount
def test_lazy_umount_ends_with_the_last_user() -> None:
    with Background() as back:
        pid = client.daemon_pid(back.store)
        assert pid is not None
        with (back.mnt / "open").open("w") as file:
            nnfs("umount", "-l", str(back.mnt))
            assert not mounted_at(back.mnt)
            file.write("still written")
            file.flush()
            assert not gone(pid)
        wait_gone(pid, back.log)
        nnfs("fsck", "--data", str(back.store))


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("words", [[], ["-l"], ["-f"]])
def test_umount_of_a_dead_mount(words: list[str]) -> None:
    with Background() as back:
        pid = client.daemon_pid(back.store)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for("the end of its threads", lambda: client.daemon_pid(back.store) is None)
        assert gone(pid)
        done = nnfs("umount", *words, str(back.mnt), check=False)
        assert not mounted_at(back.mnt)
        assert done.returncode == errors.MountError.exit_code, "what was not synced may be lost"
        assert "its daemon had died" in done.stderr
        assert "see the log" in done.stderr
        done = nnfs("umount", *words, str(back.mnt), check=False)
        assert "is not mounted" in done.stderr


@needs_mount
@pytest.mark.mount
def test_umount_of_a_dead_mount_that_lost_nothing() -> None:
    with Background("-o", "ro") as back:
        pid = client.daemon_pid(back.store) or json.loads(nnfs("status", str(back.mnt), "--json").stdout)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for("the end of its threads", lambda: is_dead(str(back.mnt)))
        assert "its daemon had died" in nnfs("umount", str(back.mnt)).stderr
        assert not mounted_at(back.mnt)


@needs_mount
@pytest.mark.mount
def test_a_failed_start_gives_its_message_and_status(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    done = nnfs("mount", str(tmp_path / "full"), str(tmp_path / "mnt"), "--log", str(tmp_path / "log"), check=False)
    assert done.returncode == errors.NotAStore.exit_code
    assert done.stderr.startswith("nnfs: ")
    assert done.stderr.count("\n") == 1
    done = nnfs("mount", str(tmp_path / "new"), str(tmp_path / "mnt"), "-o", "fsname=", check=False)
    assert done.returncode == errors.UsageError.exit_code
    assert "fsname" in done.stderr


@needs_mount
@pytest.mark.mount
def test_what_was_done_is_listed_after_a_remount(mount: Mount) -> None:
    """And when nothing is mounted. `status` tells the log, the version and the last scrub."""
    (mount.path / "file").write_bytes(b"text " * 1000)
    nnfs("scrub", str(mount.path), "--wait")
    nnfs("thaw", str(mount.path), "--wait")

    def listed() -> list[tuple[int, str, str]]:
        found = json.loads(nnfs("jobs", str(mount.store), "--json").stdout)["jobs"]
        return [(one["job"], one["kind"], one["state"]) for one in found]

    ended = [(1, "scrub", "done"), (2, "thaw", "done")]
    assert listed() == ended
    mount.unmount()
    assert listed() == ended
    mount.mount()
    assert listed() == ended
    assert json.loads(nnfs("thaw", str(mount.path), "--json").stdout)["job"] == 3
    status = json.loads(nnfs("status", str(mount.path), "--json").stdout)
    assert status["scrubbed"]["checksums"] > 1e9
    assert (status["scrubbed"]["deep"], status["log"], status["version"]) == (None, "stderr", nnfs_package.__version__)
    assert status["free_bytes"] >= 0
    assert "scrub (task 1): done" in mount.log().replace(f"scrub {mount.path} (", "scrub (")
    mount.deadline(0)
