"""The outlook of the cold codecs, from the totals of a store and from samples."""

from __future__ import annotations

from typing import Any

from nnfs.background.outlook import outlook
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, RUNGS


def line(codec: str, plain: int, stored: int) -> dict[str, Any]:
    return {"codec": codec, "plain_bytes": plain, "stored_bytes": stored}


TOTALS = [line("raw", 999, 999), line("zstd", 1000, 500), line("ppm", 4000, 1000), line("cm", 100, 20)]
SPEEDS = {PPM: 0.5, CM_LIGHT: 1.0, CM: 2.0, NEURAL: 10.0}


def test_content_of_quicker_codecs_is_ahead_of_a_codec() -> None:
    found = outlook(TOTALS, RUNGS, {}, SPEEDS.__getitem__)
    by_codec = {row["codec"]: row for row in found}
    assert by_codec["ppm"] == {"codec": "ppm", "plain_bytes": 1000, "saves_bytes": 250, "seconds": 500.0}
    assert by_codec["cm"] == {"codec": "cm", "plain_bytes": 5000, "saves_bytes": 500, "seconds": 10_000.0}
    assert by_codec["neural"] == {"codec": "neural", "plain_bytes": 5100, "saves_bytes": None, "seconds": 51_000.0}


def test_a_sample_tells_more_than_the_totals() -> None:
    found = outlook(TOTALS, RUNGS, {CM: (5, 3)}, SPEEDS.__getitem__)
    assert next(row for row in found if row["codec"] == "cm")["saves_bytes"] == 3


def test_codecs_that_may_not_be_used_or_have_nothing_to_do_are_left_out() -> None:
    assert [row["codec"] for row in outlook(TOTALS, [PPM], {}, SPEEDS.__getitem__)] == ["ppm"]
    assert outlook([line("raw", 10, 10)], RUNGS, {}, SPEEDS.__getitem__) == []
    unknown = line("codec 99", 1000, 10)
    assert outlook([unknown], RUNGS, {}, SPEEDS.__getitem__) == []


def test_a_codec_that_would_make_content_larger_saves_nothing() -> None:
    totals = [line("zstd", 1000, 100), line("ppm", 1000, 900)]
    assert outlook(totals, [PPM], {}, SPEEDS.__getitem__)[0]["saves_bytes"] == 0
