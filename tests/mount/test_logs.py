"""Places and form of log records; sd_notify."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.mount import logs, notify
from tests.harness import RECORD, environment


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, hook, thread_hook = logging.getLogger(), sys.excepthook, threading.excepthook
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    sys.excepthook, threading.excepthook = hook, thread_hook


def test_a_file_gets_one_line_per_record_and_tracebacks(tmp_path: Path) -> None:
    file = tmp_path / "new" / "log"
    assert logs.configure(tmp_path, foreground=True, file=file) == str(file)
    logs.mounted()
    log = logging.getLogger("nnfs.test")
    log.debug("unseen")
    log.info("first\nsecond %s", "name \udcff")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    threading.excepthook(threading.ExceptHookArgs((KeyError, KeyError("k"), None, None)))
    lines = file.read_text().splitlines()
    assert lines[0].endswith("INFO nnfs.test: first\\nsecond name \\xff")
    assert "ERROR nnfs.test: failed" in lines[1]
    assert "ValueError: boom" in lines
    assert any("WARNING py.warnings" in line for line in lines)
    assert any("CRITICAL nnfs: uncaught in thread" in line for line in lines)
    assert re.match(RECORD, lines[0]), "the harness's expression knows these lines"


def test_levels(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(tmp_path, foreground=False, file=file, level="warning")
    logs.mounted()
    logging.getLogger("nnfs").info("no")
    logging.getLogger("nnfs").warning("yes")
    assert file.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_priorities(level: int, number: int) -> None:
    assert logs.priority(level) == number


def test_stderr_that_is_a_stream_into_the_journal() -> None:
    script = (
        "import logging, os\nfrom pathlib import Path\nfrom nnfs.mount import logs\n"
        "s = os.fstat(2)\nos.environ['JOURNAL_STREAM'] = f'{s.st_dev}:{s.st_ino}'\n"
        "assert logs.configure(Path('/s'), foreground=True) == 'journal'\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('nnfs').exception('bad')\n"
        "os.environ['JOURNAL_STREAM'] = '1:1'\n"
        "assert logs.configure(Path('/s'), foreground=True) == 'stderr'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "<3>nnfs: bad"
    assert all(line.startswith("<3>") for line in lines)


def test_the_journals_own_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "journal")
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(address)
        journal.settimeout(10)
        handler = logs.JournalHandler(address, NNFS_STORE="/data")
        logger = logging.getLogger("nnfs.journal")
        logger.addHandler(handler)
        try:
            logger.warning("one")
            logger.error("two\nlines")
            first, second = journal.recv(65536), journal.recv(65536)
        finally:
            logger.removeHandler(handler)
        assert first.startswith(b"MESSAGE=one\nPRIORITY=4\nSYSLOG_IDENTIFIER=nnfs\nLOGGER=nnfs.journal\n")
        assert b"\nNNFS_STORE=/data\n" in first
        assert second.startswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\nPRIORITY=3\n")
        os.unlink(address)
        handler.emit(logging.makeLogRecord({"msg": "nobody listens"}))  # no exception, no noise
        handler.close()


def test_without_a_journal_a_file_of_the_stores_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(logs, "LOG_DIR", tmp_path / "log")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    where = logs.configure(Path("/srv/data"), foreground=False)
    assert Path(where).name.startswith("data-")
    assert Path(where).is_relative_to(tmp_path)
    assert logs.default_file(Path("/a/data")) != logs.default_file(Path("/b/data"))


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready()
    name = f"@nnfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify.ready("mounted")
        assert notify.stopping()
        assert notify.watchdog()
        assert notify.extend_timeout(1.5)
        received = [manager.recv(4096).decode() for _ in range(4)]
    pid = os.getpid()
    assert received == [
        f"READY=1\nMAINPID={pid}\nSTATUS=mounted", "STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"
    ]  # fmt: skip


def test_notify_survives_a_manager_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.ready()


def test_the_watchdogs_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert notify.watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval() == 1.5


def test_a_file_is_made_with_the_mount_and_not_before(tmp_path: Path) -> None:
    """A process that ends without one leaves neither the file nor its directory behind."""
    script = (
        "import logging, sys\nfrom pathlib import Path\nfrom nnfs.mount import logs\n"
        "logs.configure(Path('/s'), foreground=False, file=Path(sys.argv[1]))\n"
        "logging.getLogger('nnfs').warning('before')\n"
        "sys.argv[2] == 'mounted' and logs.mounted()\n"
        "sys.argv[2] == 'bug' and 1 / 0\n"
        "logging.getLogger('nnfs').warning('after')\n"
    )

    def run(how: str) -> tuple[str, str]:
        file = tmp_path / how / "log"
        done = subprocess.run(
            [sys.executable, "-c", script, str(file), how], env=environment(), capture_output=True, text=True
        )
        if how == "refused":
            assert not file.parent.exists()
        return file.read_text() if file.exists() else "", done.stderr

    assert run("refused") == ("", "")
    log, err = run("mounted")
    assert ([line.rpartition(": ")[2] for line in log.splitlines()], err) == (["before", "after"], "")
    log, err = run("bug")
    assert "before" in log
    assert "ZeroDivisionError: division by zero" in log.splitlines()
    assert err == f"nnfs: a bug: ZeroDivisionError: division by zero; its traceback is in {tmp_path}/bug/log\n"


def test_a_file_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(logs, "LOG_DIR", tmp_path / "logs")
    monkeypatch.setattr("nnfs.mount.logs.os.geteuid", lambda: 0)
    (tmp_path / "file").touch()
    for file in (tmp_path / "file" / "log", tmp_path, Path("/proc/self/none/log")):
        where = logs.configure(tmp_path, foreground=False, file=file)
        assert Path(where).parent == tmp_path / "logs"
        assert str(file) in capsys.readouterr().err
