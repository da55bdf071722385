"""The history of tasks: the last ones, over remounts, in the log, and when everything was last found sound."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background.history import KEPT, LISTED, History
from nnfs.background.tasks import Task, Tasks
from nnfs.constants import HISTORY_FILE
from nnfs.errors import UsageError, WorkerError
from tests.background.test_tasks import Work, serving


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {"job": number, "kind": "compact", "state": "done", "path": "", "result": {}, **fields}


def scrub(number: int, since: float, *, deep: bool = False, unchecked: int = 0, state: str = "done") -> dict[str, Any]:
    result = {"since": since, "deep": deep, "unchecked": unchecked}
    return record(number, kind="scrub", state=state, result=result)


def test_the_last_ones_are_kept_over_remounts(tmp_path: Path) -> None:
    path = tmp_path / HISTORY_FILE
    history = History(path)
    assert (history.records, history.scrubbed, history.last) == ([], {}, 0)
    for number in range(1, KEPT + 10):
        history.add(record(number, path="/a\udcff\n"))
    history.write()
    again = History(path)
    assert [one["job"] for one in again.records] == list(range(10, KEPT + 10))
    assert (again.last, again.records[0]["path"]) == (KEPT + 9, "/a\udcff\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [HISTORY_FILE]


def test_a_record_is_short(tmp_path: Path) -> None:
    history = History(tmp_path / HISTORY_FILE)
    damaged = [{"block": n, "why": "why", "files": ["/f at 0"] * 500} for n in range(1000)]
    history.add(record(1, kind="scrub", state="failed", result={"damaged": damaged}))
    found = history.records[0]["result"]
    assert found["damaged_blocks"] == 1000
    assert [len(one["files"]) for one in found["damaged"]] == [LISTED] * LISTED
    assert len(damaged) == 1000


def test_when_everything_was_last_found_sound(tmp_path: Path) -> None:
    history = History(tmp_path / HISTORY_FILE)
    history.add(scrub(1, 100.0))
    assert history.scrubbed == {"checksums": 100.0}
    history.add(scrub(2, 200.0, deep=True))
    history.add(scrub(3, 300.0, state="cancelled"))
    history.add(scrub(4, 400.0, unchecked=1))
    for number in range(5, 5 + 2 * KEPT):
        history.add(record(number))
    assert history.scrubbed == {"checksums": 200.0, "deep": 200.0}
    history.write()
    assert History(tmp_path / HISTORY_FILE).scrubbed == history.scrubbed


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"jobs": 1, "scrubbed": {}}', '{"jobs": [1]}', "\xff"])
def test_a_bad_file_is_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_bytes(text.encode("latin-1"))
    history = History(tmp_path / HISTORY_FILE)
    assert history.records == []
    history.add(record(1))
    history.write()
    assert History(tmp_path / HISTORY_FILE).last == 1


def test_what_cannot_be_written_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for history in (
        History(None),
        History(tmp_path / HISTORY_FILE, read_only=True),
        History(tmp_path / "gone" / HISTORY_FILE),
    ):
        history.add(record(1))
        history.write()
    assert os.listdir(tmp_path) == []
    assert "is not kept" in caplog.text


async def test_every_end_is_kept_and_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jobs, work = Tasks(None, 60, 5, History(tmp_path / HISTORY_FILE)), Work()

    async def fails(job: Task) -> None:
        job.done_chunks, job.done_bytes, job.phase = 3, 300, "encoding"
        raise WorkerError("no\nworker")

    async def does(job: Task) -> None:
        job.stored_before, job.stored_after, job.phase = 100, 50, "encoding"

    async with serving(jobs):
        jobs.add("compact", does, 1, "/a\udcff\n")
        failed = jobs.add("compact", fails, 2, "/b")
        running, queued = jobs.add("thaw", work.named("thaw")), jobs.add("thaw", work.named("other"), 2)
        await trio.testing.wait_all_tasks_blocked()
        jobs.cancel(queued.number)
        assert jobs.told(failed.number)["error"] == "no\nworker"
    states = {record["job"]: record["state"] for record in History(tmp_path / HISTORY_FILE).records}
    assert states == {1: "done", 2: "failed", running.number: "cancelled", queued.number: "cancelled"}
    assert [found["error"] for found in jobs.history.records if found["job"] == 3] == ["the mount ended before it did"]
    assert [found["phase"] for found in jobs.history.records] == [""] * 4
    lines = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert len(lines) == 4
    assert ("INFO", "compact /a\udcff\n (task 1): done, 0 s, 100 stored bytes became 50") in lines
    assert ("ERROR", "compact /b (task 2): failed, no\nworker, 0 s, 3 chunks, 300 bytes") in lines
    assert ("INFO", "thaw (task 4): cancelled, 0 s") in lines


async def test_numbers_go_on_after_a_remount(tmp_path: Path) -> None:
    history = History(tmp_path / HISTORY_FILE)
    history.add(record(7, note="long ago"))
    jobs, work = Tasks(None, 60, 5, history), Work()
    async with serving(jobs):
        assert jobs.add("thaw", work.named("thaw")).number == 8
        assert jobs.told(7)["note"] == "long ago"
        with pytest.raises(UsageError, match="not among the last"):
            jobs.told(6)


async def test_the_background_is_kept_where_it_did_something(autojump_clock: trio.testing.MockClock) -> None:
    did = [0, 0, 5, 0]

    async def idle(job: Task) -> None:
        job.done_chunks = did.pop(0)

    jobs = Tasks(idle, 60, 5)
    async with serving(jobs):
        await trio.sleep(5 + 3 * 60 + 1)
    assert [(found["kind"], found["done_chunks"]) for found in jobs.history.records] == [("background", 5)]


def test_the_file_is_json_for_whoever_looks(tmp_path: Path) -> None:
    history = History(tmp_path / HISTORY_FILE)
    history.add(record(1))
    history.write()
    assert json.loads((tmp_path / HISTORY_FILE).read_text())["version"] == 1
