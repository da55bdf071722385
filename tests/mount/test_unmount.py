"""The end of a connection: umount, busy mounts, dead daemons, requests that vanish."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from nnfs.errors import MountError
from nnfs.mount import connection
from nnfs.mount.mountpoint import unmount_path
from nnfs.mount.options import MountOptions
from nnfs.mount.table import mounts
from tests.mount.kit import Client, eventually, mounted, mounting


@mounting
@pytest.mark.parametrize("lazy", [False, True])
def test_umount_from_outside_ends_serve(place: Path, lazy: bool) -> None:
    def look(client: Client) -> None:
        (client.path / "f").write_bytes(b"dirty" * 1000)
        subprocess.run(["umount", "-i", *(["-l"] if lazy else []), client.path], check=True)

    fs = mounted(place / "m", look, unmount=False)
    assert bytes(fs.nodes[2].data) == b"dirty" * 1000  # the kernel wrote it back before it let go


@mounting
def test_busy_unmount_says_so_and_a_later_one_works(place: Path) -> None:
    def look(client: Client) -> None:
        with (client.path / "f").open("wb"):
            with pytest.raises(MountError, match="lazily") as caught:
                trio.from_thread.run(client.connection.unmount, trio_token=client.token)
            assert caught.value.errno == errno.EBUSY
        assert client.connection.mountpoint() == str(client.path)

    mounted(place / "m", look)


@mounting
def test_failed_daemon_leaves_no_mount_and_no_hang(place: Path) -> None:
    def look(client: Client) -> None:
        (client.path / "f").write_bytes(b"never flushed")
        raise RuntimeError("the daemon fails")

    with pytest.raises(ExceptionGroup):
        mounted(place / "m", look)
    assert not any(mount.mountpoint == str(place / "m") for mount in mounts())
    mounted(place / "m", lambda client: None)


@mounting
def test_mount_of_a_killed_daemon_is_taken_off(place: Path) -> None:
    def look(client: Client) -> None:
        assert (client.path / "f").write_bytes(b"x")

    mountpoint = place / "m"
    mountpoint.mkdir()
    fuse = connection._mount_as_root(str(mountpoint), MountOptions())
    os.close(fuse)
    try:
        with pytest.raises(OSError, match="not connected"):
            mountpoint.stat()
        mounted(mountpoint, look)
    finally:
        with contextlib.suppress(MountError):
            unmount_path(str(mountpoint), lazy=True)


@mounting
def test_unmount_leaves_other_mounts_on_the_same_path(place: Path) -> None:
    def look(client: Client) -> None:
        subprocess.run(["umount", "-i", client.path], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "other", client.path], check=True)
        try:
            trio.from_thread.run(client.connection.unmount, trio_token=client.token)
            assert any(mount.mountpoint == str(client.path) and mount.source == "other" for mount in mounts())
        finally:
            subprocess.run(["umount", "-i", client.path], check=True)

    mounted(place / "m", look, unmount=False)


class KillBeforeRead(trio.abc.Instrument):
    """Kill a process between the moment when epoll reports its request and the moment when pyfuse3 reads it."""

    def __init__(self) -> None:
        self.victim: subprocess.Popen[bytes] | None = None
        self.poll = select.poll()
        self.done = False

    def after_io_wait(self, timeout: float) -> None:
        if self.victim is not None and not self.done and self.poll.poll(0):
            self.victim.kill()
            self.victim.wait()
            eventually(lambda: not self.poll.poll(0))
            self.done = True


@mounting
def test_request_that_vanishes_does_not_hang_the_daemon(place: Path) -> None:
    """If it did not look twice, the daemon would hang in read(2), GIL held, until the alarm ends that."""
    alarms: list[int] = []
    names: list[str] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: alarms.append(number))

    def look(client: Client) -> None:
        trap = KillBeforeRead()
        trap.poll.register(client.connection._fd, select.POLLIN)

        def arm() -> None:
            if trap.done:  # by now
                return
            signal.alarm(10)
            names.append(f"vanishing{len(names)}")
            trap.victim = subprocess.Popen(["stat", client.path / names[-1]], stderr=subprocess.DEVNULL)

        def is_done() -> bool:
            """Try again when a request was read without a wait before it: on a busy machine it may come in between."""
            if not trap.done and trap.victim is not None and trap.victim.poll() is not None:
                client.in_loop(arm)
            return trap.done

        try:
            client.in_loop(lambda: trio.lowlevel.add_instrument(trap))
            client.in_loop(arm)
            eventually(is_done)
            client.in_loop(lambda: None)
        finally:
            signal.alarm(0)
            client.in_loop(lambda: trio.lowlevel.remove_instrument(trap))
        assert not alarms, "the daemon hung in read(2)"

    try:
        fs = mounted(place / "m", look)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not fs.count("lookup", names[-1].encode())
