"""The models of a mount: those in its store, and the one that is shipped, which is put there when it is first used."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from nnfs.blockio.commit import Committer
from nnfs.codec.catalogue import PRESETS, SUFFIX, presets, stated_fingerprint
from nnfs.errors import ModelMissing, NnfsError, UsageError
from nnfs.fs import recode
from nnfs.store import models
from nnfs.store.env import Store
from nnfs.store.schema import Model, Total

log = logging.getLogger(__name__)

CHECK_S = 120.0  # seconds for a model's file to be looked at
ROOM = 20 << 20  # bytes that a model's file may have; the one that is shipped has 14 MB


class Models:
    """Numbers, fingerprints and files of models. Numbers are the store's."""

    def __init__(self, store: Store, committer: Committer) -> None:
        self._store, self._committer = store, committer
        self._numbers: dict[bytes, int] = {}  # of those known to be in the store and sound
        self._fingerprints: dict[int, bytes] = {}
        self._keeping = trio.Lock()

    # -- for supervisors' threads

    def find(self, fingerprint: bytes) -> bytes | None:
        """Return a whole model's file, from the store or as it is shipped; None when there is none."""
        with self._store.read() as snapshot:
            number = models.by_fingerprint(snapshot, fingerprint)
            if number is not None:
                try:
                    return models.whole_model(snapshot, number)
                except NnfsError as error:
                    log.error("%s", error)
        path = shipped(fingerprint)
        return None if path is None else path.read_bytes()

    # -- for the loop

    def fingerprint(self, number: int) -> bytes:
        """Return the fingerprint that a block header's model number stands for. Raises `ModelMissing`."""
        if number not in self._fingerprints:
            with self._store.read() as snapshot:
                self._fingerprints[number] = models.load_model(snapshot, number).fingerprint
        return self._fingerprints[number]

    def default(self) -> bytes:
        """Return the fingerprint of the model that is shipped. Raises `ModelMissing`."""
        names = presets()
        if not names:
            raise ModelMissing("no model is shipped with this nnfs")
        return stated_fingerprint(os.path.join(PRESETS, names[0] + SUFFIX))

    def wanted(self, fingerprint: bytes) -> bytes:
        """Return the model to encode with where the rules name `fingerprint`: the default, unless the store has it.

        Empty when there is none: none is shipped, or the one that is has been retired and some block needs it still.
        """
        with self._store.read() as snapshot:
            known = {model.fingerprint: model.retired for model in models.models(snapshot).values()}
        if fingerprint in known and not known[fingerprint]:
            return fingerprint
        try:
            default = self.default()
        except ModelMissing:
            return b""
        return b"" if known.get(default) else default

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
            number = models.by_fingerprint(snapshot, fingerprint)
            sound = number is not None and any(models.copies(snapshot, models.load_model(snapshot, number)))
            if number is not None and (sound or path is None):
                return number
        if path is None:
            raise ModelMissing(f"model {fingerprint.hex()[:16]} is neither in the store nor shipped")
        return await self._store_model(fingerprint, await trio.to_thread.run_sync(path.read_bytes), None)

    async def _store_model(
        self, fingerprint: bytes, data: bytes, base: bytes | None, *, unsettles: bool = False
    ) -> int:
        change = partial(
            recode.keep_model, fingerprint=fingerprint, data=data, base=base, now=int(time.time()), unsettles=unsettles
        )
        number: int = await self._committer.amend(change, 2 * len(data))
        log.info("model %s is in the store, as number %d", fingerprint.hex()[:16], number)
        return number

    async def add(self, file: Path) -> tuple[int, bytes]:
        """Put a model's file, or a delta over one, into the store: (number, fingerprint).

        Raises `ModelMissing` for what is no model, `UsageError` for what can be none and for a delta over something
        else, `OutOfSpace`.
        """
        from nnfs.model import delta

        data = await trio.to_thread.run_sync(_read, file)
        base = None
        if delta.is_delta(data):
            base = delta.base_of(data)
            await self.keep(base)
        fingerprint = await self._examine(file, data, base)
        return await self._store_model(fingerprint, data, base, unsettles=True), fingerprint

    async def _examine(self, file: Path, data: bytes, base: bytes | None) -> bytes:
        """Have a child process load a model: what is broken must not come into the store, nor numpy into the daemon."""
        command = [sys.executable, "-P", "-m", "nnfs.codec.catalogue", str(len(data))]
        whole = None
        if base is not None:
            whole = await trio.to_thread.run_sync(self.find, base)
        with trio.move_on_after(CHECK_S):
            done = await trio.run_process(
                command, stdin=data + (whole or b""), capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode:
                why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise ModelMissing(f"{file}: {why}")
            return bytes.fromhex(done.stdout.decode().strip())
        raise ModelMissing(f"{file}: could not be looked at within {CHECK_S:.0f} s")

    async def verify(self) -> None:
        """Look at both copies of every model, and mend a damaged one from the other: at a mount's start."""
        for number in await trio.to_thread.run_sync(self._damaged):
            try:
                await self._committer.amend(partial(recode.mend_model, number=number), ROOM)
                log.warning("a copy of model %d was damaged: it is mended from the other one", number)
            except NnfsError as error:
                log.error("%s", error)

    def _damaged(self) -> list[int]:
        found = []
        with self._store.read() as snapshot:
            for number in models.numbers(snapshot):
                try:
                    if models.damaged_copies(snapshot, number):
                        found.append(number)
                except NnfsError as error:
                    log.error("%s", error)
        return found

    async def retire(self, fingerprint: bytes) -> None:
        """Encode nothing with a model any more. Raises `ModelMissing`."""
        with self._store.read() as snapshot:
            number = models.by_fingerprint(snapshot, fingerprint)
        if number is None:
            raise ModelMissing(f"model {fingerprint.hex()[:16]} is not in the store")
        await self._committer.amend(partial(recode.retire_model, number=number))
        await self.collect()

    async def collect(self) -> None:
        """Drop the retired models that nothing needs any more."""
        for number in await self._committer.amend(recode.drop_models):
            self._fingerprints.pop(number, None)
            self._numbers = {f: n for f, n in self._numbers.items() if n != number}
            log.info("model %d is gone: no block needed it", number)

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
            for number in sorted({*models.numbers(snapshot), *totals} - {0}):
                total = totals.get(number, Total())
                try:
                    model = models.load_model(snapshot, number)
                    damaged = sum(copy is None for copy in models.copies(snapshot, model))
                    lines.append(_line(number, model, total, f"{damaged} damaged" if damaged else "ok"))
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
        if stated_fingerprint(os.fspath(path)) == fingerprint:
            return path
    return None
