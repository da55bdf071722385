"""The daemon's part of `nnfs quota`, and of the attributes that set limits."""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import Any

import trio

from nnfs.blockio.commit import Committer
from nnfs.config import parse_size
from nnfs.constants import ROOT_INO, VIRTUAL_XATTRS
from nnfs.errors import FsError, NnfsError, UsageError, again, kept
from nnfs.fs import quotareport
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.pasts import is_past
from nnfs.mount.control import Handler
from nnfs.mount.quotawalk import Prove, Walker, members
from nnfs.store.quotas import LARGEST, Quota
from nnfs.store.schema import Inode

log = logging.getLogger(__name__)

PREFIX = VIRTUAL_XATTRS.encode() + b"quota."
LIMITS = {PREFIX + b"max_bytes": "max_bytes", PREFIX + b"max_inodes": "max_inodes"}
ATTRIBUTES = {**LIMITS, PREFIX + b"bytes": "size", PREFIX + b"inodes": "inodes"}  # extended attributes to fields

ROUNDS = 100  # of repairs, each of which may bring the next ones to light


class QuotaService:
    """The quotas of one mount. `handlers` are commands of the control socket; `run` counts in the background."""

    def __init__(self, fs: Filesystem, committer: Committer, prove: Prove, *, read_only: bool) -> None:
        self._fs, self._committer, self._read_only = fs, committer, read_only
        self.may_bypass = False  # whether the kernel keeps its cache true beside handles that go past it
        self._walker = Walker(fs, committer, prove)
        self._woken = trio.Event()
        self._ended = trio.Event()  # of a turn of `run`
        self._failure: NnfsError | None = None  # why nothing is counted any more
        fs.quotas.wake = self._wake
        self.handlers: dict[str, Handler] = {
            "quota_set": self._set, "quota_show": self._show, "quota_remove": self._remove,
            "quota_check": self._check,
        }  # fmt: skip

    def _wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Count for quotas that are new, and take those that go from their inodes, until cancelled."""
        while True:
            self._woken = trio.Event()
            try:
                if not await self.turn():
                    await self._woken.wait()
            except NnfsError as error:
                log.error("quotas are not counted until the next mount: %s", error)
                self._failure = kept(error)
                return
            finally:
                self._ended.set()
                self._ended = trio.Event()

    async def turn(self) -> bool:
        """Do what is due for one quota. Return whether anything was. Raises `NnfsError`."""
        due = next((quota for quota in self._fs.quotas.all() if quota.counting or quota.removing), None)
        if due is not None:
            await (self._taken_away(due) if due.removing else self._counted(due))
            await self._committer.sync()
        return due is not None

    async def _counted(self, quota: Quota) -> None:
        """Count all that lies in the directory of a quota."""
        quotas = self._fs.quotas

        def wanted() -> bool:
            return quotas.get(quota.number) is quota and quota.counting

        await self._walker.below(quota.root, quota.number, wanted)
        if wanted():
            quotas.change(quota, flags=quota.flags & ~Quota.FLAG_COUNTING)
            self._note()
            log.info("quota %d: %d inodes, %d B are counted", quota.number, quota.inodes, quota.size)

    async def _taken_away(self, quota: Quota) -> None:
        """Give what counts for a quota that goes to the one above."""
        quotas = self._fs.quotas
        while quotas.get(quota.number) is quota and quota.removing and not quotas.drop_if_empty(quota):
            await self._committer.sync()
            found, size, inodes = await trio.to_thread.run_sync(members, self._fs, quota.number)
            if (size, inodes) != (0, 0):
                log.error("quota %d is corrected by %d inodes, %d B", quota.number, inodes, size)
                quotas.add(quota.number, size, inodes)
            damaged = await self._walker.all(found, quota.number, quota.above)
            if damaged and damaged >= quota.inodes:  # fsck rebuilds them, without a quota
                quotas.add(quota.number, -quota.size, -quota.inodes)
        self._note()

    def _note(self) -> None:
        """Have the next commit write the records that have changed, also if no inode has."""
        self._fs.touch(self._fs.inode(ROOT_INO))

    # -- limits

    def fails_at_once(self, inode: Inode, flags: int) -> bool:
        """Return whether a new handle's writes are to go past the kernel's cache, and so fail with write(2) itself.

        That is near the limit of a quota. Elsewhere the cache makes small ones quicker, and fsync tells.
        """
        if not inode.quota or not self.may_bypass or flags & os.O_ACCMODE != os.O_WRONLY:
            return False
        return self._fs.quotas.is_near(inode.quota)

    def set_limits(self, inode: Inode, max_bytes: int | None = None, max_inodes: int | None = None) -> None:
        """Set the limits of a directory; None: as it is, 0: none. Without any the quota goes. Raises `UsageError`."""
        if is_past(inode.ino) or not stat.S_ISDIR(inode.mode):
            raise UsageError("a quota is that of a directory, and not in a snapshot")
        if any(limit is not None and not 0 <= limit <= LARGEST for limit in (max_bytes, max_inodes)):
            raise UsageError("a limit is a whole number from 0 to 2^64 - 1")
        quotas = self._fs.quotas
        quota = quotas.at(inode.ino)
        size = max_bytes if max_bytes is not None else quota.max_bytes if quota else 0
        inodes = max_inodes if max_inodes is not None else quota.max_inodes if quota else 0
        if quota is None and (size or inodes):
            quotas.create(inode, size, inodes)
        elif quota is not None and (size or inodes):
            again = Quota.FLAG_COUNTING if quota.removing else quota.flags
            quotas.change(quota, max_bytes=size, max_inodes=inodes, flags=again)
        elif quota is not None:
            quotas.remove(quota)
        self._fs.touch(inode)
        self._wake()

    def _figure(self, inode: Inode, field: str) -> int | None:
        """Return a limit of a directory itself, or what counts for it; None if it has none of its own."""
        quota = self._fs.quotas.at(inode.ino)
        if quota is None:
            return None
        if field.startswith("max_"):
            return int(getattr(quota, field)) or None
        return int(getattr(self._fs.quotas.chain(quota.number)[0], field))

    def attribute(self, inode: Inode, name: bytes) -> bytes:
        """Return the value of one of `ATTRIBUTES`. Raises `FsError(ENODATA)`."""
        value = None if is_past(inode.ino) else self._figure(inode, ATTRIBUTES[name])
        if value is None:
            raise FsError(errno.ENODATA)
        return str(value).encode()

    def set_attribute(self, inode: Inode, name: bytes, value: bytes | None, uid: int) -> None:
        """Set one of `LIMITS`, None: remove it. Raises `FsError`: EPERM unless the store's owner or root asks."""
        if uid not in (0, os.geteuid()):
            raise FsError(errno.EPERM)
        field = LIMITS[name]
        if value is None:
            self.attribute(inode, name)
        try:
            limit = parse_size(value.decode().strip("\0 ")) if value is not None else 0
        except ValueError:
            raise FsError(errno.EINVAL) from None
        self.set_limits(inode, **{field: limit})

    # -- commands

    def _directory(self, request: dict[str, Any]) -> Inode:
        if self._read_only or self._committer.failure is not None:
            raise UsageError("the mount is read-only: no quota can be changed")
        try:
            return self._fs.inode(int(request["ino"]))
        except FsError as error:
            raise UsageError("the directory is not there any more") from error

    async def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        inode = self._directory(request)
        await self._committer.admission.admit(0)
        self.set_limits(inode, request.get("bytes"), request.get("inodes"))
        await self._committer.sync()
        if request.get("wait", True):
            await self._until_done(inode.ino)
        return await self._show({"ino": inode.ino})

    async def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        inode = self._directory(request)
        if self._fs.quotas.at(inode.ino) is None:
            raise UsageError("the directory has no quota of its own: nnfs quota show lists all")
        return await self._set({**request, "bytes": 0, "inodes": 0})

    async def _until_done(self, ino: int) -> None:
        while (quota := self._fs.quotas.at(ino)) is not None and (quota.counting or quota.removing):
            if self._failure is not None:
                raise again(self._failure)
            await self._ended.wait()

    async def _show(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return all quotas, for the root, too; or those that limit another inode, innermost first."""
        await self._settled()
        lines = await trio.to_thread.run_sync(self._lines)
        ino = request.get("ino")
        if ino in (None, ROOT_INO):
            return {"quotas": lines}
        inode = self._fs.inode(int(ino))
        by_number = {line["number"]: line for line in lines}
        levels = self._fs.quotas.chain(inode.quota)
        return {"quotas": [by_number[one.quota.number] for one in levels if one.quota.number in by_number]}

    def _lines(self) -> list[dict[str, Any]]:
        with self._fs.store.read() as snapshot:
            return quotareport.lines(snapshot)

    async def _settled(self) -> None:
        try:
            await self._committer.sync()
        except NnfsError as error:
            log.debug("answering from the last commit: %s", error)

    # -- check

    async def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Count anew; with `repair` correct what is wrong, while requests go on."""
        repair = bool(request.get("repair"))
        if repair:
            self._directory({"ino": ROOT_INO})
        found = await self._found()
        answer = {
            "wrong": [
                {"number": number, "bytes": size, "inodes": inodes}
                for number, (size, inodes) in sorted(found.missing.items())
            ],
            "misplaced": len(found.misplaced), "unknown": found.unknown, "repaired": False,
        }  # fmt: skip
        for _ in range(ROUNDS if repair else 0):
            if not (found.missing or found.misplaced):
                answer["repaired"] = True
                break
            await self._repaired(found)
            await self._committer.sync()
            found = await self._found()
        return answer

    async def _found(self) -> quotareport.Found:
        await self._settled()
        return await trio.to_thread.run_sync(self._found_now)

    def _found_now(self) -> quotareport.Found:
        with self._fs.store.read() as snapshot:
            return quotareport.check(snapshot)

    async def _repaired(self, found: quotareport.Found) -> None:
        """Correct the sums by what they lack, which holds whatever requests have changed since."""
        quotas = self._fs.quotas
        for number, (size, inodes) in found.missing.items():
            log.warning("quota %d is corrected by %d inodes, %d B", number, inodes, size)
            quotas.add(number, size, inodes)
        for ino, directory in found.misplaced.items():
            await self._replaced(ino, directory)
        self._note()

    async def _replaced(self, ino: int, directory: int) -> None:
        try:
            inode, parent = self._fs.inode(ino), self._fs.inode(directory)
        except FsError:
            return  # removed since
        if inode.is_directory and inode.aux != directory:
            return  # moved since
        within = self._fs.quotas.at(ino)
        if within is not None:
            self._fs.quotas.change(within, above=parent.quota)
            return
        self._fs.quotas.move(inode, parent.quota)
        self._fs.touch(inode)
        if inode.is_directory:
            number = parent.quota
            await self._walker.below(ino, number, lambda: True)
