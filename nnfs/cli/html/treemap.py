"""A squarified treemap (Bruls, Huizing, van Wijk 2000) as SVG: areas are stored bytes, colours what they were made of.

Areas are exact: nothing is taken away for frames and headings, which are drawn on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nnfs import names
from nnfs.cli import tables
from nnfs.cli.html.palette import step_of
from nnfs.cli.html.text import cut, escaped, shortened

WIDTH, HEIGHT = 960, 560
LEAST = 30.0  # area of the smallest tile: what is smaller is left to its directory
TINY = 1e-9  # side of what is left of a rectangle when rounding has taken all of it
DEPTH = 40  # directories that are entered
CHARACTER, LINE = 6.6, 13  # size of a letter, generously
LEAST_LETTERS = 8  # of a name that is cut

Node = dict[str, Any]


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height


class Tile(NamedTuple):
    """A rectangle that stands for bytes: those of a file, or of all that a directory has besides its own tiles."""

    box: Box
    path: str
    node: Node
    rest: bool  # it stands for what the directory has besides


class Frame(NamedTuple):
    """The rectangle of a directory."""

    box: Box
    depth: int


def squarified(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return a rectangle for each size, which are positive, in descending order, and fill the box.

    Rows are laid along the shorter side; a row takes sizes up as long as that makes its worst rectangle squarer.
    """
    scale = box.area / sum(sizes) if sizes else 0.0
    areas = [size * scale for size in sizes]
    found: list[Box] = []
    while areas:
        side = max(min(box.width, box.height), TINY)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        depth = sum(row) / side
        place = 0.0
        for area in row:
            length = area / depth
            if box.width >= box.height:  # the row is a column at the left
                found.append(Box(box.x, box.y + place, depth, length))
            else:
                found.append(Box(box.x + place, box.y, length, depth))
            place += length
        if box.width >= box.height:
            box = Box(box.x + depth, box.y, max(0.0, box.width - depth), box.height)
        else:
            box = Box(box.x, box.y + depth, box.width, max(0.0, box.height - depth))
    return found


def _worst(row: Sequence[float], side: float) -> float:
    """Return the greatest ratio of the sides of a row's rectangles."""
    total = sum(row)
    return max(side * side * max(row) / (total * total), total * total / (side * side * min(row)))


def layout(root: Node, box: Box, least: float = LEAST) -> tuple[list[Tile], list[Frame]]:
    """Return tiles, which fill the box, and the frames of the directories that they lie in."""
    tiles: list[Tile] = []
    frames: list[Frame] = []
    open_: list[tuple[Node, str, Box, int]] = [(root, root["name"], box, 0)] if root["stored_bytes"] else []
    while open_:
        node, path, box, depth = open_.pop()
        shown = _shown(node, box, least) if depth < DEPTH else []
        if not shown:
            tiles.append(Tile(box, path, node, rest=False))
            continue
        frames.append(Frame(box, depth))
        rest = _rest(node, shown)
        parts = sorted([*shown, *([rest] if rest["stored_bytes"] else [])], key=lambda one: -one["stored_bytes"])
        for part, where in zip(parts, squarified([one["stored_bytes"] for one in parts], box), strict=True):
            if part is rest:
                tiles.append(Tile(where, path, rest, rest=True))
            else:
                open_.append((part, f"{path}/{part['name']}" if path else part["name"], where, depth + 1))
    return tiles, frames


def _shown(node: Node, box: Box, least: float) -> list[Node]:
    """Return the children that are large enough to be seen."""
    wanted = least / box.area * node["stored_bytes"] if box.area else 0
    return [one for one in node["children"] if one["stored_bytes"] and one["stored_bytes"] >= wanted]


def _rest(node: Node, shown: Sequence[Node]) -> Node:
    """Return all of a directory but what is shown."""
    fields = ("files", "logical_bytes", "stored_bytes")
    return {**node, **{name: max(0, node[name] - sum(one[name] for one in shown)) for name in fields}}


def svg(root: Node, least: float = LEAST) -> str:
    """Return the picture of a tree."""
    tiles, frames = layout(root, Box(0, 0, WIDTH, HEIGHT), least)
    shapes = [*map("".join, map(_tile, tiles)), *map(_frame, sorted(frames, key=lambda frame: -frame.depth))]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="mt md">'
        '<title id="mt">Treemap of the stored bytes</title>'
        '<desc id="md">Each rectangle is a file, or the rest of a directory: its area is what it takes, its colour the '
        "share of its content that is left. The table of directories below says the same in numbers.</desc>"
        f"{''.join(shapes)}</svg>"
    )


def _tile(tile: Tile) -> Iterator[str]:
    box, node = tile.box, tile.node
    logical, stored = node["logical_bytes"], node["stored_bytes"]
    share = f", {100 * stored / logical:.0f} %" if logical else ""
    what = shortened(tile.path) or "/"
    if tile.rest:
        what = f"{what}: the rest"
    if node["is_directory"]:
        what += f", {node['files']} files"
    yield f'<g class="s{step_of(logical, stored)}"><title>'
    yield f"{escaped(what)}: {tables.size(stored)} of {tables.size(logical)}{share}</title>"
    yield f'<rect class="t" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"/>'
    yield from _label(tile)
    yield "</g>"


def _label(tile: Tile) -> Iterator[str]:
    """Yield what is written on a tile, as far as there is room: the end of its path, and its size."""
    box, room = tile.box, int((tile.box.width - 8) / CHARACTER)
    if box.height < LINE + 3:
        return
    if text := _fitting(f"{tile.path}/(rest)".lstrip("/") if tile.rest else tile.path or "/", room):
        yield f'<text x="{box.x + 4:.1f}" y="{box.y + LINE:.1f}">{escaped(text)}</text>'
    size = tables.size(tile.node["stored_bytes"])
    if text and box.height >= 2 * LINE + 3 and len(size) <= room:
        yield f'<text x="{box.x + 4:.1f}" y="{box.y + 2 * LINE:.1f}">{size}</text>'


def _fitting(path: str, room: int) -> str:
    """Return as many of the last names of a path as fit, else a shortened last one, else nothing."""
    words = names.printable(path).split("/")
    for first in range(len(words)):
        if len(text := "/".join(words[first:])) <= room:
            return text
    return cut(words[-1], room) if room >= LEAST_LETTERS else ""


def _frame(frame: Frame) -> str:
    """Return the frame of a directory: the higher it stands, the broader."""
    box = frame.box
    if not frame.depth or frame.depth > 3:
        return ""
    return (
        f'<rect class="d" stroke-width="{7 - 2 * frame.depth}" x="{box.x:.1f}" y="{box.y:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}"/>'
    )
