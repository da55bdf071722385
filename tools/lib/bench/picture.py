"""A picture of the table of methods: bits per byte against seconds, as SVG, from the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bench.table import Result

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 560, 70, 230, 30, 60
INK, SOFT, OURS, OTHERS = "#1d2733", "#5b6b7c", "#1565c0", "#9a6b1f"
LINE = 15  # pixels from one label to the next at least


@dataclass(frozen=True)
class Point:
    """One method in the picture."""

    name: str
    seconds: float
    bits: float

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("nnfs")


def points(results: Sequence[Result]) -> list[Point]:
    """Return the methods that have both figures; without decoding, the seconds of encoding."""
    found = []
    for result in results:
        for line in result.here.lines:
            seconds, bits = line.values.get("both") or line.values.get("encode"), line.values.get("bits")
            if seconds and bits:
                found.append(Point(result.case.labels[0], seconds, bits))
    return found


def text(x: float, y: float, words: str, *, color: str = INK, anchor: str = "start", size: int = 12) -> str:
    """Return one line of text."""
    style = f'font-family="sans-serif" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


@dataclass(frozen=True)
class Axes:
    """The scales: seconds by their logarithm, bits per byte as they are."""

    first: int  # powers of ten
    last: int
    low: float
    high: float

    def x(self, seconds: float) -> float:
        part = (math.log10(seconds) - self.first) / (self.last - self.first)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y(self, bits: float) -> float:
        return TOP + (self.high - bits) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> Iterator[str]:
        """Yield the grid and its numbers."""
        for power in range(self.first, self.last + 1):
            x = self.x(10.0**power)
            yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#dde5ec"/>'
            yield text(x, HEIGHT - BOTTOM + 18, f"{10.0**power:g}", color=SOFT, anchor="middle")
        for half in range(math.ceil(2 * self.low), math.floor(2 * self.high) + 1):
            y = self.y(half / 2)
            yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dde5ec"/>'
            yield text(LEFT - 8, y + 4, f"{half / 2:.1f}", color=SOFT, anchor="end")
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield text(middle, HEIGHT - 18, "seconds of processor time to encode and decode", color=SOFT, anchor="middle")
        yield text(12, 18, "bits per byte", color=SOFT)


def axes(chosen: Sequence[Point]) -> Axes:
    """Return scales that hold all points."""
    seconds, bits = [p.seconds for p in chosen], [p.bits for p in chosen]
    first, last = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    return Axes(first, max(last, first + 1), math.floor(2 * min(bits)) / 2, math.floor(2 * max(bits) + 1) / 2)


def labels(chosen: Sequence[Point], scale: Axes) -> list[tuple[Point, float]]:
    """Return the height of each point's label: labels keep a line's distance from each other."""
    placed: list[tuple[Point, float]] = []
    for point in sorted(chosen, key=lambda p: -p.bits):
        least = placed[-1][1] + LINE if placed else -math.inf
        placed.append((point, max(scale.y(point.bits) + 4, least)))
    over = placed[-1][1] - (HEIGHT - BOTTOM) if placed else 0
    if over <= 0:
        return placed
    limit = float(HEIGHT - BOTTOM)
    back: list[tuple[Point, float]] = []
    for point, y in reversed(placed):
        back.append((point, min(y, limit)))
        limit = back[-1][1] - LINE
    return back[::-1]


def drawn(results: Sequence[Result]) -> str:
    """Return the picture. Raises `ValueError` where nothing was measured."""
    chosen = points(results)
    if not chosen:
        raise ValueError("no method was measured: there is nothing to draw")
    scale, parts = axes(chosen), []
    for point, label in labels(chosen, scale):
        color, x, y = OURS if point.is_ours else OTHERS, scale.x(point.seconds), scale.y(point.bits)
        at = WIDTH - RIGHT + 14
        parts.append(
            f'<polyline points="{x:.1f},{y:.1f} {at - 10},{label - 4:.1f} {at - 3},{label - 4:.1f}" fill="none" '
            f'stroke="{color}" stroke-opacity="0.25"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>')
        parts.append(text(at, label, point.name, color=color))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([head, ground, *scale.draw(), *parts, "</svg>", ""])
