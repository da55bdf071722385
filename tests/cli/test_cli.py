"""The commands without a mount: help, wrong arguments, messages, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnfs import errors
from nnfs.cli import client, tables
from nnfs.cli.main import main
from nnfs.cli.values import byte_count
from nnfs.constants import DATA_FILE
from nnfs.store.env import Store
from tests.harness import command, environment


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
    mount umount df status stat tasks compact thaw scrub pause resume policy model train mkfs fsck backup doctor help
    version
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
        (["--versoin"], 2, "unrecognized arguments: --versoin; did you mean --version?\ntry: nnfs --help"),
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


@pytest.mark.parametrize("words", ["--help", "help mount", "version", "df S"])
def test_a_full_disk_is_no_traceback(store: Path, words: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(*words.replace("S", str(store)).split()), stdout=full, stderr=subprocess.PIPE, text=True,
            env=environment(),
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "nnfs: No space left on device\n")


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
