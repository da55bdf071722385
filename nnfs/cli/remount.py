"""`python -m nnfs.cli.remount MNT OPTS`: refuse a remount that nnfs cannot do, before the kernel shows new options."""

from __future__ import annotations

import sys

from nnfs.cli import client
from nnfs.cli.locate import locate
from nnfs.errors import NnfsError, UsageError
from nnfs.mount.options import parse_options
from nnfs.names import say


def check(mountpoint: str, options: str) -> None:
    """Raise `UsageError` for an option that would have no effect; print the options of nnfs that do not change."""
    wanted = parse_options([options])
    own = sorted(wanted.own.keys() - {"remount"})
    if own:
        say(f"a remount does not change {', '.join(own)}: use /etc/nnfs.toml and a SIGHUP, or mount again")
    store = locate(mountpoint).store
    if not wanted.read_only and client.ask(store, "status")["read_only"]:
        raise UsageError(f"{store} was mounted read-only, and remount cannot make it writable: unmount and mount again")


if __name__ == "__main__":
    try:
        check(*sys.argv[1:])
    except NnfsError as error:
        say(str(error))
        sys.exit(1)
