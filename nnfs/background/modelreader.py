"""Reading the models of a store: their numbers, fingerprints and files, and the model that is shipped."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnfs.errors import ModelMissing, NnfsError
from nnfs.fs import swapping
from nnfs.store import modelfiles
from nnfs.store.env import Store
from nnfs.store.schema import Model, Total
from nnfs.store.txn import Snapshot
from nnfs.workers.catalogue import PRESETS, SUFFIX, presets, stated_fingerprint

log = logging.getLogger(__name__)


class ModelReader:
    """The models that can be used, from the store or as shipped. `find` may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tried: dict[bytes, bytes] = {}  # whole files that may be those of lost records, by fingerprint
        self._fingerprints: dict[int, bytes] = {}  # by number

    def note(self, number: int, fingerprint: bytes) -> None:
        """Remember which model a number stands for."""
        self._fingerprints[number] = fingerprint

    @contextlib.contextmanager
    def trying(self, fingerprint: bytes, data: bytes) -> Iterator[None]:
        """Let `find` return a file that is not in the store, while it is tried on a block."""
        self._tried[fingerprint] = data
        try:
            yield
        finally:
            del self._tried[fingerprint]

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

    def fingerprint(self, number: int) -> bytes:
        """Return the fingerprint that a block header's model number stands for. Raises `ModelMissing`."""
        if number not in self._fingerprints:
            with self._store.read() as snapshot:
                self._fingerprints[number] = modelfiles.load_model(snapshot, number).fingerprint
        return self._fingerprints[number]

    def default(self) -> bytes:
        """Return the fingerprint of the model that is shipped. Raises `ModelMissing`."""
        files = shipped_files()
        if not files:
            raise ModelMissing("no model is shipped with this nnfs")
        try:
            status = files[0].stat()
        except OSError as error:
            raise ModelMissing(f"{files[0]}: {error}") from error
        return _stated(os.fspath(files[0]), status.st_mtime_ns, status.st_size, status.st_ino)

    def wanted(self, fingerprint: bytes) -> bytes:
        """Return the model to encode with where the rules name `fingerprint`: the default, unless the store has it.

        Returns b"" when there is none: none is shipped, or the shipped one is retired.
        """
        with self._store.read() as snapshot:
            known = {model.fingerprint: model.retired for model in modelfiles.records(snapshot).values()}
        if fingerprint in known and not known[fingerprint]:
            return fingerprint
        try:
            default = self.default()
        except ModelMissing:  # damaged, for instance: a whole model of the store will do
            return self._kept_whole()
        return b"" if known.get(default) else default

    def _kept_whole(self) -> bytes:
        """Return the fingerprint of the store's latest whole model that is in use, empty when there is none."""
        with self._store.read() as snapshot:
            records = modelfiles.records(snapshot)
        whole = [number for number, one in records.items() if not (one.base or one.retired or one.gone)]
        return records[max(whole)].fingerprint if whole else b""

    def lost(self) -> list[modelfiles.Wanting]:
        """Return the lost models that blocks need. Reads all files of models, so call it in a thread."""
        with self._store.read() as snapshot:
            return list({one.number: one for one in modelfiles.lost(snapshot).values()}.values())

    def damaged(self) -> list[int]:
        """Return the numbers of models with a damaged copy. Reads all files of models, so call it in a thread."""
        found = []
        with self._store.read() as snapshot:
            for number in modelfiles.numbers(snapshot):
                try:
                    if modelfiles.damaged_copies(snapshot, number):
                        found.append(number)
                except NnfsError as error:
                    log.error("%s", error)
        return found

    def idle(self) -> set[int]:
        """Return the retired models that no block and no model needs. Reads all headers, so call it in a thread."""
        with self._store.read() as snapshot:
            return swapping.idle_models(snapshot)

    def report(self) -> dict[str, Any]:
        """Return the rows of `nnfs model list`. Reads every copy, so call it in a thread."""
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


def shipped_files() -> list[Path]:
    """Return the files of the models that come with nnfs, the default one first."""
    return [Path(PRESETS, name + SUFFIX) for name in presets()]


@lru_cache(maxsize=4)
def _stated(path: str, *_status: int) -> bytes:
    """Return the fingerprint that a file states, read once as long as the file is the same: each chunk asks for it."""
    return stated_fingerprint(path)


def shipped(fingerprint: bytes) -> Path | None:
    """Return the file of a model that comes with nnfs."""
    for path in shipped_files():
        with contextlib.suppress(ModelMissing):  # this one is damaged, and another one may be meant
            if stated_fingerprint(os.fspath(path)) == fingerprint:
                return path
    return None
