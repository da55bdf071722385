"""`nnfs report`: facts of a mount and of its store, the page as a file, and the page in a browser."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nnfs.cli import report
from nnfs.cli.html import palette
from nnfs.cli.html.page import MOST
from nnfs.errors import UsageError
from tests.cli.conftest import Run
from tests.cli.html.kit import Page
from tests.conftest import why_no_mount
from tests.disks import disk, why_not
from tests.harness import Mount, nnfs

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
NAMES = [b"<script>alert(1)<script>", b"\"'&amp;", b"\xff\xfe", b"a\nb\x1b[31m", b"plain", "\u202e\u00e9".encode()]


def told(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nnfs(*map(str, args), "--json").stdout)
    return found


def fill(folder: Path) -> None:
    """Half of it is content that does not get smaller."""
    for name in NAMES:
        below = os.path.join(os.fsencode(folder), name)
        os.mkdir(below)
        for number, content in enumerate((os.urandom(200_000), b"some text " * 20_000)):
            with open(os.path.join(below, name + b"%d" % number), "wb") as file:
                file.write(content)
    (folder / "hole").touch()
    os.truncate(folder / "hole", 1 << 40)


def flat(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for one in node["children"]:
        yield from flat(one)


@needs_mount
@pytest.mark.mount
def test_a_mount_and_its_store_tell_the_same(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    page = tmp_path / "page.html"
    with Mount(tmp_path / "store") as mount:
        fill(mount.path)
        nnfs("policy", os.fspath(mount.path / "plain"), "cold")
        nnfs("snapshot", "create", os.fspath(mount.path), "<b>first")
        live = told("report", mount.path)
        assert nnfs("report", str(mount.path), "--html", str(page)).stdout.startswith(f"{page}: ")
        assert (page.stat().st_mode & 0o777, len(page.read_bytes()) < MOST) == (0o600, True)
        shown = Page(page.read_text())
        assert (shown.tags["script"], shown.tags["svg"], shown.tags["link"]) == (0, 1, 0)
        assert all(text in shown.text for text in ("<script>alert(1)<script>", r"\xff\xfe", r"a\nb\x1b", "<b>first"))
        with_status = live["status"]
        assert with_status["snapshots"]["count"] == 1
        assert with_status["snapshots"]["newest"] == "<b>first"
    resting = told("report", tmp_path / "store")
    assert resting["summary"] == live["summary"]
    assert [one["name"] for one in resting["snapshots"]] == ["<b>first"]
    assert (resting["df"]["codecs"], resting["mountpoint"]) == (live["df"]["codecs"], None)
    tree = resting["summary"]["tree"]
    assert tree["files"] == 2 * len(NAMES) + 1
    assert resting["summary"]["files_by_codec"] == {"raw": len(NAMES), "zstd": len(NAMES)}
    assert resting["summary"]["policies"] == [{"path": "plain", "policy": "cold"}]
    assert tree["stored_bytes"] >= 200_000 * len(NAMES)
    nnfs("report", str(tmp_path / "store"), "--html", str(page), "--force")
    assert "not mounted" in page.read_text()


def test_a_page_that_exists_is_replaced_only_if_that_is_wanted(store: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    status, _, err = run("report", store, "--html", page)
    assert (status, page.read_text()) == (2, "mine")
    assert f"{page} exists: give another name, or --force to replace it" in err
    assert run("report", store, "--html", page, "--force")[0] == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["store", "page.html"] or sorted(os.listdir(tmp_path)) == ["page.html", "store"]


def test_a_page_that_comes_into_being_meanwhile_stays(
    store: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, gathered = tmp_path / "page.html", report.gathered

    def slow(place: Any) -> dict[str, Any]:
        page.write_text("somebody's")
        return gathered(place)

    monkeypatch.setattr(report, "gathered", slow)
    status, _, err = run("report", store, "--html", page)
    assert (status, page.read_text(), "exists" in err) == (2, "somebody's", True)
    assert sorted(os.listdir(tmp_path)) == ["page.html", "store"]


def test_to_standard_output_and_to_a_pipe(store: Path, run: Run, tmp_path: Path) -> None:
    status, out, _ = run("report", store, "--html", "-")
    assert (status, out.endswith("</body></html>\n")) == (0, True)
    assert run("report", store, "--html", "/dev/null", "--force")[0] == 0
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null"), "a device is written to, and not replaced"
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    (tmp_path / "real.html").touch()
    assert run("report", store, "--html", tmp_path / "link.html", "--force")[0] == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "say what to make: --html FILE, or --json"),
        (["--html", "-", "--json"], "name a file"),
        (["--html", "/"], "is a directory"),
        (["--html", "/nowhere/page.html"], "/nowhere is not a directory"),
    ],
)
def test_what_cannot_be_written(store: Path, run: Run, words: list[str], why: str) -> None:
    status, _, err = run("report", store, *words)
    assert (status, why in err) == (2, True), err
    assert UsageError.exit_code == 2


@pytest.mark.skipif(os.geteuid() != 0 or bool(why_not("tmpfs", 1)), reason="needs root to make a small filesystem")
def test_a_full_disk_leaves_the_old_page(store: Path, run: Run) -> None:
    with disk("tmpfs", 1) as small:
        page = small / "page.html"
        page.write_text("old")
        with contextlib.suppress(OSError), (small / "fill").open("wb") as fill:
            while True:
                fill.write(bytes(4096))
                fill.flush()
        status, _, err = run("report", store, "--html", page, "--force")
        assert (status, page.read_text()) == (8, "old")
        assert f"{page}: no space left for it; nothing was written" in err
        assert sorted(os.listdir(small)) == ["fill", "page.html"]


# -- in a browser


def picture(page: Path, *, dark: bool) -> Counter[tuple[int, int, int]]:
    """Render a page; return how many points each colour has."""
    assert BROWSER is not None
    image = page.with_suffix(".png")
    subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--force-device-scale-factor=1",
            f"--user-data-dir={page.parent / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1100,2400", f"--screenshot={image}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=120, env={**os.environ, "HOME": os.fspath(page.parent)},
    )  # fmt: skip
    with Image.open(image) as shot:
        colours = shot.convert("RGB").getcolors(1 << 24) or []
    return Counter({colour: count for count, colour in colours})  # type: ignore[misc]


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


@needs_mount
@pytest.mark.mount
@pytest.mark.skipif(BROWSER is None, reason=f"needs a browser ({', '.join(BROWSERS)})")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_map_in_its_colours(tmp_path: Path, dark: bool) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store") as mount:
        fill(mount.path)
        nnfs("report", str(mount.path), "--html", str(tmp_path / "page.html"))
    points = picture(tmp_path / "page.html", dark=dark)
    page = Page((tmp_path / "page.html").read_text())
    assert points.most_common(1)[0][0] == rgb("#0d1117" if dark else "#ffffff"), "the background"
    areas: Counter[str] = Counter()
    for kind, area in page.rects:
        areas[kind] += area  # type: ignore[assignment]
    assert areas["s6"] > 0.9 * sum(areas.values()), "what does not get smaller takes nearly all of the space"
    scale = (1000 / 960) ** 2  # the column has 1000 points, the picture 960 units
    for number, step in enumerate(palette.STEPS):
        shown = points[rgb(step.dark if dark else step.light)]
        wanted = areas[f"s{number}"] * scale
        # Texts and frames are drawn on top; the legend has a patch of each colour.
        assert 0.75 * wanted <= shown <= wanted + 400, (number, shown, wanted)
    assert all(points[rgb(step.dark if dark else step.light)] > 50 for step in palette.STEPS), "the legend"
