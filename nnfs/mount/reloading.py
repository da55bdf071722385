"""Options that change while mounted: by SIGHUP, which has the configuration read again, and by `nnfs set`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from nnfs.config import Options, as_texts, config_file, load_options, parse_own
from nnfs.errors import NnfsError, UsageError
from nnfs.mount import logs, memory
from nnfs.mount.table import is_beneath, resolve

if TYPE_CHECKING:
    from nnfs.mount.daemon import Daemon

log = logging.getLogger(__name__)

# The options that may change while mounted. Workers are started with the others, which wait for the next mount.
LIVE = ("cache", "dirty", "policy", "write_age", "read_age", "thaw_limit", "thawed", "search", "search_memory")
LOG_LEVEL, LEVELS = "log_level", ("debug", "info", "warning", "error")


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


async def reload(daemon: Daemon) -> None:
    """Read the configuration again and take over the options that may change."""
    try:
        # In a thread: the file names directories, which may lie on this very mount.
        new = await trio.to_thread.run_sync(
            functools.partial(load_options, daemon.store.path, daemon.words, resolve=resolve)
        )
    except NnfsError as error:
        log.error("the configuration is left as it was: %s", error)
        return
    changed = await _take_over(daemon, memory.within(new))
    log.info("configuration read again: %s", f"{len(changed)} changed" if changed else "nothing has changed")


async def change(daemon: Daemon, words: Mapping[str, str]) -> None:
    """Take over options that may change while mounted, and `log_level`, until the unmount.

    Raises `UsageError`, with nothing changed, for unknown options, bad values, and options that may not change.
    """
    words = dict(words)
    level = words.pop(LOG_LEVEL, None)
    if level is not None and level not in LEVELS:
        raise UsageError(f"{LOG_LEVEL}={level}: say one of {', '.join(LEVELS)}")
    known = {option.name for option in fields(Options)}
    for name in words:
        if name in known and name not in LIVE:
            raise UsageError(
                f"option {name} waits for the next mount: give it to nnfs mount with -o, or write it to {config_file()}"
            )
    given = parse_own(words, others=(LOG_LEVEL,))
    new = replace(daemon.own, **{name: getattr(given, name) for name in words})
    _check_memory(new)
    daemon.words.update(words)  # SIGHUP reads the file, which these precede as -o does
    await _take_over(daemon, new)
    if level is not None:
        logging.getLogger().setLevel(level.upper())
        log.log(logging.getLogger().level, "logged from level %s on", level)


def _check_memory(wanted: Options) -> None:
    """Raise `UsageError` for sizes that the memory of the mount has no room for."""
    held, texts = memory.within(wanted), as_texts(memory.within(wanted))
    for name in ("cache", "dirty"):
        if getattr(held, name) < getattr(wanted, name):
            raise UsageError(
                f"{name} is {texts[name]} at most: the mount may use {texts['memory']} of memory (option memory)"
            )


def current(daemon: Daemon) -> dict[str, str]:
    """Return all options that hold now as text."""
    return {**as_texts(daemon.own), LOG_LEVEL: logging.getLevelName(logging.getLogger().level).lower()}


async def _take_over(daemon: Daemon, new: Options) -> list[str]:
    """Take over the options that may change while mounted. Return the names of all that are others now."""
    old = daemon.own
    changed = [option.name for option in fields(Options) if getattr(old, option.name) != getattr(new, option.name)]
    held = daemon.own = replace(old, **{name: getattr(new, name) for name in LIVE})
    daemon.reader.cache.set_limit(held.cache)
    daemon.space.dirty_limit = held.dirty
    daemon.thawed.limit = held.thawed
    daemon.times.read_age = held.read_age
    daemon.background.set_options(held)
    for name in changed:
        when = "" if name in LIVE else ": takes effect at the next mount"
        log.info("option %s is %s now%s", name, getattr(new, name), when)
    await trio.to_thread.run_sync(daemon.thawed.evict)
    return changed
