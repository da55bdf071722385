"""The daemon's part of `nnfs snapshot`: takes snapshots, tells about them, deletes them a piece at a time."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from typing import Any

import trio

from nnfs.blockio.commit import Committer
from nnfs.errors import NnfsError, OutOfSpace, UsageError
from nnfs.fs import snapshotdiff, snapshotlist, snapshots
from nnfs.fs.filesystem import Filesystem
from nnfs.mount.control import Handler
from nnfs.store import moments, schema
from nnfs.store.env import Store
from nnfs.store.moments import Moment, Past

log = logging.getLogger(__name__)

PAUSE_S = 0.05  # between two commits of a deletion, in which requests may have theirs
RETRY_S = 30.0  # until a deletion that found no room is tried again
RECORD, FREES = 64 << 10, 1 << 20  # bytes that a snapshot's record takes at most; that a piece of a deletion frees
CHANGES = 50_000  # in one answer of diff
NUMBERS = 60_000  # of snapshots in one mount, then numbers that nobody knows are given again


class Snapshots:
    """The snapshots of one mount. `handlers` are commands of the control socket; `run` deletes what is marked."""

    def __init__(self, store: Store, fs: Filesystem, committer: Committer, *, read_only: bool) -> None:
        self._store, self._fs, self._committer, self._read_only = store, fs, committer, read_only
        self._one = trio.Lock()  # no two are taken by one commit
        self._marked = trio.Event()
        self.handlers: dict[str, Handler] = {
            "snapshot_create": self._create, "snapshot_list": self._list, "snapshot_delete": self._delete,
            "snapshot_diff": self._diff,
        }  # fmt: skip

    async def run(self) -> None:
        """Delete the snapshots that are marked, a piece at a time, until cancelled."""
        self._marked.set()
        while True:
            await self._marked.wait()
            self._marked = trio.Event()
            while any(moment.deleting for moment in self._fs.pasts.moments):
                budget = snapshots.NODE * self._committer.space.release_nodes(snapshots.BUDGET // snapshots.NODE)
                try:
                    await self._committer.amend(functools.partial(snapshots.reap, budget=budget), RECORD, frees=FREES)
                    await trio.sleep(PAUSE_S)
                except OutOfSpace as error:
                    log.warning("a snapshot is not deleted yet: %s", error)
                    await trio.sleep(RETRY_S)
                except NnfsError as error:
                    log.error("snapshots are not deleted until the next mount: %s", error)
                    return

    def _writable(self) -> None:
        if self._read_only or self._committer.failure is not None:
            raise UsageError("the mount is read-only: no snapshot can be taken or deleted")

    async def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self._writable()
        name = os.fsencode(request["name"])
        snapshots.check_name(name)
        async with self._one:
            used = self._fs.pasts.used
            if len(used) >= NUMBERS:
                used = {ino >> schema.INO_BITS for ino in self._fs.lookups}
            change = functools.partial(_taken, name=name, now=time.time_ns(), used=frozenset(used))
            began = time.monotonic()
            moment = await self._committer.amend(change, RECORD)
        log.info("snapshot %s: commit %d", os.fsdecode(name), moment.taken)
        return {"name": os.fsdecode(name), "commit": moment.taken, "seconds": time.monotonic() - began}

    async def _delete(self, request: dict[str, Any]) -> dict[str, Any]:
        self._writable()
        names = frozenset(os.fsencode(name) for name in request["names"])
        change = functools.partial(snapshots.begin_delete, names=names)
        found = await self._committer.amend(change, RECORD, frees=FREES)
        self._marked.set()
        for moment in found:
            log.info("snapshot %s is being deleted", os.fsdecode(moment.name))
        return {"deleted": [os.fsdecode(moment.name) for moment in found]}

    async def _list(self, _request: dict[str, Any]) -> dict[str, Any]:
        await self._settled()
        return {"snapshots": await trio.to_thread.run_sync(self._listed)}

    def _listed(self) -> list[dict[str, Any]]:
        with self._store.read() as snapshot:
            return snapshotlist.listed(snapshot)

    async def _diff(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._settled()
        first, second = os.fsencode(request["name"]), request.get("other")
        return await trio.to_thread.run_sync(
            self._changes, first, os.fsencode(second) if second else None, str(request.get("below", ""))
        )

    def _changes(self, name: bytes, other: bytes | None, below: str) -> dict[str, Any]:
        with self._store.read() as snapshot:
            known = moments.load(snapshot)
            before = Past(snapshot, known, _named(known, name).number)
            after = Past.live(snapshot) if other is None else Past(snapshot, known, _named(known, other).number)
            if before.moment.taken > after.moment.taken:
                raise UsageError("the first snapshot is the younger one: give the older one first")
            found = (one for one in snapshotdiff.diff(snapshot, known, before, after) if _is_below(one, below))
            changes = list(itertools.islice(found, CHANGES))
            return {"changes": changes, "more": sum(1 for _ in found)}

    async def _settled(self) -> None:
        try:
            await self._committer.sync()
        except NnfsError as error:
            log.debug("answering from the last commit: %s", error)


def _taken(work: Any, name: bytes, now: int, used: frozenset[int]) -> Moment:
    return snapshots.take(work, name, now, used)


def _named(known: tuple[Moment, ...], name: bytes) -> Moment:
    found = next((moment for moment in known if moment.name == name and not moment.deleting), None)
    if found is None:
        raise UsageError(f"there is no snapshot {os.fsdecode(name)}")
    return found


def _is_below(change: dict[str, Any], below: str) -> bool:
    paths = (change["path"], change.get("to", ""))
    return not below or any(path == below or path.startswith(below + "/") for path in paths)
