"""sd_notify(3) in a few lines: messages to systemd that the daemon is ready, is stopping, is alive."""

from __future__ import annotations

import logging
import os
import socket
import time

from nnfs import names

log = logging.getLogger(__name__)


def notify(*lines: str) -> bool:
    """Send assignments such as "READY=1" to the service manager. Return False when there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    name = "\0" + address[1:] if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(map(names.one_line, lines)).encode(), name)
    except OSError as error:
        log.warning("cannot notify the service manager at %s: %s", address, error)
        return False
    return True


def ready(status: str = "") -> bool:
    """Tell the service manager that the mount is there."""
    return notify("READY=1", f"MAINPID={os.getpid()}", *([f"STATUS={status}"] if status else []))


def stopping(status: str = "") -> bool:
    """Tell the service manager that an unmount has begun."""
    return notify("STOPPING=1", *([f"STATUS={status}"] if status else []))


def reloading() -> bool:
    """Tell the service manager that the configuration is being read again, until the next `ready`."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def extend_timeout(seconds: float) -> bool:
    """Ask the service manager for more time: a last commit may be long, and a kill meanwhile would lose data."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def watchdog() -> bool:
    """Send a sign of life to the service manager's watchdog."""
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Return half the seconds within which systemd's watchdog needs a sign of life, None when it needs none."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
