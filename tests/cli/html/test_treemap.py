"""The treemap: rectangles that fill their box, with the areas that they stand for, and as square as can be."""

from __future__ import annotations

import math
import random

import pytest

from nnfs.cli.html.treemap import HEIGHT, WIDTH, Box, layout, squarified, svg
from tests.cli.html.kit import Page, node, tree

BOX = Box(0, 0, WIDTH, HEIGHT)


def overlap(one: Box, other: Box) -> float:
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(0.0, width) * max(0.0, height)


@pytest.mark.parametrize("seed", range(20))
def test_areas_are_the_sizes(seed: int) -> None:
    chance = random.Random(seed)
    sizes = sorted((chance.paretovariate(0.8) for _ in range(chance.randrange(1, 60))), reverse=True)
    boxes = squarified(sizes, BOX)
    for size, box in zip(sizes, boxes, strict=True):
        assert math.isclose(box.area, size / sum(sizes) * BOX.area, rel_tol=1e-6)
        assert box.x >= -1e-6
        assert box.y >= -1e-6
        assert box.x + box.width <= WIDTH + 1e-6
        assert box.y + box.height <= HEIGHT + 1e-6
    assert sum(overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n]) < 1e-3


def test_the_example_of_the_paper() -> None:
    boxes = squarified([6, 6, 4, 3, 2, 2, 1], Box(0, 0, 6, 4))
    worst = [max(box.width / box.height, box.height / box.width) for box in boxes]
    assert [round(box.width, 2) for box in boxes[:4]] == [3, 3, 1.71, 1.29]
    assert max(worst) < 3


@pytest.mark.parametrize("sizes", [[], [1], [1] * 100, [1e18, 1], [1, 1e-30], [5, 5, 5]])
def test_odd_sizes(sizes: list[float]) -> None:
    assert len(squarified(sizes, BOX)) == len(sizes)


def test_tiles_fill_the_picture_and_what_is_small_is_left_to_its_directory() -> None:
    small = [node(f"small{number}", 1, 1) for number in range(50)]
    folder = node("folder", 30_050, 60_000, node("large", 30_000, 50_000), *small)
    tiles, frames = layout(tree(folder, node("other", 70_000, 70_000), more=10), BOX)
    assert {tile.path for tile in tiles} >= {"folder/large", "other", "folder"}
    assert [tile.node["stored_bytes"] for tile in tiles if tile.rest and tile.path == "folder"] == [50]
    assert math.isclose(sum(tile.box.area for tile in tiles), BOX.area, rel_tol=1e-6)
    whole = sum(tile.node["stored_bytes"] for tile in tiles)
    assert whole == 100_060
    for tile in tiles:
        assert math.isclose(tile.box.area, tile.node["stored_bytes"] / whole * BOX.area, rel_tol=1e-6)
    assert [frame.depth for frame in frames] == [0, 1]


def test_directories_without_end() -> None:
    inner = node("x", 1000, 1000)
    for _ in range(3000):
        inner = node("d", 1000, 1000, inner, files=0)
    tiles, _ = layout(tree(inner), BOX)
    assert len(tiles) == 1


def test_the_picture_has_titles_and_colours() -> None:
    text = svg(tree(node("a <b>", 500, 5000), node("c", 500, 500)))
    page = Page(text)
    assert page.tags["title"] == 3
    assert "a <b>: 500 B of 4.88 KiB, 10 %" in page.text
    assert sorted(kind for kind, _ in page.rects) == ["s0", "s6"]
    assert all(math.isclose(area, BOX.area / 2, rel_tol=1e-3) for _, area in page.rects)
