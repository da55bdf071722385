"""The background climbs from rung to rung: quick codecs at once, slow ones later, and within a budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import busy, passes
from nnfs.background.busy import Duty
from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import ALL, Aim, Band
from nnfs.background.passes import Passes
from nnfs.background.tasks import Task
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, rung
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.errors import CodecUnavailable
from nnfs.fs.policy import Rules
from nnfs.store.env import Store
from nnfs.store.schema import Inode
from tests.background.coding import NO_GAIN, text
from tests.background.kit import COLD, Chaos
from tests.background.mountkit import Start, codecs, cold_read, done, mounts, sync, turn, write
from tests.background.test_outages import Cold, coder, cold
from tests.harness import wait_for

__all__ = ["cold"]  # a fixture

AUTO = ("write_age=0", "read_age=0")
BIG = 120_000  # bytes: each rung saves more than a sector
RULES = Rules(Policy.AUTO)


def gate(path: Path, seed: int) -> bytes:
    """A chunk of which encoding waits for a file."""
    return b"gate:%s\n" % bytes(path) + text(seed, BIG)


# -- which rungs there are


async def test_the_top_is_the_slowest_that_is_fast_enough(cold: Cold, monkeypatch: pytest.MonkeyPatch) -> None:
    under_test = coder(cold, thaw_limit=8.0)
    seconds = {NEURAL: 10.0, CM: 5.0, CM_LIGHT: 1.0, PPM: 0.1}

    async def measure(codec: int, kind: object) -> float:
        return seconds[codec]

    monkeypatch.setattr(under_test, "_measure", measure)
    assert under_test.top(RULES, everything=False) == rung(NEURAL)  # not measured yet
    await under_test.fast_enough(NEURAL)
    assert under_test.top(RULES, everything=False) == rung(CM)
    seconds[CM] = 9.0
    await under_test.fast_enough(CM)
    assert under_test.top(RULES, everything=False) == rung(CM_LIGHT)
    seconds[CM_LIGHT] = 9.0
    await under_test.fast_enough(CM_LIGHT)
    assert under_test.top(RULES, everything=False) == rung(PPM)
    assert under_test.top(RULES, everything=True) == rung(NEURAL)
    assert under_test.top(Rules(Policy.COLD), everything=False) == rung(NEURAL)
    seconds[PPM] = 9.0
    await under_test.fast_enough(PPM)
    assert under_test.top(RULES, everything=False) == 0


async def test_what_is_out_is_no_rung(cold: Cold) -> None:
    under_test: ColdEncoder = coder(cold)
    assert under_test.top(RULES, everything=True) == rung(NEURAL)
    under_test.outages.failed(NEURAL, b"m" * 64, CodecUnavailable("no torch"))
    assert under_test.top(RULES, everything=True) == rung(CM)
    assert coder(cold, neural=False).top(RULES, everything=True) == rung(CM)


# -- the budget


@pytest.mark.parametrize(
    ("budget", "cores", "threads", "share"),
    [
        ("0.5", 2, 1, 1.0),
        ("1", 2, 2, 1.0),
        ("0.25", 2, 1, 0.5),
        ("0.05", 4, 1, 0.2),
        ("0.5", 1, 1, 0.5),
        ("0.9", 16, 14, 1.0),
    ],
)
def test_a_budget_is_threads_and_a_share_of_the_time(budget: str, cores: int, threads: int, share: float) -> None:
    parse: Callable[[str], float] = Options.__dataclass_fields__["cpu_budget"].metadata["parse"]
    found = Options(cpu_budget=parse(budget)).background(cores)
    assert found[0] == threads
    assert found[1] == pytest.approx(share)
    assert Options(cpu_budget=parse(budget), compact_threads=3).background(cores) == (3, 1.0)


@pytest.mark.parametrize("text", ["0", "0.0", "1.5", "2", "-0.5", "half", "50%", ""])
def test_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="share of the cores"):
        Options.__dataclass_fields__["cpu_budget"].metadata["parse"](text)


async def test_bursts_and_pauses(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[float] = []

    async def between() -> None:
        asked.append(trio.current_time())

    under_test = Duty(0.25, trio.current_time)
    assert not under_test.is_over()
    await trio.sleep(busy.BURST_S)
    assert under_test.is_over()
    begin = trio.current_time()
    await under_test.rest(between)
    assert trio.current_time() - begin == pytest.approx(3 * busy.BURST_S)
    assert len(asked) >= 10
    assert not under_test.is_over()
    assert not Duty(1.0).is_over()


# -- on a mount


@mounts
def test_the_quick_codec_comes_first_and_soon(start: Start, tmp_path: Path) -> None:
    """While the network is at work on one file, what becomes cold meanwhile gets the quick codec."""
    mount: Chaos = start(options=COLD)
    first = write(mount.path / "first", text(1, BIG))
    sync(mount)
    turn(mount, first, "neural")
    slow = [write(mount.path / f"slow{n}", text(10 + n, BIG)) for n in range(3)]
    held = write(mount.path / "held", gate(tmp_path / "go", 2))
    sync(mount)
    wait_for("the held chunk", (tmp_path / "go.reached").exists)
    (tmp_path / "go").touch()
    for path in (*slow, held):
        turn(mount, path, "neural")
    assert cold_read(held) == gate(tmp_path / "go", 2)


@mounts
def test_each_file_climbs_as_far_as_reading_allows(start: Start) -> None:
    """auto: the network takes 10 s for a MiB, so cm is the end; a directory with the policy cold goes on."""
    mount: Chaos = start(options=(*AUTO, "thaw_limit=8"), takes="1.3")
    (mount.path / "cold").mkdir()
    os.setxattr(mount.path / "cold", "user.nnfs.policy", b"cold")
    plain, far = (write(mount.path / name, text(n, BIG)) for n, name in enumerate(("plain", "cold/far")))
    sync(mount)
    turn(mount, plain, "cm")
    turn(mount, far, "neural")
    wait_for("both to be settled", lambda: mount.ask("passes")["settled"] == 2)
    mount.turn_round(2)
    assert (codecs(mount, plain), codecs(mount, far)) == ({"cm": 1}, {"neural": 1})


@mounts
def test_chunks_that_nothing_makes_smaller_are_tried_once_and_settled(start: Start) -> None:
    mount: Chaos = start(options=COLD)
    paths = [write(mount.path / f"f{n}", NO_GAIN + text(n, BIG)) for n in range(3)]
    sync(mount)
    wait_for("them to be settled", lambda: mount.ask("passes")["settled"] == len(paths))
    answered = [worker["answered"] for worker in mount.ask("status")["workers"]]
    mount.turn_round(3)
    assert [worker["answered"] for worker in mount.ask("status")["workers"]] == answered
    assert codecs(mount, mount.path) == {"zstd": 3}


@mounts
def test_a_command_for_the_quick_codec_only(start: Start) -> None:
    """`nnfs compact --quick`: slower codecs may still come, and a file that has all is left alone."""
    mount: Chaos = start(mode="none", options=COLD)
    (mount.path / "d").mkdir()
    all_of_it = write(mount.path / "d" / "f", text(1, BIG))
    done(mount, "compact", mount.path / "d")
    assert codecs(mount, all_of_it) == {"neural": 1}
    quick = write(mount.path / "g", text(2, BIG))
    sync(mount)
    assert done(mount, "compact", mount.path, quick=True)["done_chunks"] == 1
    assert codecs(mount, quick) == {"ppm": 1}
    assert done(mount, "compact", mount.path, quick=True)["done_chunks"] == 0
    marks = marks_of(mount)
    assert sorted(marks.values()) == [Inode.FLAG_SETTLED, 1 << 2]
    assert done(mount, "compact", mount.path)["done_chunks"] == 1
    assert codecs(mount, quick) == {"neural": 1}


def marks_of(mount: Chaos) -> dict[int, int]:
    """Return the rung up to which the store says that files were looked at, by inode."""
    mount.unmount()
    found: dict[int, int] = {}
    store = Store.open(mount.store)
    with store.read() as snapshot:
        for key, record in snapshot.range("inode", b""):
            inode = Inode.unpack(int.from_bytes(key, "big"), record)
            if inode.count and not inode.is_directory:
                found[inode.ino] = inode.flags & Inode.LOOKED_AT
    store.close()
    mount.mount()
    return found


@mounts
def test_a_change_begins_at_the_bottom(start: Start) -> None:
    mount: Chaos = start(mode="none", options=COLD)
    path = write(mount.path / "f", text(1, BIG))
    sync(mount)
    done(mount, "compact", mount.path, quick=True)
    with path.open("r+b") as file:
        file.write(b"another beginning")
    sync(mount)
    assert set(marks_of(mount).values()) == {0}
    assert done(mount, "compact", mount.path, quick=True)["done_chunks"] == 1
    assert cold_read(path) == b"another beginning" + text(1, BIG)[17:]


@mounts
def test_a_dry_run_tells_what_each_rung_would_bring(start: Start) -> None:
    mount: Chaos = start(mode="none", options=COLD)
    for n in range(6):
        write(mount.path / f"f{n}", text(n, BIG))
    result: dict[str, Any] = done(mount, "compact", mount.path, dry_run=True)["result"]
    assert [row["codec"] for row in result["rungs"]] == ["ppm", "cm-light", "cm", "neural"]
    sizes = [row["stored_bytes"] for row in result["rungs"]]
    assert sizes == sorted(sizes, reverse=True)
    assert result["stored_bytes"] > sizes[0]
    assert result["estimated_bytes"] == sizes[-1]
    assert all(row["seconds"] > 0 for row in result["rungs"])
    assert codecs(mount, mount.path) == {"zstd": 6}


@mounts
def test_a_dry_run_leaves_out_what_reads_back_too_slowly(start: Start) -> None:
    mount: Chaos = start(mode="none", options=(*AUTO, "thaw_limit=8"), takes="1.3")
    write(mount.path / "f", text(1, BIG))
    result: dict[str, Any] = done(mount, "compact", mount.path, dry_run=True)["result"]
    assert [row["codec"] for row in result["rungs"]] == ["ppm", "cm-light", "cm"]


@mounts
def test_status_tells_what_each_codec_has_before_it(start: Start, tmp_path: Path) -> None:
    """While the network's sample waits for a gate, those of cm-light and cm have been taken."""
    mount: Chaos = start(options=COLD)
    content = b"gate%d:%s\n" % (NEURAL, bytes(tmp_path / "go")) + text(1, BIG)
    path = write(mount.path / "f", content)
    sync(mount)
    wait_for("the chunk", (tmp_path / "go.reached").exists)
    rows = mount.ask("status")["compaction"]["rungs"]
    assert [(row["codec"], row["plain_bytes"]) for row in rows] == [("cm-light", len(content)), ("cm", len(content))]
    assert 512 < rows[0]["saves_bytes"] < rows[1]["saves_bytes"] < len(content) // 8
    assert all(row["seconds"] > 0 for row in rows)
    (tmp_path / "go").touch()
    turn(mount, path, "neural")
    wait_for("the end", lambda: mount.ask("passes")["settled"] == 1 and not mount.ask("status")["compaction"]["rungs"])


