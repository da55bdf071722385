"""The page of `nnfs report`: what it says, that names are no markup, and that it stays small."""

from __future__ import annotations

import pytest

from nnfs.cli.html import palette
from nnfs.cli.html.page import MOST, page
from tests.cli.html.kit import HOSTILE, Page, facts, node, tree

TREE = tree(
    node("logs", 600, 6000, node("big", 500, 5000), files=4), node("photo.jpg", 300, 300), node("s", 100, 150), more=200
)


def test_the_page_says_what_the_facts_say() -> None:
    shown = Page(page(facts(TREE))).text
    for text in (
        "/data",
        "mounted on /mnt/nn",
        "5.86 KiB",
        "2.00 KiB",
        "50 days ago",
        "never",
        "auto",
        "There are none",
    ):
        assert text in shown, text
    cells = shown.split("\n")
    row = cells.index("zstd")
    assert cells[row : row + 6] == ["zstd", "2", "3", "1000 B", "3.91 KiB", "25.0 %"]
    row = cells.index("neural")
    assert cells[row : row + 6] == ["neural", "1", "3", "200 B", "1.95 KiB", "10.0 %"], "models are added up"
    row = cells.index("cm")
    assert cells[row : row + 4] == ["cm", "3.91 KiB", "500 B", "2.0"]
    row = cells.index("logs")
    assert cells[row : row + 5] == ["logs", "5", "600 B", "5.86 KiB", "10.0 %"]
    assert "Nothing is known to be wrong." in shown


def test_what_is_wrong_comes_first_in_red() -> None:
    found = facts(
        TREE, damaged=["/mnt/nn/a: damaged (block 7)"], policy="cold",
        status={"read_only": "a bug", "lost": "", "no_space": True, "codecs_out": [
            {"codec": "neural", "why": "no torch", "cure": "install it"}]},
        snapshots=[{"name": "x<y", "created": 1.7e9, "inodes": 3, "logical_bytes": 9, "only_here_bytes": 5,
                    "written_since_bytes": 2, "deleting": True}],
    )  # fmt: skip
    found["summary"]["policies"] = [{"path": "logs/<b>", "policy": "hot"}, {"path": "", "policy": "cold"}]
    found["summary"]["damaged_files"] = 2
    shown = Page(page(found)).text
    for text in (
        "Something is wrong", "/mnt/nn/a: damaged (block 7)", "read-only: a bug", "waits for room", "2 inodes or files",
        "codec neural cannot run here: no torch; install it", "x<y (being deleted)", "logs/<b>", "1 in all",
    ):  # fmt: skip
        assert text in shown, text


def test_a_store_that_is_not_mounted_and_an_empty_one() -> None:
    found = facts(tree(), mountpoint=None)
    found["df"] |= {"gain": None, "codecs": [], "rungs": [
        {"codec": "ppm", "plain_bytes": 10, "saves_bytes": None, "seconds": None}]}  # fmt: skip
    shown = Page(page(found)).text
    for text in ("not mounted", "Nothing is stored yet.", "not known yet", "known while mounted"):
        assert text in shown, text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_no_markup(name: str) -> None:
    plain = Page(page(facts(tree(node("d", 600, 900, node("f", 500, 600)), node("g", 300, 300)))))
    root = tree(node(name, 600, 900, node(name, 500, 600)), node(f"{name}2", 300, 300))
    snapshot = {"name": name, "created": 1.7e9, "inodes": 3, "logical_bytes": 9, "only_here_bytes": 5}
    found = facts(
        root, store=f"/data/{name}", mountpoint=f"/mnt/{name}", damaged=[f"{name}: damaged"],
        snapshots=[{**snapshot, "written_since_bytes": 2, "deleting": False}],
    )  # fmt: skip
    found["summary"]["policies"] = [{"path": name, "policy": "hot"}]
    text = page(found)
    text.encode("utf-8")
    shown = Page(text)
    assert shown.tags.keys() - plain.tags.keys() <= {"li", "ul"}
    assert shown.attributes.keys() == plain.attributes.keys()
    assert (shown.tags["script"], shown.tags["img"], shown.tags["h1"], shown.tags["svg"]) == (0, 0, 1, 1)
    assert all(c.isprintable() for c in text.rstrip("\n"))


@pytest.mark.parametrize("letter", ["a", "<", '"', "\udcff", "\x01", "\U0001f4a9"])
def test_the_page_stays_small(letter: str) -> None:
    many = [node(f"{number}{letter * 250}", 1000, 2000) for number in range(600)]
    folders = [node(f"{number}{letter * 250}", 40_000, 80_000, *many[number * 40 :][:40]) for number in range(15)]
    found = facts(
        tree(*folders), damaged=[f"/{letter * 4000}" * 3] * 200, store=f"/{letter * 4000}",
        snapshots=[{"name": letter * 255, "created": 1.7e9, "inodes": 1, "logical_bytes": 1, "only_here_bytes": 1,
                    "written_since_bytes": 1, "deleting": False}] * 500,
    )  # fmt: skip
    found["summary"]["policies"] = [{"path": letter * 4000, "policy": "hot"}] * 200
    text = page(found)
    assert len(text.encode()) <= MOST
    assert Page(text).rects


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_can_be_read_on_their_colours() -> None:
    for step in palette.STEPS:
        for back, front in ((step.light, step.light_text), (step.dark, step.dark_text)):
            low, high = sorted((_luminance(back), _luminance(front)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (back, front)


@pytest.mark.parametrize(
    ("logical", "stored", "step"), [(100, 10, 0), (100, 11, 1), (100, 90, 5), (100, 120, 6), (0, 5, 6)]
)
def test_steps(logical: int, stored: int, step: int) -> None:
    assert palette.step_of(logical, stored) == step
    assert len(palette.labels()) == len(palette.STEPS)
