"""The layout of a chunk of records of numbers. The encoder estimates it, and stores its choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

WIDTHS = (1, 2, 3, 4, 8)  # bytes of a field
WINDOW = 4096  # bytes, at four places, in which records are looked for
LONGEST = 64  # bytes of a record that is found here
LEAST = 512  # bytes of a chunk that are looked at
CONTROLS = 32  # text has fewer control bytes than one in so many
TELLING = 0.1, 1.5  # so much more often, and so many times as often, as at the usual distance, bytes repeat in records
IN_CODE = 0.3  # of the bytes repeat in records beside x86 code
SECOND = 1.1  # times the least estimate is still worth trying
ODD = 1.02  # times as good must fields be that do not begin at a multiple of their width
EXAMINED = 4096  # bytes in which layouts are compared

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint64]
_IS_CONTROL = np.array([b < 32 and b not in (9, 10, 12, 13) for b in range(256)])


@dataclass(frozen=True)
class Fields:
    """Records of `stride` bytes, whose fields have `width` bytes and begin at byte `skip`.

    `turned`: the bytes of each field are coded in the other order, the highest first.
    """

    stride: int
    width: int = 1
    skip: int = 0
    big: bool = False
    turned: bool = False


def turned(plain: bytes, layout: Fields) -> bytes:
    """Return the chunk with the bytes of each whole field in the other order, or undo that."""
    a = np.frombuffer(plain, np.uint8).copy()
    end = layout.skip + max(a.size - layout.skip, 0) // layout.width * layout.width
    a[layout.skip : end] = a[layout.skip : end].reshape(-1, layout.width)[:, ::-1].reshape(-1)
    return a.tobytes()


def _stride_of(window: Bytes, least: float) -> int:
    """Return the record length that a window seems to have, 0 for none."""
    if window.size < LEAST or np.count_nonzero(_IS_CONTROL[window]) * CONTROLS < window.size:
        return 0
    here, count = window[LONGEST:], window.size - LONGEST
    equal = [np.count_nonzero(here == window[LONGEST - d : window.size - d]) / count for d in range(1, LONGEST + 1)]
    share = np.array(equal[1:])
    typical, peak = float(np.median(share)), float(share.max())
    if peak < max(typical + TELLING[0], typical * TELLING[1], least) or peak > 0.95:
        return 0
    return int(np.flatnonzero(share >= typical + 0.85 * (peak - typical))[0]) + 2


def strides(plain: Bytes, is_code: bool) -> list[tuple[int, int]]:
    """Return the record length that seems to hold around some places of a chunk, and where each of them begins."""
    found = []
    for quarter in range(4):
        begin = max(0, min(plain.size * quarter // 4, plain.size - WINDOW))
        stride = _stride_of(plain[begin : begin + WINDOW], IN_CODE if is_code else 0.0)
        found.append((stride, begin))
    return found


def _numbers(plain: Bytes, layout: Fields) -> Numbers:
    """Return the fields of some bytes."""
    count = (plain.size - layout.skip) // layout.width
    rows = plain[layout.skip : layout.skip + count * layout.width].reshape(count, layout.width).astype(np.uint64)
    places = np.arange(layout.width, dtype=np.uint64) * np.uint64(8)
    numbers: Numbers = (rows << (places[::-1] if layout.big else places)).sum(1, dtype=np.uint64)
    return numbers


def _bits(error: Numbers, width: int) -> npt.NDArray[np.float64]:
    """Return about how many bits each error takes."""
    signed = (error << np.uint64(64 - 8 * width)).astype(np.int64) >> np.int64(64 - 8 * width)
    bits: npt.NDArray[np.float64] = np.log2(np.abs(signed.astype(np.float64)) * 2 + 1)
    return bits


def cost(plain: Bytes, layout: Fields) -> float:
    """Return an estimate of the bits that a byte takes: as the ways of `nnfs.mixer.fields` foretell the fields."""
    v, k = _numbers(plain, layout), layout.stride // layout.width
    if v.size <= 8 * k:
        return np.inf
    first = 2 * k + 1
    here, above, above2 = v[first:], v[first - k : -k], v[first - 2 * k : -2 * k]
    left, left_above, left_above2 = v[first - 1 : -1], v[first - k - 1 : -k - 1], v[first - 2 * k - 1 : -2 * k - 1]
    ways = (
        above, 2 * above - above2, left + above - left_above, 2 * above + left_above - above2 - left_above2,
        2 * above + left - above2 - left_above, left, above2,
    )  # fmt: skip
    bits = np.stack([_bits(here - way, layout.width) for way in ways])
    before = bits[:, 2 * k : -k] + bits[:, k : -2 * k] + bits[:, : -3 * k]
    best = np.argmin(before, 0)
    chosen = np.take_along_axis(bits[:, 3 * k :], best[None], 0)
    return (float(chosen.mean()) + 1) / layout.width


def _layouts(stride: int) -> Iterator[Fields]:
    """Yield all layouts of records of a length."""
    for width in WIDTHS:
        if stride % width == 0:
            for skip in range(width):
                for big in (False, True)[:width]:
                    yield Fields(stride, width, skip, big)


def propose(plain: Bytes, stride: int) -> list[tuple[float, Fields]]:
    """Return the costs and layouts worth trying for records of a length, or of twice an odd one: two at most."""
    examined = plain[:EXAMINED]
    lengths = (stride, 2 * stride) if stride % 2 else (stride,)
    layouts = [one for length in lengths for one in _layouts(length)]
    ranked = sorted(
        ((cost(examined, one) * (ODD if one.skip else 1), one) for one in layouts), key=lambda each: each[0]
    )
    best: list[tuple[float, Fields]] = []
    for value, one in ranked:
        if value < SECOND * ranked[0][0] and all(
            (one.stride, one.width) != (other.stride, other.width) for _, other in best
        ):
            best.append((value, one))
    return best[:2]


def moved(layout: Fields, begin: int) -> Fields:
    """Return the layout of the whole chunk, given that of what begins at a byte of it."""
    return replace(layout, skip=(layout.skip + begin) % layout.width)
