# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The layout of a chunk: records of one length, sound, pictures. The encoder estimates it, and stores its choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnfs.mixer.compiling import njit

LONGEST = 4096  # bytes of a record or a row of samples that is looked for
PROBES, PROBE = 128, 24  # places of a chunk, and bytes there, that may have come before
REPEATED = 16  # of so many places one is enough
CLEAR = 1.25  # times as many repeats as the typical distance has make a record length


@dataclass(frozen=True)
class Layout:
    """Samples of `size` bytes: `channels` interleaved, rows of `stride` samples (0: none), from byte `skip` on."""

    size: int = 1
    channels: int = 1
    stride: int = 0
    phase: int = 0
    signed: bool = False
    big: bool = False
    skip: int = 0


def values(plain: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[np.int32]:
    """Return the samples of a chunk."""
    if layout.size == 1:
        return (plain[layout.skip :].view(np.int8) if layout.signed else plain[layout.skip :]).astype(np.int32)
    whole = (plain.size - layout.skip) // 2 * 2
    kind = (">" if layout.big else "<") + ("i2" if layout.signed else "u2")
    return np.frombuffer(plain[layout.skip : layout.skip + whole].tobytes(), kind).astype(np.int32)


@njit(cache=True, nogil=True)
def _repeats(plain, longest):
    """Return, for each distance up to `longest`, how many bytes equal the one that far back.

    Only every fourth group of 8 bytes is looked at.
    """
    counts = np.zeros(longest + 1, np.int64)
    for d in range(1, longest + 1):
        n = 0
        for p in range(longest, plain.size - 8, 32):
            for i in range(8):
                n += plain[p + i] == plain[p + i - d]
        counts[d] = n
    return counts


def repeats(plain: bytes) -> bool:
    """Return whether a chunk has long stretches that came before: samples do not look for those."""
    found = 0
    for n in range(1, PROBES):
        at = len(plain) * n // PROBES
        probe = plain[at : at + PROBE]
        found += len(set(probe)) > PROBE // 4 and plain.find(probe, 0, at + PROBE - 1) >= 0
    return found * REPEATED >= PROBES


def record_length(plain: npt.NDArray[np.uint8]) -> int:
    """Return the length of the records that a chunk seems to consist of, or 0."""
    longest = min(2048, plain.size // 8)
    if longest < 16:
        return 0
    counts = _repeats(plain[: 1 << 16], longest).astype(float)
    counts[0] = 0
    typical = np.median(counts[2:])
    peak = counts[2:].max()
    if peak < CLEAR * typical + 16:
        return 0
    # Its multiples repeat as much: the shortest of the best
    return int(np.flatnonzero(counts[2:] >= typical + 0.85 * (peak - typical))[0]) + 2


def _cost(difference: npt.NDArray[np.float64]) -> float:
    """Return an estimate of the bits that each of such numbers takes."""
    return float(np.log2(np.abs(difference) * 2 + 1).mean() + 1.0)


def order0(plain: npt.NDArray[np.uint8]) -> float:
    """Return the bits per byte that an order-0 coder would take."""
    counts = np.bincount(plain, minlength=256)
    share = counts[counts > 0] / plain.size
    return float(-(share * np.log2(share)).sum())


def _row(v: npt.NDArray[np.float64], channels: int, limit: int) -> int:
    """Return the length of the rows of a picture in samples, 0 for none.

    The length is the distance, a multiple of the channels, with the smallest differences.
    """
    n = 1 << (v.size - 1).bit_length()
    d = v[channels:] - v[:-channels]
    spectrum = np.fft.rfft(np.clip(d, -64, 64), 2 * n)
    likeness = np.fft.irfft(spectrum * spectrum.conj())[: limit + 1]
    if likeness[0] <= 0:
        return 0
    likeness = likeness / likeness[0]
    candidates = np.arange(8 * channels, min(limit, v.size // 3))
    if not candidates.size:
        return 0
    best = int(candidates[np.argmax(likeness[candidates])])
    return best if likeness[best] > 0.08 else 0


def _phase(v: npt.NDArray[np.float64], channels: int) -> int:
    """Return the channel of the first sample: channels of one pixel move together, those of two pixels do not."""
    if channels < 3:
        return 0
    d = v[channels:] - v[:-channels]
    odd = np.abs(d[1:] - d[:-1])
    scores = [odd[(c - channels - 1) % channels :: channels].mean() for c in range(channels)]
    return (channels - int(np.argmax(scores))) % channels


def propose(plain: npt.NDArray[np.uint8]) -> list[Layout]:
    """Return the layouts of samples worth trying, the likeliest first."""
    if plain.size < 512:
        return []
    middle = plain[: 1 << 16]
    plain_cost = order0(middle)
    found: list[tuple[float, Layout]] = []
    for layout in [Layout(channels=c) for c in (1, 2, 3, 4)] + [
        Layout(2, c, signed=True, big=big, skip=skip) for c in (1, 2) for big in (False, True) for skip in (0, 1)
    ]:
        v = values(middle, layout).astype(np.float64)
        d = v[layout.channels :] - v[: -layout.channels]
        if layout.size == 1:
            d = (d + 128) % 256 - 128
        found.append((_cost(d) / layout.size, layout))
    found.sort(key=lambda pair: pair[0])
    chosen: list[Layout] = []
    for cost, layout in found[:2]:
        if cost > min(plain_cost * 1.02, 7.9):
            continue
        v = values(plain, layout).astype(np.float64)
        stride = _row(v, layout.channels, LONGEST * 2)
        phase = _phase(v, layout.channels)
        if stride:
            chosen.append(Layout(layout.size, layout.channels, stride, phase, layout.signed, layout.big, layout.skip))
        chosen.append(Layout(layout.size, layout.channels, 0, phase, layout.signed, layout.big, layout.skip))
    return chosen
