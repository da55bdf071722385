"""A daemon with a bug: `python buggy_daemon.py STORE MNT [-o OPTIONS]`.

The environment's BUG says where: link (the default) in link(2); tell, watchdog, accept or fetch in a task of the
daemon's own; serve in what serves requests, once a file is removed; finish in the last commit.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import trio

from nnfs.blockio.commit import Committer
from nnfs.blockio.fetch import Fetcher
from nnfs.fs.namespace import Namespace
from nnfs.mount import daemon, logs
from nnfs.mount.connection import Connection


def broken(where: str) -> Any:
    """A method that does what a bug does."""

    def method(*_: object) -> NoReturn:
        raise ZeroDivisionError(f"a bug in {where}")

    async def task(*_: object) -> NoReturn:
        method()

    return method if where in ("link", "accept") else task


def broken_serving() -> None:
    """Have the session loop end by a bug at the first unlink(2)."""
    removed, serve, unlink = trio.Event(), Connection.serve, Namespace.unlink

    @functools.wraps(unlink)
    def unlinked(*args: Any) -> Any:
        try:
            return unlink(*args)
        finally:
            removed.set()

    async def serving(*args: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, *args)
            await removed.wait()
            broken("link")()

    Namespace.unlink, Connection.serve = unlinked, serving  # type: ignore[method-assign, assignment]


PLACES: dict[str, tuple[Any, str]] = {
    "link": (Namespace, "link"),
    "tell": (daemon.Daemon, "_tell_kernel"),
    "watchdog": (daemon.Daemon, "_watchdog"),
    "accept": (trio.SocketListener, "accept"),
    "fetch": (Fetcher, "_fetch"),
    "finish": (Committer, "finish"),
}

if __name__ == "__main__":
    bug = os.environ.get("BUG", "link")
    if bug == "serve":
        broken_serving()
    else:
        setattr(*PLACES[bug], broken(bug))
    logs.configure(Path(sys.argv[1]), foreground=True)
    options = [word for word in sys.argv[3:] if word != "-o"]
    sys.exit(daemon.run(Path(sys.argv[1]), Path(sys.argv[2]), options, lambda: None))
