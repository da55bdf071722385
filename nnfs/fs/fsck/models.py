"""Checks of the models: both copies of each record and file, and the blocks that need a lost model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from nnfs.errors import NnfsError, RecordDamaged, StoreDamaged
from nnfs.fs.fsck.context import Context, Problem
from nnfs.fs.fsck.fixer import Fixer
from nnfs.store import schema
from nnfs.store.modelfiles import ADD, COPY, copies, key_of, numbers, places, whole_model
from nnfs.store.schema import Model, Total


class Models:
    """Checks all models of the store. Those in `sound` can be used, those in `lost` cannot."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.sound: dict[int, Model] = {}
        self.lost: dict[int, Problem] = {}
        self.payloads: list[int] = []  # that belong to models
        self.fragments = 0  # of these payloads

    def run(self) -> None:
        self._check_keys()
        found: dict[int, Model] = {}
        for number in numbers(self.c.snapshot):
            model = self._record(number)
            if model is not None:
                found[number] = model
        fingerprints: set[bytes] = set()
        for number, model in found.items():
            if model.fingerprint in fingerprints:
                self.c.problem("model", f"model {number}: another one has its fingerprint")
            fingerprints.add(model.fingerprint)
            if model.flags & ~(Model.FLAG_RETIRED | Model.FLAG_GONE):
                self.c.problem("model", f"model {number}: unknown flags {model.flags:#x}")
            self.c.check_commit(f"model {number}", model.commit)
            self._files(number, model)
        for number, model in found.items():
            self._base(number, model, found)
            if number not in self.lost and not model.gone:
                self.sound[number] = model
        if self.c.data:
            for number, model in list(self.sound.items()):
                self._content(number, model)

    def need(self, number: int) -> Problem | None:
        """Return the problem of a model that a block needs and that is lost, None when the model is there."""
        if number in self.sound:
            return None
        return self.lost.get(number) or self._lose(number, f"model {number} is not in the store {ADD}")

    def tell_needs(self, totals: Mapping[bytes, Total]) -> None:
        """Add to the problem of each lost model how many blocks need it."""
        for number, problem in self.lost.items():
            blocks = sum(total.blocks for key, total in totals.items() if schema.TOTAL_KEY.unpack(key)[1] == number)
            problem.message += f"; {blocks} blocks need it"

    def _lose(self, number: int, why: str) -> Problem:
        self.sound.pop(number, None)
        problem = self.lost[number] = self.c.problem("model", why)
        return problem

    def _check_keys(self) -> None:
        for key, _ in self.c.scan("model"):
            if len(key) != 2 or not any(key):
                drop = partial(Fixer.delete, table="model", key=key)
                self.c.problem("key", f"model table has a key {key.hex()}", fix=drop)
        try:
            for key, _ in self.c.snapshot.prefix("main", COPY):
                if len(key) != len(COPY) + 2 or not any(key[len(COPY) :]):
                    drop = partial(Fixer.delete, table="main", key=key)
                    self.c.problem("key", f"main table has a key {key.hex()}", fix=drop)
        except StoreDamaged as error:
            self.c.problem("page", f"the main table cannot be read: {error}")
            self.c.unreadable = True

    def _record(self, number: int) -> Model | None:
        """Return the record of a model, from its first sound copy."""
        if not number:
            return None
        good: list[bytes] = []
        for table, key in places(number):
            try:
                record = self.c.snapshot.get(table, key)
                if record is not None:
                    Model.unpack(key_of(number), record)
                    good.append(record)
            except StoreDamaged:
                continue
        if not good:
            self._lose(number, f"model {number}: both copies of its record are damaged")
            return None
        if len(good) == 1 or good[0] != good[1]:
            wrong = "one copy of its record is damaged" if len(good) == 1 else "the copies of its record differ"
            self.c.problem("model", f"model {number}: {wrong}", fix=partial(Fixer.repair_model, number=number))
        return Model.unpack(key_of(number), good[0])

    def _files(self, number: int, model: Model) -> None:
        """Check both copies of a model's file."""
        if model.gone:
            return
        name, sound = model.fingerprint.hex()[:16], [copy is not None for copy in copies(self.c.snapshot, model)]
        if not any(sound):
            self._lose(number, f"model {name}: both copies of its file are damaged {ADD}")
        elif not all(sound):
            fix = partial(Fixer.repair_model, number=number)
            self.c.problem("model", f"model {name}: one copy of its file is damaged", fix=fix)
        for payload in model.payloads:
            self.payloads.append(payload)
            self.fragments += sum(1 for _ in self.c.snapshot.prefix("payload", schema.KEY.pack(payload)))

    def _base(self, number: int, model: Model, found: Mapping[int, Model]) -> None:
        """Check that a delta has its base: a whole model of the store."""
        if not model.base or number in self.lost:
            return
        name, base = model.fingerprint.hex()[:16], found.get(model.base)
        if base is None or base.gone or model.base in self.lost:
            self._lose(number, f"model {name} is a delta over model {model.base}, which is lost")
        elif base.base:
            self._lose(number, f"model {name} is a delta over model {model.base}, itself a delta")

    def _content(self, number: int, model: Model) -> None:
        """Check that the file is the model that the fingerprint names."""
        from nnfs.workers.catalogue import fingerprint

        name = model.fingerprint.hex()[:16]
        try:
            if fingerprint(whole_model(self.c.snapshot, number)) != model.fingerprint:
                self._lose(number, f"model {name}: its file has another fingerprint")
        except NnfsError as error:
            self._lose(number, f"model {name}: {error}")
        except ImportError as error:
            self.c.unchecked(f"model {name}: its fingerprint was not checked, which needs {error.name}")


def check_scrub(c: Context) -> None:
    """Check the record of a scrub's progress, if there is one."""
    try:
        record = c.snapshot.get("meta", schema.SCRUB_KEY)
        if record is not None:
            schema.Scrub.unpack(record)
    except RecordDamaged as error:
        drop = partial(Fixer.delete, table="meta", key=schema.SCRUB_KEY)
        c.problem("scrub", f"{error}: the next scrub begins anew", fix=drop)
