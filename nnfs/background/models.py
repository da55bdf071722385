"""The models of a mount: those in its store, and the one that is shipped, which is put there when it is first used."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import time
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import trio
from xxhash import xxh3_64_intdigest

from nnfs.blockio.cold import READ, URGENT, Cold
from nnfs.blockio.commit import Committer
from nnfs.errors import CodecError, ModelMissing, NnfsError, OutOfSpace, RecordDamaged, UsageError, WorkerError
from nnfs.fs import swapping
from nnfs.store import modelfiles
from nnfs.store.env import Snapshot, Store
from nnfs.store.schema import Block, Model, Total
from nnfs.workers.catalogue import CANNOT_LOOK, PRESETS, SUFFIX, presets, stated_fingerprint
from nnfs.workers.pool import Job
from nnfs.workers.wire import Op

log = logging.getLogger(__name__)

CHECK_S = 120.0  # seconds for a model's file to be looked at
ROOM = 20 << 20  # bytes that a model's file may have; the one that is shipped has 14 MB


class Models:
    """Numbers, fingerprints and files of models. Numbers are the store's."""

    def __init__(self, store: Store, committer: Committer, cold: Cold | None = None) -> None:
        self._store, self._committer, self._cold = store, committer, cold
        self._tried: dict[bytes, bytes] = {}  # whole files that may be those of lost records, by fingerprint
        self._numbers: dict[bytes, int] = {}  # of those known to be in the store and sound
        self._fingerprints: dict[int, bytes] = {}
        self._keeping = trio.Lock()

    # -- for supervisors' threads

    def find(self, fingerprint: bytes) -> bytes | None:
        """Return a whole model's file, from the store or as it is shipped; None when there is none."""
        with self._store.read() as snapshot:
            number = modelfiles.by_fingerprint(snapshot, fingerprint)
            if number is not None:
                try:
                    return _whole(snapshot, number)
                except NnfsError as error:
                    log.error("%s", error)
        path = shipped(fingerprint)
        return self._tried.get(fingerprint) if path is None else path.read_bytes()

    # -- for the loop

    def fingerprint(self, number: int) -> bytes:
        """Return the fingerprint that a block header's model number stands for. Raises `ModelMissing`."""
        if number not in self._fingerprints:
            with self._store.read() as snapshot:
                self._fingerprints[number] = modelfiles.load_model(snapshot, number).fingerprint
        return self._fingerprints[number]

    def default(self) -> bytes:
        """Return the fingerprint of the model that is shipped. Raises `ModelMissing`."""
        names = presets()
        if not names:
            raise ModelMissing("no model is shipped with this nnfs")
        return stated_fingerprint(os.path.join(PRESETS, names[0] + SUFFIX))

    def wanted(self, fingerprint: bytes) -> bytes:
        """Return the model to encode with where the rules name `fingerprint`: the default, unless the store has it.

        Empty when there is none: none is shipped, or the one that is has been retired.
        """
        with self._store.read() as snapshot:
            known = {model.fingerprint: model.retired for model in modelfiles.records(snapshot).values()}
        if fingerprint in known and not known[fingerprint]:
            return fingerprint
        try:
            default = self.default()
        except ModelMissing:  # damaged, say: a whole one that the store has does as well
            return self._kept_whole()
        return b"" if known.get(default) else default

    def _kept_whole(self) -> bytes:
        """Return the latest whole model of the store that is in use; empty: there is none."""
        with self._store.read() as snapshot:
            records = modelfiles.records(snapshot)
        whole = [number for number, one in records.items() if not (one.base or one.retired or one.gone)]
        return records[max(whole)].fingerprint if whole else b""

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
            kept: int = await self._committer.amend(change, 2 * len(data))
        except OutOfSpace as error:
            room = f"two copies of the model take {2 * len(data) >> 20} MiB"
            raise OutOfSpace(f"{error}: {room}; free as much, or mount with -o neural=off to do without") from error
        self._fingerprints[kept] = fingerprint
        log.info("model %s is in the store, as number %d", fingerprint.hex()[:16], kept)
        return kept

    async def add(self, file: Path) -> tuple[int, bytes]:
        """Put a model's file, or a delta over one, into the store: (number, fingerprint).

        One that blocks need, and whose record is lost, comes back under its number.
        Raises `ModelMissing` for what is no model, `UsageError` for what can be none and for a delta over something
        else, `OutOfSpace`, and `WorkerError` when nobody can tell whether it is one that is lost.
        """
        from nnfs.model import delta

        data = await trio.to_thread.run_sync(_read, file)
        base = None
        if delta.is_delta(data):
            base = delta.base_of(data)
            await self.keep(base)
        fingerprint = await self._examine(file, data, base)
        number = None
        for lost in await trio.to_thread.run_sync(self.lost):
            if await self._is_lost(lost, fingerprint, data, base):
                number = lost.number
        return await self._store_model(fingerprint, data, base, wanted=True, number=number), fingerprint

    async def _examine(self, file: Path, data: bytes, base: bytes | None) -> bytes:
        """Have a child process load a model: what is broken must not come into the store, nor numpy into the daemon."""
        command = [sys.executable, "-P", "-m", "nnfs.workers.catalogue", str(len(data))]
        whole = None
        if base is not None:
            whole = await trio.to_thread.run_sync(self.find, base)
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
        """Look at both copies of every model, and mend a damaged one from the other: at a mount's start."""
        for number in await trio.to_thread.run_sync(self._damaged):
            try:
                await self._committer.amend(partial(swapping.mend_model, number=number), ROOM)
                log.warning("a copy of model %d was damaged: it is mended from the other one", number)
            except NnfsError as error:
                log.error("%s", error)

    def _damaged(self) -> list[int]:
        found = []
        with self._store.read() as snapshot:
            for number in modelfiles.numbers(snapshot):
                try:
                    if modelfiles.damaged_copies(snapshot, number):
                        found.append(number)
                except NnfsError as error:
                    log.error("%s", error)
        return found

    # -- what is lost

    def lost(self) -> list[modelfiles.Wanting]:
        """Return the models that are lost though blocks need them. Reads all their files: for a thread."""
        with self._store.read() as snapshot:
            return list({one.number: one for one in modelfiles.lost(snapshot).values()}.values())

    async def bring_back(self, *, read_only: bool = False) -> None:
        """Put back what is lost and shipped, and tell what else is lost: at a mount's start."""
        for lost in await trio.to_thread.run_sync(self.lost):
            try:
                if not await self._bring_back(lost, read_only=read_only):
                    log.error("%s", lost.why)
            except NnfsError as error:
                log.error("%s; it was not put back: %s", lost.why, error)

    async def _bring_back(self, lost: modelfiles.Wanting, *, read_only: bool) -> bool:
        for name in presets():
            path = Path(PRESETS, name + SUFFIX)
            fingerprint = stated_fingerprint(os.fspath(path))
            if lost.fingerprint not in (b"", fingerprint):
                continue
            data = await self._sound(path, fingerprint)
            if await self._is_lost(lost, fingerprint, data, None):
                if read_only:
                    self._fingerprints[lost.number] = fingerprint
                else:
                    await self._store_model(fingerprint, data, None, number=lost.number)
                log.warning("model %d was lost: the one that is shipped takes its place", lost.number)
                return True
        return False

    async def _is_lost(self, lost: modelfiles.Wanting, fingerprint: bytes, data: bytes, base: bytes | None) -> bool:
        """Whether a model is the one that is lost. Of a lost record only its blocks can tell: one is decoded.

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
        self._tried[fingerprint] = data
        try:
            job = Job(Op.DECODE, block.codec, payload, block.plain, fingerprint, URGENT, READ)
            plain = await self._cold.run(job)
        except CodecError:
            return False
        finally:
            del self._tried[fingerprint]
        return isinstance(plain, bytes) and blake2b(plain).digest() == block.hash

    def _composed(self, base: bytes, data: bytes) -> bytes:
        from nnfs.model.delta import compose

        return compose(self.find(base) or b"", data)

    async def retire(self, fingerprint: bytes) -> None:
        """Encode nothing with a model any more. Raises `ModelMissing`."""
        with self._store.read() as snapshot:
            number = modelfiles.by_fingerprint(snapshot, fingerprint)
        if number is None:
            raise ModelMissing(f"model {fingerprint.hex()[:16]} is not in the store")
        await self._committer.amend(partial(swapping.retire_model, number=number))
        await self.collect()

    async def collect(self) -> None:
        """Drop the retired models that nothing needs any more."""
        idle = await trio.to_thread.run_sync(self._idle)
        if not idle:
            return
        for number in await self._committer.amend(partial(swapping.drop_models, idle=idle)):
            self._numbers = {f: n for f, n in self._numbers.items() if n != number}
            log.info("model %d is gone: no block needed it", number)

    def _idle(self) -> set[int]:
        with self._store.read() as snapshot:
            return swapping.idle_models(snapshot)

    def report(self) -> dict[str, Any]:
        """Return what `nnfs model list` shows. Reads every copy: for a thread."""
        lines = []
        with self._store.read() as snapshot:
            totals: dict[int, Total] = {}
            for key, record in snapshot.range("total", b""):
                total = Total.unpack(key, record)
                mine = totals.setdefault(int.from_bytes(key[1:], "big"), Total())
                mine.blocks, mine.plain, mine.stored = (
                    mine.blocks + total.blocks, mine.plain + total.plain, mine.stored + total.stored,
                )  # fmt: skip
            for number in sorted({*modelfiles.numbers(snapshot), *totals} - {0}):
                total = totals.get(number, Total())
                try:
                    model = modelfiles.load_model(snapshot, number)
                    damaged = sum(copy is None for copy in modelfiles.copies(snapshot, model))
                    sound = "gone" if model.gone else "ok"
                    lines.append(_line(number, model, total, f"{damaged} damaged" if damaged else sound))
                except ModelMissing:
                    if total.blocks:
                        lines.append(_line(number, Model(b"", 0, 0, 0, 0, 0, 0, 0), total, "missing"))
        try:
            default = self.default().hex()
        except ModelMissing:
            default = ""
        return {"models": lines, "default": default}


def _line(number: int, model: Model, total: Total, copies: str) -> dict[str, Any]:
    return {
        "number": number, "fingerprint": model.fingerprint.hex(), "base": model.base, "bytes": model.size,
        "retired": model.retired, "added": model.added, "blocks": total.blocks, "plain_bytes": total.plain,
        "stored_bytes": total.stored, "copies": copies,
    }  # fmt: skip


def _whole(snapshot: Snapshot, number: int) -> bytes:
    """Return a model's file as workers take it. A base that is lost is replaced by the one that is shipped.

    Raises `ModelMissing`, `StoreDamaged`.
    """
    try:
        return modelfiles.whole_model(snapshot, number)
    except ModelMissing as error:
        from nnfs.model import delta

        data = modelfiles.read_model(snapshot, number)
        path = shipped(delta.base_of(data)) if delta.is_delta(data) else None
        if path is None:
            raise
        log.warning("%s; what is shipped takes its place", error)
        return delta.compose(path.read_bytes(), data)


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
                if len(payload) == block.stored and xxh3_64_intdigest(payload) == block.xxh3:
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


def shipped(fingerprint: bytes) -> Path | None:
    """Return the file of a model that comes with nnfs."""
    for name in presets():
        path = Path(PRESETS, name + SUFFIX)
        with contextlib.suppress(ModelMissing):  # this one is damaged, and another one may be meant
            if stated_fingerprint(os.fspath(path)) == fingerprint:
                return path
    return None
