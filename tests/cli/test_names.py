"""Names as bytes in every command, in every locale: a store, a mount point and files with the worst of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs import names
from nnfs.cli import locate
from nnfs.constants import DATA_FILE
from nnfs.errors import StoreBusy
from nnfs.mount import logs
from nnfs.mount.table import mounts as mountinfo_mounts
from nnfs.store.env import Store
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon, job
from tests.conftest import why_no_mount
from tests.harness import WAIT_S, Mount, command, environment

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
LIMIT_S = WAIT_S

WORST = os.fsdecode(b"\xff \n\t\r,\\134\x1b[31m'\"#$%s=")
LONGEST = os.fsdecode(b"\xfe" * 255)
LOCALES = {
    "strict": {"PYTHONIOENCODING": "utf-8:strict"},  # as in a locale such as en_US.UTF-8
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    "C.UTF-8": {"LC_ALL": "C.UTF-8"},
    "latin": {"PYTHONIOENCODING": "iso8859-1:strict"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # names decoded as ASCII, as in latin-1
}


def ran(locale: str, *words: str, status: int = 0) -> str:
    """Return the output of a command in a locale. It must end with `status`, and print only text of that locale."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("LC_", "LANG"))}
    done = subprocess.run(command(*words), env={**kept, **LOCALES[locale]}, capture_output=True, timeout=LIMIT_S)
    text = (done.stdout + done.stderr).decode("iso8859-1" if locale == "latin" else "utf-8")
    assert done.returncode == status, text
    assert "Traceback" not in text
    assert "\x1b" not in text
    return text


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    if (why := why_no_mount()) is not None:
        pytest.skip(f"mounting {why}")
    mount = Mount(options=["compact=off"])
    mount.store, mount.path = mount.base / f"store{WORST}", mount.base / f"mnt{WORST}"
    with mount:
        directory = mount.path / WORST
        directory.mkdir()
        (directory / LONGEST).write_bytes(b"text " * 10_000)
        yield mount


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("locale", LOCALES)
def test_every_command_says_names(locale: str, mount: Mount) -> None:
    mount.deadline()
    directory, file = f"{mount.path}/{WORST}", f"{mount.path}/{WORST}/{LONGEST}"
    shown = names.printable(file)
    assert ran(locale, "policy", file, "cold").startswith(f"{shown}: cold, set on {shown}\n")
    assert ran(locale, "policy", file).startswith(f"{shown}: cold, set on ")
    assert shown in ran(locale, "stat", file)
    assert names.printable(mount.store) in ran(locale, "status", file)
    assert f"nnfs status {names.shell(directory)} shows it" in ran(locale, "compact", directory)
    for words in (["df"], ["compact", "--dry-run"], ["thaw", "--wait"], ["scrub", "--wait"], ["model", "list"]):
        assert ran(locale, *words, directory)
    assert f"nnfs resume {names.shell(directory)}" in ran(locale, "pause", directory)
    assert ran(locale, "resume", mount.store.as_posix())
    copy = mount.base / f"copy{WORST}"
    assert ran(locale, "backup", directory, str(copy)).startswith(names.printable(copy))
    copy.unlink()
    assert names.printable(f"{directory}/gone") in ran(locale, "policy", f"{directory}/gone", status=1)
    mount.deadline(0)


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("locale", LOCALES)
def test_every_json_is_unicode_and_tells_the_bytes(locale: str, mount: Mount) -> None:
    mount.deadline()
    file = f"{mount.path}/{WORST}/{LONGEST}"
    for words, field, name in (
        (["stat", file], "path", file), (["status", file], "mountpoint", str(mount.path)),
        (["df", file], "store", str(mount.store)), (["thaw", file, "--wait"], "path", file),
    ):  # fmt: skip
        answer = json.loads(ran(locale, *words, "--json"))
        json.dumps(answer, ensure_ascii=False).encode()
        assert bytes.fromhex(answer[f"{field}_hex"]) == os.fsencode(name)
    mount.deadline(0)


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("locale", LOCALES)
def test_mounted_in_the_background_and_unmounted(locale: str, tmp_path: Path) -> None:
    store, mnt, log = (tmp_path / f"{name}{WORST}" for name in ("s", "m", "log"))
    mnt.mkdir()
    ran(locale, "mkfs", str(store))
    ran(locale, "mount", str(store), str(mnt), "--log", str(log), "-o", "compact=off")
    try:
        entry = next(one for one in locate.mounts() if one.mountpoint == str(mnt))
        assert (entry.fstype, entry.source) == (locate.FSTYPE, str(store))
        assert [one.source for one in mountinfo_mounts() if one.mountpoint == str(mnt)] == [str(store)]
        (mnt / WORST).touch()
    finally:
        ran(locale, "umount", str(mnt))
    ran(locale, "fsck", str(store))
    text = log.read_text()
    assert f"mounted {names.one_line(str(store))} on {names.one_line(str(mnt))}" in text
    assert all(line[:2] == "20" for line in text.splitlines())  # each one is a record's


