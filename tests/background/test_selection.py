"""The chunks that a task takes up, by the rung it is for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nnfs.background.flight import Aim
from nnfs.background.selection import Selection
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, rung
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.fs.candidates import Look
from nnfs.fs.policy import Rules
from nnfs.fs.swapping import ALL_RUNGS
from nnfs.store import schema
from nnfs.store.schema import Block, Inode
from tests.fs.swapkit import A, keep, retire
from tests.fs.test_apply import Files, files

__all__ = ["files"]  # a fixture

AUTO, FITTED = Rules(Policy.AUTO), Rules(Policy.AUTO, b"f" * 64)
ZSTD = 1
QUICK, LIGHT, MIDDLE, LAST = (rung(codec) for codec in (PPM, CM_LIGHT, CM, NEURAL))


def selection(files: Files, top: int) -> Selection:
    encoder: Any = SimpleNamespace(top=lambda rules, *, everything: top, may_gain=lambda block: True)
    known: Any = SimpleNamespace(wanted=lambda fingerprint: fingerprint or b"d" * 64)
    return Selection(files.store, known, encoder, Options(write_age=0, read_age=0), lambda _: 0)


def block(codec: int, model: int = 0) -> Block:
    return Block(codec, model, 8000, 4000, 0, 0, 1, 1, bytes(64))


@pytest.mark.parametrize(
    ("aim", "top", "takes"),
    [
        (QUICK, LAST, {ZSTD}),
        (LIGHT, LAST, {ZSTD, PPM}),
        (MIDDLE, LAST, {ZSTD, PPM, CM_LIGHT}),
        (LAST, LAST, {ZSTD, PPM, CM_LIGHT, CM}),
        (LAST, MIDDLE, {ZSTD, PPM, CM_LIGHT}),
        (MIDDLE, QUICK, {ZSTD}),
        (0, LAST, {ZSTD, PPM, CM_LIGHT, CM}),
        (0, MIDDLE, {ZSTD, PPM, CM_LIGHT}),
    ],
)
def test_a_rung_takes_what_quicker_codecs_have(files: Files, aim: int, top: int, takes: set[int]) -> None:
    fits = selection(files, top).walk(schema.ROOT_INO, Aim(rung=aim))._fits
    assert {codec for codec in (ZSTD, PPM, CM_LIGHT, CM, NEURAL) if fits(block(codec), AUTO)} == takes


@pytest.mark.parametrize(("aim", "takes"), [(QUICK, False), (MIDDLE, False), (LAST, True), (0, True)])
def test_other_models_are_for_the_last_rung(files: Files, aim: int, takes: bool) -> None:
    """A quick pass has nothing better than the network's payload, and would decode it in vain."""
    number = keep(files, A)
    under_test = selection(files, LAST)
    assert under_test.walk(schema.ROOT_INO, Aim(rung=aim))._fits(block(NEURAL, number), FITTED) is takes
    retire(files, number)
    assert under_test.walk(schema.ROOT_INO, Aim(rung=aim))._fits(block(NEURAL, number), AUTO) is takes


@pytest.mark.parametrize(
    ("marked", "aim", "top", "look"),
    [
        (0, QUICK, LAST, Look(now=True, rung=QUICK)),
        (QUICK, QUICK, LAST, None),
        (QUICK, LIGHT, LAST, Look(now=True, rung=LIGHT)),
        (LIGHT, MIDDLE, LAST, Look(now=True, rung=MIDDLE)),
        (MIDDLE, LAST, LAST, Look(now=True, rung=ALL_RUNGS)),
        (QUICK, MIDDLE, QUICK, Look(now=True, rung=ALL_RUNGS)),  # cm turned out to be too slow: that was all
        (0, QUICK, QUICK, Look(now=True, rung=ALL_RUNGS)),
        (ALL_RUNGS, LAST, LAST, None),
        (QUICK, 0, LAST, Look(now=True, rung=ALL_RUNGS)),
    ],
)
def test_how_a_file_is_looked_at(files: Files, marked: int, aim: int, top: int, look: Look | None) -> None:
    inode = Inode(7, 0o100644, 0, 0, 10**9)
    inode.flags = Inode.FLAG_SETTLED if marked == ALL_RUNGS else marked << 2
    wanted = selection(files, top).walk(schema.ROOT_INO, Aim(rung=aim))._wanted
    assert wanted(inode, AUTO, 10**10) == look
