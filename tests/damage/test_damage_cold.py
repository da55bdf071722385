"""Damage while everything turns cold and warm: right bytes or an error, and the damage does not spread."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.background.kit import RESTLESS, Chaos
from tests.damage.kit import Sample
from tests.damage.pages import Walk
from tests.damage.test_damage import flip_bit
from tests.damage.truth import Mounted, judge
from tests.harness import FULL

TABLES = ("inode", "map", "block", "payload")


@pytest.mark.parametrize("table", TABLES if FULL else ("block", "payload"))
def test_through_a_mount(folder: Path, sample: Sample, walk: Walk, table: str) -> None:
    spans = [s for s in walk.spans if s.what == "record" and s.end > s.start and s.table == table]
    rng = random.Random(table)
    content = bytearray(sample.content)
    for _ in range(10):
        flip_bit(rng, content, rng.choice(spans))
    store = folder / f"cold-{table}"
    store.mkdir()
    (store / "data.mdb").write_bytes(content)
    try:
        with Chaos(store, mode="all", options=RESTLESS, kill="100") as mount:
            mount.expect_log("(?i)damage|inode|block|missing|not everything")
            errors = []
            for _ in range(3 if FULL else 2):
                mount.deadline()
                mount.turn_round()
                verdict = judge(Mounted(mount.path), sample.truth)
                assert verdict.lies == []
                errors.append(verdict.errors)
                mount.remount()
            assert errors[-1] <= errors[0], "what was sound is damaged"
            assert mount.swaps > 100
    finally:
        shutil.rmtree(store)
