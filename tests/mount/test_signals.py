"""Signals: what ends a process ends the daemon in order, HUP reloads, QUIT and its kin tell what it does."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import WAIT_S, Mount, command, environment, mounted_at, nnfs, wait_for
from tests.mount.kit import is_clean

pytestmark = pytest.mark.mount


def sent(mount: Mount, number: int, until: str) -> str:
    """Send a signal and return what the log says from then on, once it has said `until`."""
    start = len(mount.log())
    os.kill(mount.pid, number)
    wait_for(f"{until!r} in the log", lambda: until in mount.log()[start:])
    return mount.log()[start:]


@pytest.mark.parametrize(
    "number",
    [signal.SIGALRM, signal.SIGXCPU, signal.SIGPWR, signal.SIGVTALRM, signal.SIGIO, signal.SIGRTMIN, 64],
)
def test_what_ends_a_process_ends_it_in_order(fresh_mount: Mount, number: int) -> None:
    (fresh_mount.path / "f").write_bytes(b"x" * 100_000)
    os.kill(fresh_mount.pid, number)
    fresh_mount.unmount()  # status 0
    assert is_clean(fresh_mount.store)
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize(
    "number", [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG]
)
def test_what_must_not_matter_does_not(fresh_mount: Mount, number: int) -> None:
    os.kill(fresh_mount.pid, number)
    (fresh_mount.path / "f").write_bytes(b"x")
    assert (fresh_mount.path / "f").read_bytes() == b"x"
    assert nnfs("status", str(fresh_mount.path)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGABRT])
def test_the_log_tells_what_the_daemon_does(fresh_mount: Mount, number: signal.Signals) -> None:
    (fresh_mount.path / "f").write_bytes(b"x")
    text = sent(fresh_mount, number, "tasks\n")
    text += sent(fresh_mount, number, "tasks\n")  # and again
    assert text.count(f"{number.name}: what the daemon is doing") == 2
    assert "event loop: runs" in text
    assert "  dirty_bytes: " in text
    assert re.search(r"thread MainThread\n(  \S+:\d+ \S+\n)+", text)
    assert "Connection.serve" in text
    assert (fresh_mount.path / "f").read_bytes() == b"x"


def test_usr2_needs_no_python(fresh_mount: Mount) -> None:
    text = sent(fresh_mount, signal.SIGUSR2, "Current thread")
    assert "Thread 0x" in text
    assert (fresh_mount.path).is_dir()


HUNG = """
import ctypes, os, sys
from pathlib import Path
from nnfs.mount import logs, signals
signals.block()
from nnfs.mount import daemon, ops
logs.configure(Path(sys.argv[1]), foreground=True)
async def lookup(self, parent, name, ctx, there=ops.Operations.lookup):
    if name == b"hang":
        Path(sys.argv[5]).touch()
        {hang}
    return await there(self, parent, name, ctx)
