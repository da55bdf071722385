"""The ladder by itself: which worker is asked next, and what comes of their answers."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from nnfs.errors import BlockDamaged, CodecError, CodecUnavailable, ModelMissing, NnfsError, WorkerError
from nnfs.store.schema import Block
from nnfs.workers.ladder import REFERENCE, Ladder

PLAIN = b"plain"
BLOCK = Block(17, 0, len(PLAIN), 9, 0, 0, 1, 1, blake2b(PLAIN).digest())
REFUSED, DEAD = CodecError("bad payload"), WorkerError("killed")


def climb(*answers: object, worker: str = "read") -> tuple[Ladder, list[str]]:
    """Give the answers in order; return the ladder and the workers that were asked."""
    ladder, asked = Ladder(7, BLOCK, worker), []
    for name, answer in zip(ladder, answers, strict=False):
        asked.append(name)
        ladder.judge(name, answer)
    return ladder, asked


def test_the_first_worker_is_enough() -> None:
    ladder, asked = climb(PLAIN, b"never asked")
    assert (ladder.result(), asked, ladder.failures, ladder.has_erred) == (PLAIN, ["read"], {}, False)


@pytest.mark.parametrize("first", [b"wrong", None, REFUSED, DEAD])
def test_the_reference_judges_the_first(first: object) -> None:
    ladder, asked = climb(first, PLAIN)
    assert (ladder.result(), asked) == (PLAIN, ["read", REFERENCE])
    assert ladder.has_erred == (first is not DEAD)


@pytest.mark.parametrize(
    ("first", "second", "expected", "why"),
    [
        (b"wrong", b"wrong", BlockDamaged, "damaged block 7: its content does not have the BLAKE2b-512"),
        (DEAD, b"wrong", BlockDamaged, "damaged block 7: its content does not have the BLAKE2b-512"),
        (REFUSED, REFUSED, BlockDamaged, "damaged block 7: it cannot be decoded: bad payload$"),
        (b"wrong", DEAD, WorkerError, "block 7 cannot be decoded: damaged block 7: .*; killed$"),
        (DEAD, CodecUnavailable("needs numba"), CodecUnavailable, "block 7 cannot be decoded: killed; needs numba$"),
    ],
)  # fmt: skip
def test_the_reference_has_the_last_word(first: object, second: object, expected: type[NnfsError], why: str) -> None:
    ladder, _ = climb(first, second)
    with pytest.raises(expected, match=why) as raised:
        ladder.result()
    assert type(raised.value) is expected
    assert not ladder.has_erred


def test_a_missing_model_is_missing_everywhere() -> None:
    ladder, asked = climb(ModelMissing("no model"), PLAIN)
    assert asked == ["read"]
    with pytest.raises(ModelMissing):
        ladder.result()


def test_the_reference_alone() -> None:
    ladder, asked = climb(b"wrong", PLAIN, worker=REFERENCE)
    assert asked == [REFERENCE]
    with pytest.raises(BlockDamaged):
        ladder.result()
