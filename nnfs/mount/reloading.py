"""The work of SIGHUP: open the log again, and read the configuration again."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from nnfs.config import Options, load_options
from nnfs.errors import NnfsError
from nnfs.mount import logs
from nnfs.mount.table import is_beneath, resolve

if TYPE_CHECKING:
    from nnfs.mount.daemon import Daemon

log = logging.getLogger(__name__)

# The options that may change while mounted. Workers are started with the others, which wait for the next mount.
LIVE = ("cache", "dirty", "policy", "write_age", "read_age", "thaw_limit", "thawed")


def reopen_log(store: Path, mountpoints: Iterable[str]) -> None:
    """Open the log again (it was rotated, or its terminal closed). Blocks; raises nothing."""
    file = logs.current_file()
    if file is not None and any(is_beneath(resolve(file), mountpoint) for mountpoint in mountpoints):
        log.error("the log %s is not opened again: it lies beneath the mount point, and this would hang", file)
        return
    try:
        where = logs.reopen(store)
    except OSError as error:
        log.error("the log cannot be opened again, and stays where it was: %s", error)
        return
    log.info("log opened again%s", f": its terminal is gone, it goes to {where}" if where else "")


async def reload(daemon: Daemon, words: Mapping[str, str]) -> Options:
    """Read the configuration again and take over the options that may change. Return the options that hold now."""
    old = daemon.own
    try:
        # In a thread: the file names directories, which may lie on this very mount.
        new = await trio.to_thread.run_sync(functools.partial(load_options, daemon.store.path, words, resolve=resolve))
    except NnfsError as error:
        log.error("the configuration is left as it was: %s", error)
        return old
    changed = [option.name for option in fields(Options) if getattr(old, option.name) != getattr(new, option.name)]
    held = Options(**{name.name: getattr(new if name.name in LIVE else old, name.name) for name in fields(Options)})
    daemon.reader.cache.limit = held.cache
    daemon.space.dirty_limit = held.dirty
    daemon.thawed.limit = held.thawed
    daemon.times.read_age = held.read_age
    daemon.background.set_options(held)
    for name in changed:
        when = "" if name in LIVE else ": takes effect at the next mount"
        log.info("option %s is %s now%s", name, getattr(new, name), when)
    log.info("configuration read again: %s", f"{len(changed)} changed" if changed else "nothing has changed")
    return held