@pytest.mark.parametrize(
    ("words", "status"),
    [(["stat", "/no\udcff\n"], 1), (["fsck", "/no\udcff\n"], 8), (["mount", "/no\udcff", "/no\udcff\n"], 2),
     (["umount", "/no\udcff\n"], 1), (["frob\udcff\n"], 2), (["df", "-\udcff\n", "/"], 2)],
)  # fmt: skip
@pytest.mark.parametrize("locale", LOCALES)
def test_errors_are_one_line(locale: str, words: list[str], status: int) -> None:
    text = ran(locale, *words, status=status)
    assert text.startswith("nnfs: ")
    assert "\\xff" in text or "\\udcff" in text  # argparse shows a choice as Python would
    assert len([line for line in text.splitlines() if not line.startswith("try: ")]) == 1


def test_damage_lists_name_files_of_any_name(store: Path, mnt: Path, run: Run) -> None:
    file = f"/{WORST} at 131072"
    found = [{"block": 5, "why": "damaged block 5: why", "files": [file]}]
    done = job(kind="scrub", state="done", done_chunks=1, result={"damaged": found})
    with FakeDaemon(store, scrub={"job": 3}, job=done):
        status, out, _ = run("scrub", mnt, "--wait")
        answer = json.loads(run("scrub", mnt, "--wait", "--json")[1].splitlines()[-1])
    assert status == 7
    assert f"damaged: {names.printable(f'{mnt}/{WORST}')} from byte 131072 on: why (block 5)" in out.splitlines()
    assert [bytes.fromhex(one) for one in answer["result"]["damaged"][0]["files_hex"]] == [os.fsencode(file)]


def test_a_log_files_name_is_short_and_plain() -> None:
    files = [logs.default_file(Path(f"/a/{name}")) for name in (WORST, LONGEST, "ö" * 127, "plain")]
    names_of_logs = {file.name for file in files if file is not None}
    assert len(names_of_logs) == 4
    assert all(len(os.fsencode(name)) < 150 and name.isprintable() for name in names_of_logs)


def test_mountinfo_is_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel escapes space, tab, line feed and backslash, nothing else."""
    head = b"36 25 0:40 / %s rw,nosuid shared:1 - %s %s rw\n"
    lines = [
        head % (rb"/a\040b\134c\012d\011", b"fuse.nnfs", rb"/s\040\134134"),
        head % (b"/r\rx\x0b\x0c\x1c\x85\xff", b"fuse.nnfs", "/\u2028".encode()),
        head % (b"/plain", b"ext4", b""),
    ]
    want = [
        (b"/a b\\c\nd\t", b"/s \\134"), (b"/r\rx\x0b\x0c\x1c\x85\xff", "/\u2028".encode()), (b"/plain", b""),
    ]  # fmt: skip
    file = tmp_path / "mountinfo"
    file.write_bytes(b"".join(lines))
    real_open, real_read = open, Path.read_bytes
    monkeypatch.setattr("builtins.open", lambda name, *a, **k: real_open(_at(name, file), *a, **k))
    monkeypatch.setattr(Path, "read_bytes", lambda path: real_read(Path(_at(path, file))))
    for found in (locate.mounts(), mountinfo_mounts()):
        assert [(os.fsencode(one.mountpoint), os.fsencode(one.source)) for one in found] == want


def _at(name: object, file: Path) -> str:
    return str(file) if str(name) == "/proc/self/mountinfo" else str(name)


def test_a_bug_before_the_mount_is_told_on_the_terminal(store: Path, tmp_path: Path) -> None:
    """The message has the place of its traceback; the exit status is that of an error that nnfs does not know."""
    script = (
        "import sys\nfrom nnfs.cli.main import main\nfrom nnfs.mount import daemon\n"
        "def bug(*args):\n    raise ZeroDivisionError('of\\udcff\\nall things')\n"
        "daemon.run = bug\nsys.exit(main(['mount', '-f', '--log', sys.argv[1], *sys.argv[2:]]))\n"
    )
    (tmp_path / "mnt").mkdir()
    log = tmp_path / f"log{WORST}"
    argv = [sys.executable, "-c", script, str(log), str(store), str(tmp_path / "mnt")]
    done = subprocess.run(argv, env=environment(LOCALES["strict"]), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"nnfs: a bug: ZeroDivisionError: of\\xff\\nall things; its traceback is in {names.printable(log)}\n"
    )
    assert "Traceback (most recent call last):" in log.read_text()


@needs_mount
@pytest.mark.mount
def test_a_mount_that_is_refused_leaves_no_log(store: Path, tmp_path: Path) -> None:
    """The reasons are an option, a store in use, a damaged store."""
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    opened = Store.open(store)
    try:
        ran("strict", "mount", str(store), str(mnt), "--log", str(tmp_path / "a" / "log"), status=StoreBusy.exit_code)
    finally:
        opened.close()
    ran("strict", "mount", str(store), str(mnt), "-o", "nosuch", "--log", str(tmp_path / "a" / "log"), status=2)
    (store / DATA_FILE).write_bytes(b"\0" * 32768)
    done = subprocess.run(
        command("mount", str(store), str(mnt), "--log", str(tmp_path / "a" / "log")), env=environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.startswith("nnfs: ")
    assert not (tmp_path / "a").exists()
    log = logs.default_file(store)
    assert log is not None
    assert not log.exists()
