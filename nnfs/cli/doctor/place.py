"""Checks of a store and, where it is mounted, of its daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnfs
from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.doctor.finding import Finding, fail, ok, warn
from nnfs.cli.locate import Place, locate, mount_of
from nnfs.cli.progress import shell
from nnfs.constants import DATA_FILE
from nnfs.errors import NnfsError, StoreDamaged
from nnfs.names import message_of
from nnfs.store import privacy

NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs")
FLEETING = ("tmpfs", "ramfs", "devtmpfs")
LEAST_SHARE = 0.1  # of the disk that should be free
SCRUB_S = 40 * 86400.0  # as in the rules for Prometheus
Answer = dict[str, Any]


def checks(text: str) -> Iterator[Finding]:
    """Yield what is found about the store of a path."""
    try:
        place = locate(text)
    except (NnfsError, OSError) as error:
        yield fail("store", message_of(error), "give a store, a mount point, or anything on a mount")
        return
    yield _disk(place.store)
    yield _room(place.store)
    yield _rights(place.store)
    answer = status(place)
    if isinstance(answer, Exception):
        advice = "nnfs fsck tells more" if isinstance(answer, StoreDamaged) else "see there"
        yield fail("store", message_of(answer), advice)
    elif answer.get("pid"):
        yield from _daemon(place, answer)
    else:
        yield from _at_rest(answer)


def status(place: Place) -> Answer | NnfsError | OSError:
    """Return the answer of a store's daemon, or what a store at rest tells; an error where there is no answer."""
    try:
        if place.mount is not None or client.daemon_pid(place.store) is not None:
            return client.ask(place.store, "status")
        from nnfs.store.env import Store

        store = Store.open(place.store, readonly=True)
        try:
            facts = store.superblock
            return {
                "clean": store.state.clean_commit == store.state.commit, "created": facts.created / 1e9,
                "commit": store.state.commit, "version": facts.version, "chunk_size": facts.chunk_size,
                "compat": facts.compat, "ro_compat": facts.ro_compat, "incompat": facts.incompat,
            }  # fmt: skip
        finally:
            store.close()
    except (NnfsError, OSError) as error:
        return error


def _disk(store: Path) -> Finding:
    entry = mount_of(os.path.realpath(store))
    kind = entry.fstype if entry is not None else "unknown"
    if kind in NETWORK:
        return warn("disk", f"the store lies on {kind}", "keep it on a local disk: LMDB needs a shared memory map")
    if kind in FLEETING:
        return warn("disk", f"the store lies on {kind}", "it is gone when the machine is switched off")
    return ok("disk", f"the store lies on {kind}")


def _room(store: Path) -> Finding:
    try:
        found = os.statvfs(store)
    except OSError as error:
        return fail("room", message_of(error), "mount the disk that has the store")
    free, share = found.f_bavail * found.f_frsize, found.f_bavail / max(1, found.f_blocks)
    text = f"{tables.size(free)} free ({share:.0%}) where the store lies"
    if share < LEAST_SHARE:
        return warn("room", text, "make room: a full disk is ENOSPC for writers")
    return ok("room", text)


def _rights(store: Path) -> Finding:
    try:
        modes = {name: os.stat(store / name).st_mode for name in ("", DATA_FILE)}
    except OSError as error:
        return warn("rights", message_of(error), "only the owner of a store and root can look at it")
    if is_open := [name or "." for name, mode in modes.items() if mode & privacy.OTHERS and name]:
        return warn("rights", f"others may read {', '.join(is_open)}", "the next mount closes it")
    return ok("rights", "the data is its owner's alone")


def _at_rest(answer: Answer) -> Iterator[Finding]:
    how = "closed in order" if answer["clean"] else "not closed in order: the next mount sees to it"
    yield ok("store", f"not mounted, {how}; format {answer['version']}, commit {answer['commit']}")
    if answer["created"] > time.time():
        yield warn("created", f"the store was made on {tables.date(answer['created'])}", "look at the clock")


def _daemon(place: Place, answer: Answer) -> Iterator[Finding]:
    """Yield what the daemon of a mount tells."""
    yield ok("daemon", f"answers; commit {answer['commit']}, up for {tables.span(answer['uptime'])}")
    if answer["version"] != nnfs.__version__:
        advice = "unmount and mount again to run this one"
        yield warn("version", f"the daemon is nnfs {answer['version']}, this is {nnfs.__version__}", advice)
    yield _writes(place, answer)
    yield _damage(place, answer)
    yield _scrubbed(place, answer)
    yield _codecs(answer)
    deaths = sum(worker["deaths"] for worker in answer["workers"])
    if deaths:
        last = next((worker["last_error"] for worker in answer["workers"] if worker["last_error"]), "")
        yield warn("workers", f"{deaths} have died: {last}", "too little memory? The log tells more")
    else:
        yield ok("workers", "none has died")


def _writes(place: Place, answer: Answer) -> Finding:
    if answer["lost"]:
        advice = f"before the unmount, nnfs backup {shell(place)} FILE saves what it holds"
        return fail("writes", f"the data file {answer['lost']}", advice)
    if answer["no_space"]:
        return fail("writes", "a commit waits for room", "delete something, or make room on the disk below")
    if answer["read_only"] == "mounted read-only":
        return ok("writes", "mounted read-only")
    if answer["read_only"]:
        return fail("writes", f"read-only: {answer['read_only']}", "look at the log; unmount and mount again")
    return ok("writes", f"{tables.size(answer['dirty_bytes'])} wait for the next commit")


def _damage(place: Place, answer: Answer) -> Finding:
    count = answer["damaged_blocks"]
    if count:
        advice = f"nnfs scrub {shell(place)} --wait repairs what can be repaired, and names the files"
        return fail("damage", f"{count} damaged blocks", advice)
    if answer["wrong_decodes"] or answer["device_errs"]:
        told = answer["device_errs"] or f"{answer['wrong_decodes']} results of workers were wrong at first"
        return warn("damage", told, "no data is wrong, but test the device and the memory")
    return ok("damage", "none is known")


def _scrubbed(place: Place, answer: Answer) -> Finding:
    at = answer["scrubbed"]["checksums"]
    advice = f"nnfs scrub {shell(place)}; nnfs-scrub@.timer does it every month"
    if at is None and answer["uptime"] > SCRUB_S:
        return warn("scrub", "never", advice)
    if at is not None and time.time() - at > SCRUB_S:
        return warn("scrub", f"everything was last found sound on {tables.date(at)}", advice)
    return ok("scrub", f"everything was last found sound on {tables.date(at)}" if at else "not yet")


def _codecs(answer: Answer) -> Finding:
    if out := answer["codecs_out"]:
        first = out[0]
        others = f" ({len(out) - 1} others, too)" if len(out) > 1 else ""
        return warn("codecs", f"{first['codec']} does not run: {first['why']}{others}", names.one_line(first["cure"]))
    return ok("codecs", "all that were needed run")