@mounts
def test_a_sample_that_fails_whole_does_not_end_the_pass(start: Start) -> None:
    """The only chunk there is kills its worker: it is put aside, and the pass itself has not failed."""
    mount: Chaos = start(options=COLD)
    mount.expect_log("worker|killed")
    bad = write(mount.path / "bad", b"die:\n" + text(1, BIG))
    sync(mount)
    wait_for("it to be put aside", lambda: mount.log().count("chunk 0 stays as it is") >= 3)
    mount.turn_round(2)
    assert "background: failed" not in mount.log()
    assert codecs(mount, bad) == {"zstd": 1}


# -- the order of walks


class Walks:
    """In place of recompression: notes the aims of its runs, and lets time pass in each."""

    def __init__(self) -> None:
        self.aims: list[Aim] = []

    async def run(self, task: Task, ino: int, aim: Aim, between: Callable[[], Any] | None = None) -> None:
        self.aims.append(aim)
        if between is not None:
            await between()


async def test_void_marks_are_void_for_one_quick_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what the quick codec cannot make smaller would be tried again each minute, for as long as slow ones work."""
    walks: Any = Walks()
    parts: Any = SimpleNamespace(store=None, commits=None)
    under_test = Passes(parts, walks, coder(Cold()), Options())

    async def begin(task: Task) -> bool:
        return True

    async def end(*, unsettles: bool) -> None:
        assert unsettles

    async def survey(task: Task, ino: int, aim: Aim) -> Any:
        return SimpleNamespace(files=1)

    async def order(task: Task, codec: int, quick: Aim) -> list[Band]:
        return [ALL]

    for name, replaced in (("_begin", begin), ("_end", end), ("_survey", survey), ("_order", order)):
        monkeypatch.setattr(under_test, name, replaced)
    monkeypatch.setattr(passes, "QUICK_EVERY", 0.0)
    task: Any = SimpleNamespace(looked=0.0)
    await under_test._climb(task)
    seen = [(aim.rung, aim.marks) for aim in walks.aims]
    assert seen == [(1, False), (2, False), (1, True), (3, False), (1, True), (4, False), (1, True)]