ops.Operations.lookup = lookup
sys.exit(daemon.run(Path(sys.argv[1]), Path(sys.argv[2]), [], lambda: None))
"""
HANGS = {
    "in Python": "while not os.path.exists(sys.argv[3]): pass",
    "in a system call": "os.open(sys.argv[4], os.O_RDONLY)",
    "with the GIL": "ctypes.PyDLL(None).open(sys.argv[4].encode(), os.O_RDONLY)",
}


@pytest.mark.parametrize("hang", HANGS)
def test_a_loop_that_hangs_is_told_of(tmp_path: Path, hang: str) -> None:
    """In C with the GIL held, only USR2 is answered."""
    end, fifo, hung = tmp_path / "end", tmp_path / "fifo", tmp_path / "hung"
    os.mkfifo(fifo)

    def argv(mount: Mount) -> list[str]:
        script = HUNG.replace("{hang}", HANGS[hang])
        return [command()[0], "-c", script, str(mount.store), str(mount.path), str(end), str(fifo), str(hung)]

    with Mount(argv=argv) as mount:
        mount.deadline()
        client = subprocess.Popen(["stat", str(mount.path / "hang")], stderr=subprocess.DEVNULL)
        try:
            wait_for("the hang", hung.exists)
            if hang != "with the GIL":
                text = sent(mount, signal.SIGQUIT, "tasks\n")
                assert "event loop: does not answer" in text
                assert " lookup\n" in text
            assert " in lookup\n" in sent(mount, signal.SIGUSR2, " in lookup\n")
        finally:
            end.touch()
            if hang != "in Python":
                fifo.open("w").close()
            client.wait(WAIT_S)


def test_hup_opens_the_log_again_and_reads_the_configuration(fresh_mount: Mount, tmp_path: Path) -> None:
    config, log = tmp_path / "nnfs.toml", tmp_path / "log"
    config.write_text('[default]\ncache = "1M"\n')
    fresh_mount.unmount()
    fresh_mount.env = {"NNFS_CONFIG": str(config)}
    fresh_mount._argv = lambda mount: command("mount", str(mount.store), str(mount.path), "-f", "--log", str(log))
    fresh_mount.mount()
    log.rename(tmp_path / "log.1")
    config.write_text('[default]\ncache = "2M"\nwrite_age = "1m"\nthreads = 2\n')
    os.kill(fresh_mount.pid, signal.SIGHUP)

    def told() -> bool:
        return log.exists() and "configuration read again: 3 changed" in log.read_text()

    wait_for("the new log", told)
    text = log.read_text()
    assert "log opened again" in text
    assert "option cache is 2097152 now\n" in text
    assert "option threads is 2 now: takes effect at the next mount" in text
    config.write_text("nonsense")
    os.kill(fresh_mount.pid, signal.SIGHUP)
    wait_for("the complaint", lambda: "the configuration is left as it was" in log.read_text())
    os.kill(fresh_mount.pid, signal.SIGUSR2)  # C, too, writes into the new log
    wait_for("stacks", lambda: "Current thread" in log.read_text())
    (fresh_mount.path / "f").write_bytes(b"x")


def test_logrotate_may_copy_the_log_and_empty_it(fresh_mount: Mount, tmp_path: Path) -> None:
    """`copytruncate`: the daemon goes on at the end of the file, wherever that is, and is told nothing."""
    log = tmp_path / "log"
    fresh_mount.unmount()
    fresh_mount._argv = lambda mount: command("mount", str(mount.store), str(mount.path), "-f", "--log", str(log))
    fresh_mount.mount()
    before = tmp_path / "log.1"
    shutil.copy(log, before)
    os.truncate(log, 0)
    nnfs("set", str(fresh_mount.path), "cache=3M")
    assert "mounted" in before.read_text()
    text = log.read_text()
    assert "option cache is 3145728 now" in text
    assert "\0" not in text
    assert "mounted" not in text


def in_terminal(mount: Mount) -> tuple[int, Callable[[], None]]:
    """Let the daemon run in a session of its own with a terminal; the pid, and what closes the terminal."""
    ours, theirs = pty.openpty()
    fresh = "import os,sys,fcntl,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    words = command("mount", str(mount.store), str(mount.path), "-f")
    child = subprocess.Popen(
        [words[0], "-c", fresh, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environment({"XDG_STATE_HOME": str(mount.base)}), cwd="/",
    )  # fmt: skip
    os.close(theirs)
    wait_for("the mount", lambda: mounted_at(mount.path))
    child.returncode = 0
    return child.pid, lambda: os.close(ours)


def test_a_closed_terminal_loses_nothing(fresh_mount: Mount) -> None:
    fresh_mount.unmount()
    pid, close = in_terminal(fresh_mount)
    fresh_mount.deadline()
    with (fresh_mount.path / "f").open("wb") as file:
        file.write(b"before ")
        close()
        file.write(b"after")
    status = nnfs("status", str(fresh_mount.path), "--json").stdout
    assert f'"pid": {pid}' in status
    nnfs("umount", str(fresh_mount.path))
    assert is_clean(fresh_mount.store)
    os.waitpid(pid, 0)
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"before after"


def test_a_second_term_ends_it_though_a_file_is_open(fresh_mount: Mount) -> None:
    with (fresh_mount.path / "f").open("wb", buffering=0) as file:
        file.write(b"written")
        os.kill(fresh_mount.pid, signal.SIGTERM)
        wait_for("the mount to go", lambda: not mounted_at(fresh_mount.path))
        os.kill(fresh_mount.pid, signal.SIGTERM)
        fresh_mount.unmount()  # status 0
    assert is_clean(fresh_mount.store)
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"written"


def test_a_limit_of_file_size_is_lifted(tmp_path: Path) -> None:
    def argv(mount: Mount) -> list[str]:
        words = command("mount", str(mount.store), str(mount.path), "-f")
        return ["sh", "-c", 'ulimit -S -f 100; exec "$@"', "sh", *words]

    with Mount(argv=argv) as mount:
        (mount.path / "f").write_bytes(os.urandom(4 << 20))
        mount.remount()
        assert (mount.path / "f").stat().st_size == 4 << 20
