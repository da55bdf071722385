"""The outlook: what each cold codec has before it in a store, and how long that takes on this machine.

A sample tells it best (`survey`), but is taken only when a pass begins. Until then the totals by codec tell it: content
that has a quicker codec, and the ratio that the codec has reached in this store so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nnfs.codec import NAMES
from nnfs.codec.base import RUNGS, ZSTD, rung

Line = dict[str, Any]


def outlook(
    codecs: Sequence[Line],
    reachable: Collection[int],
    sampled: Mapping[int, tuple[int, int]],
    seconds_per_byte: Callable[[int], float],
) -> list[Line]:
    """Return a line for each reachable cold codec that has content before it, from quick to small.

    `codecs`: the store's totals by codec, as `nnfs df` has them. `sampled`: by codec, the plain bytes that it has
    before it and the bytes that it would save of them, where a sample has told. `seconds_per_byte`: to encode and to
    prove. A line has `plain_bytes`, `seconds`, and `saves_bytes`, which is None where nothing tells it.

    Blocks that the hot tier keeps raw are left out: nearly all of them are compressed already.
    """
    ids = {name: number for number, name in NAMES.items()}
    found = []
    for codec_id in RUNGS:
        if codec_id not in reachable:
            continue
        before = [line for line in codecs if _is_before(ids.get(line["codec"]), codec_id)]
        own = [line for line in codecs if ids.get(line["codec"]) == codec_id]
        plain, saves = sampled.get(codec_id) or (_sum(before, "plain_bytes"), _saves(before, own))
        if plain:
            seconds = round(plain * seconds_per_byte(codec_id), 3)
            found.append({"codec": NAMES[codec_id], "plain_bytes": plain, "saves_bytes": saves, "seconds": seconds})
    return found


def _is_before(number: int | None, codec_id: int) -> bool:
    return number is not None and (number == ZSTD or 0 < rung(number) < rung(codec_id))


def _saves(before: Sequence[Line], own: Sequence[Line]) -> int | None:
    """Return what the codec would save of `before` at the ratio that it has reached in its `own` blocks."""
    plain, stored = _sum(own, "plain_bytes"), _sum(own, "stored_bytes")
    if not plain:
        return None
    return max(0, _sum(before, "stored_bytes") - _sum(before, "plain_bytes") * stored // plain)


def _sum(lines: Sequence[Line], field: str) -> int:
    return sum(line[field] for line in lines)
