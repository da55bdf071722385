"""Changing the models of a store: adding, retiring, dropping and repairing them, through commits."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from functools import partial
from pathlib import Path

import trio

from nnfs.background.interfaces import Commits
from nnfs.background.modelreader import ModelReader, shipped, shipped_files
from nnfs.blockio.cold import READ, URGENT, Cold
from nnfs.errors import CodecError, ModelMissing, NnfsError, OutOfSpace, RecordDamaged, UsageError, WorkerError
from nnfs.fs import swapping
from nnfs.proof import has_content, wrong_payload
from nnfs.store import modelfiles
from nnfs.store.env import Store
from nnfs.store.schema import Block
from nnfs.workers.catalogue import CANNOT_LOOK, stated_fingerprint
from nnfs.workers.pool import WorkItem
from nnfs.workers.wire import Op

log = logging.getLogger(__name__)

CHECK_S = 120.0  # seconds for a model's file to be looked at
ROOM = 20 << 20  # bytes that a model's file may have; the one that is shipped has 14 MB


class ModelChanges:
    """Puts models into the store and takes them out. `cold` decodes a block with a model that may be a lost one."""

    def __init__(self, store: Store, known: ModelReader, commits: Commits, cold: Cold | None) -> None:
        self._store, self.known, self._commits, self._cold = store, known, commits, cold
        self._numbers: dict[bytes, int] = {}  # of those known to be in the store and sound
        self._keeping = trio.Lock()

    async def keep(self, fingerprint: bytes) -> int:
        """Return the number of a model, after putting it into the store if it is not there.

        Raises `ModelMissing`, `OutOfSpace`.
        """
        async with self._keeping:
            if fingerprint not in self._numbers:
                self._numbers[fingerprint] = await self._kept(fingerprint)
        return self._numbers[fingerprint]

    async def _kept(self, fingerprint: bytes) -> int:
        path = shipped(fingerprint)
        with self._store.read() as snapshot:
            number = modelfiles.by_fingerprint(snapshot, fingerprint)
            sound = number is not None and any(modelfiles.copies(snapshot, modelfiles.load_model(snapshot, number)))
            if number is not None and (sound or path is None):
                return number
        if path is None:
            raise ModelMissing(f"model {fingerprint.hex()[:16]} is neither in the store nor shipped")
        return await self._store_model(fingerprint, await self._sound(path, fingerprint), None)

    async def _sound(self, path: Path, fingerprint: bytes) -> bytes:
        """Return the file of a model that is shipped. Raises `ModelMissing` when its content is not that model."""
        data = await trio.to_thread.run_sync(path.read_bytes)
        if await self._examine(path, data, None) != fingerprint:
            raise ModelMissing(f"{path}: not the model that it says it is")
        return data

    async def _store_model(
        self, fingerprint: bytes, data: bytes, base: bytes | None, *, wanted: bool = False, number: int | None = None
    ) -> int:
        change = partial(
            swapping.keep_model, fingerprint=fingerprint, data=data, base=base, now=int(time.time()), wanted=wanted,
            number=number,
        )  # fmt: skip
        try:
            kept: int = await self._commits.amend(change, 2 * len(data))
        except OutOfSpace as error:
            room = f"two copies of the model take {2 * len(data) >> 20} MiB"
            raise OutOfSpace(f"{error}: {room}; free as much, or mount with -o neural=off to do without") from error
        self.known.note(kept, fingerprint)
        log.info("model %s is in the store, as number %d", fingerprint.hex()[:16], kept)
        return kept

    async def add(self, file: Path) -> tuple[int, bytes]:
        """Put a model's file, or a delta over a model, into the store. Return (number, fingerprint).

        A model that blocks need, and whose record is lost, comes back under its old number. Raises `ModelMissing` for a
        file that is no model, `UsageError` for one that cannot be one and for a delta over a model that the store
        lacks, `OutOfSpace`, and `WorkerError` when no worker can tell whether it is a lost one.
        """
        from nnfs.model import delta

        data = await trio.to_thread.run_sync(_read, file)
        base = None
        if delta.is_delta(data):
            base = delta.base_of(data)
            await self.keep(base)
        fingerprint = await self._examine(file, data, base)
        number = None
        for lost in await trio.to_thread.run_sync(self.known.lost):
            if await self._is_lost(lost, fingerprint, data, base):
                number = lost.number
        return await self._store_model(fingerprint, data, base, wanted=True, number=number), fingerprint

    async def _examine(self, file: Path, data: bytes, base: bytes | None) -> bytes:
        """Have a child process load a model: no broken one may enter the store, and the daemon does without numpy."""
        command = [sys.executable, "-P", "-m", "nnfs.workers.catalogue", str(len(data))]
        whole = None
        if base is not None:
            whole = await trio.to_thread.run_sync(self.known.find, base)
        with trio.move_on_after(CHECK_S):
            done = await trio.run_process(
                command, stdin=data + (whole or b""), capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode:
                why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise (WorkerError if done.returncode == CANNOT_LOOK else ModelMissing)(f"{file}: {why}")
            return bytes.fromhex(done.stdout.decode().strip())
        raise ModelMissing(f"{file}: could not be looked at within {CHECK_S:.0f} s")

    async def verify(self) -> None:
        """Look at both copies of every model, and repair a damaged one from the other: at a mount's start."""
        for number in await trio.to_thread.run_sync(self.known.damaged):
            try:
                await self._commits.amend(partial(swapping.repair_model, number=number), ROOM)
                log.warning("a copy of model %d was damaged: it was repaired from the other one", number)
            except NnfsError as error:
                log.error("%s", error)

    async def bring_back(self, *, read_only: bool = False) -> None:
        """Put back what is lost and shipped, and tell what else is lost: at a mount's start."""
        for lost in await trio.to_thread.run_sync(self.known.lost):
            try:
                if not await self._bring_back(lost, read_only=read_only):
                    log.error("%s", lost.why)
            except NnfsError as error:
                log.error("%s; it was not put back: %s", lost.why, error)

    async def _bring_back(self, lost: modelfiles.Wanting, *, read_only: bool) -> bool:
        for path in shipped_files():
            fingerprint = stated_fingerprint(os.fspath(path))
            if lost.fingerprint not in (b"", fingerprint):
                continue
            data = await self._sound(path, fingerprint)
            if await self._is_lost(lost, fingerprint, data, None):
                if read_only:
                    self.known.note(lost.number, fingerprint)
                else:
                    await self._store_model(fingerprint, data, None, number=lost.number)
                log.warning("model %d was lost: the one that is shipped takes its place", lost.number)
                return True
        return False

    async def _is_lost(self, lost: modelfiles.Wanting, fingerprint: bytes, data: bytes, base: bytes | None) -> bool:
        """Return whether a model is the lost one. If its record is lost, one of its blocks is decoded to find out.

        Raises `WorkerError` when that cannot be found out.
        """
        if lost.fingerprint:
            return lost.fingerprint == fingerprint
        found = await trio.to_thread.run_sync(_block_of, self._store, lost.number)
        if found is None or self._cold is None:
            return False
        block, payload = found
        if base is not None:
            data = await trio.to_thread.run_sync(self._composed, base, data)
        item = WorkItem(Op.DECODE, block.codec, payload, block.plain, fingerprint, URGENT, READ)
        try:
            with self.known.trying(fingerprint, data):
                plain = await self._cold.run(item)
        except CodecError:
            return False
        return has_content(plain, block.hash)

    def _composed(self, base: bytes, data: bytes) -> bytes:
        from nnfs.model.delta import compose

        return compose(self.known.find(base) or b"", data)

    async def retire(self, fingerprint: bytes) -> None:
        """Retire a model: nothing more is encoded with it. Raises `ModelMissing`."""
        with self._store.read() as snapshot:
            number = modelfiles.by_fingerprint(snapshot, fingerprint)
        if number is None:
            raise ModelMissing(f"model {fingerprint.hex()[:16]} is not in the store")
        await self._commits.amend(partial(swapping.retire_model, number=number))
        await self.collect()

    async def collect(self) -> None:
        """Drop the retired models that nothing needs any more."""
        idle = await trio.to_thread.run_sync(self.known.idle)
        if not idle:
            return
        for number in await self._commits.amend(partial(swapping.drop_models, idle=idle)):
            self._numbers = {f: n for f, n in self._numbers.items() if n != number}
            log.info("model %d is gone: no block needed it", number)


def _block_of(store: Store, model: int) -> tuple[Block, bytes] | None:
    """Return a block that needs a model, and its stored bytes; None when there is no sound one."""
    with store.read() as snapshot:
        for key, record in snapshot.range("block", b""):
            try:
                block = Block.unpack(key, record)
            except RecordDamaged:
                continue
            if block.model == model:
                payload = snapshot.payload(block.payload, block.stored)
                if not wrong_payload(payload, block.stored, block.xxh3):
                    return block, payload
    return None


def _read(file: Path) -> bytes:
    """Return a file that may be a model's. Raises `UsageError`."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{file}: not a regular file: name a model's file")
        if status.st_size > ROOM:
            raise UsageError(f"{file}: too large for a model, which has at most {ROOM >> 20} MiB")
        with file.open("rb") as stream:
            return stream.read(ROOM)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
