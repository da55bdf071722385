"""`nnfs compact`, `thaw`, `scrub`, `pause` and `resume`, against a control socket that says what a daemon would."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nnfs.background.history import History
from nnfs.cli import progress
from nnfs.constants import HISTORY_FILE
from nnfs.errors import ModelMissing, UsageError, WorkerError
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon, job

DONE = {
    "state": "done", "done_bytes": 1 << 20, "total_bytes": 1 << 20, "done_chunks": 8, "total_chunks": 8,
    "seconds": 65.0, "stored_before": 400 << 10, "stored_after": 100 << 10, "cold_chunks": 7,
}  # fmt: skip
JOBS = ("compact", "thaw", "scrub")


@pytest.mark.parametrize("kind", JOBS)
def test_started_and_left_alone(kind: str, store: Path, run: Run) -> None:
    with FakeDaemon(store, **{kind: {"job": 3}}) as daemon:
        status, out, err = run(kind, store)
        assert (status, err) == (0, "")
        assert "task 3" in out
        assert f"nnfs status {store}" in out
        assert json.loads(run(kind, store, "--json")[1]) == {"job": 3}
    expected: dict[str, dict[str, Any]] = {
        "compact": {"ino": 1, "all": False, "quick": False, "dry_run": False},
        "thaw": {"ino": 1}, "scrub": {"deep": False},
    }  # fmt: skip
    assert daemon.asked(kind) == [{"path": str(store), **expected[kind]}] * 2
    assert daemon.asked("job") == []


def test_the_path_and_the_flags_are_told(store: Path, mnt: Path, run: Run) -> None:
    file = mnt / "file"
    file.touch()
    ino = file.stat().st_ino
    link = mnt / "link"
    link.symlink_to("file")
    with FakeDaemon(store, compact={"job": 1}, thaw={"job": 2}, scrub={"job": 3}) as daemon:
        run("compact", file, "--all")
        run("thaw", link)
        run("scrub", file, "--deep")
    there = {"path": str(file), "ino": ino, "parent": mnt.stat().st_ino}
    assert daemon.asked("compact") == [{**there, "all": True, "quick": False, "dry_run": False}]
    assert daemon.asked("thaw") == [there]
    assert daemon.asked("scrub") == [{"path": str(file), "deep": True}]


def test_the_same_again_joins(store: Path, run: Run) -> None:
    with FakeDaemon(store, compact={"job": 3, "joined": True}, job=job(**DONE)):
        assert run("compact", store)[1] == f"task 3 does the same already: nnfs status {store} shows it\n"
        status, out, err = run("compact", store, "--wait")
    assert (status, err) == (0, f"nnfs: task 3 does the same already (nnfs status {store})\n")
    assert out.startswith("compact: 8 chunks")


def test_a_job_that_waits_for_others_says_so(store: Path, run: Run) -> None:
    with FakeDaemon(store, thaw={"job": 3, "waits_for": 2}, job=job(kind="thaw", **DONE)):
        assert run("thaw", store)[1] == f"task 3 waits for 2 other tasks: nnfs status {store} shows it\n"
        assert run("thaw", store, "--wait")[2] == f"nnfs: task 3 waits for 2 other tasks (nnfs status {store})\n"
    with FakeDaemon(store, thaw={"job": 3, "waits_for": 1, "joined": True}):
        assert "does the same already and waits for 1 other task:" in run("thaw", store)[1]


@pytest.mark.parametrize("kind", JOBS)
def test_waiting_tells_what_was_done(kind: str, store: Path, run: Run) -> None:
    steps = [job(kind=kind, state="queued"), job(kind=kind), job(kind=kind, **DONE)]
    with FakeDaemon(store, **{kind: {"job": 3}}, job=list(steps)) as daemon:
        status, out, err = run(kind, store, "--wait")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{kind}: 8 chunks, 1.00 MiB, 1 min 5 s"
    assert "400 KiB became 100 KiB, 300 KiB saved" in out
    assert daemon.asked("job") == [{"job": 3}] * 3
    with FakeDaemon(store, **{kind: {"job": 3}}, job=list(steps)):
        assert json.loads(run(kind, store, "--wait", "--json")[1].splitlines()[-1]) == steps[-1]


def test_chunks_that_failed_and_stores_that_grow_are_told(store: Path, run: Run) -> None:
    ended = job(kind="thaw", **{**DONE, "stored_before": 100, "stored_after": 300, "failed_chunks": 2})
    with FakeDaemon(store, thaw={"job": 3}, job=ended):
        out = run("thaw", store, "--wait")[1]
    assert "100 B became 300 B, 200 B more" in out
    assert "failed: 2 chunks" in out


def test_a_recompression_that_did_nothing_says_so(store: Path, run: Run) -> None:
    with FakeDaemon(store, compact={"job": 3}, job=job(**{**DONE, "stored_before": 0, "cold_chunks": 0})):
        assert "nothing became cold" in run("compact", store, "--wait")[1]
    nothing = job(state="done", note="nothing is due: it is too young")
    with FakeDaemon(store, compact={"job": 3}, job=nothing):
        assert run("compact", store, "--wait") == (0, "compact: nothing is due: it is too young\n", "")
    with FakeDaemon(store, compact={"job": 3}, job={**nothing, "kind": "dry run", "result": {"chunks": 0}}):
        assert run("compact", store, "--dry-run") == (0, "dry run: nothing is due: it is too young\n", "")


def test_progress_without_a_terminal_is_a_line_per_tenth(store: Path, run: Run) -> None:
    steps = [job(done_bytes=n, rate=100.0, eta=(1000 - n) / 100) for n in (0, 50, 99, 100, 110, 350, 399, 1000)]
    with FakeDaemon(store, compact={"job": 3}, job=[*steps, job(**DONE)]):
        lines = run("compact", store, "--wait")[2].splitlines()
    assert lines == [
        "compact: 10 % of 1000 B, 100 B/s, 9 s left",
        "compact: 35 % of 1000 B, 100 B/s, 6 s left",
        "compact: 100 % of 1000 B, 100 B/s, 0 s left",
    ]


def test_progress_for_programs_is_an_object_a_second(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LAST_POLL_S", 0.0)  # as if each poll came a second after the one before
    steps = [job(state="queued"), job(done_bytes=50, path="/a\udcff"), job(**DONE)]
    with FakeDaemon(store, compact={"job": 3}, job=list(steps)):
        status, out, err = run("compact", store, "--wait", "--json")
    assert (status, err) == (0, "")
    first, second, last = out.split("\n", 2)
    assert json.loads(first) == steps[0]
    assert json.loads(second)["done_bytes"] == 50
    assert json.loads(last) == steps[-1]
    dry = {**job(**DONE), "kind": "dry run", "result": {"chunks": 0}}
    with FakeDaemon(store, compact={"job": 3}, job=[job(), dry]):
        assert json.loads(run("compact", store, "--dry-run", "--json")[1]) == dry


def test_progress_on_a_terminal_is_a_bar(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    steps = [job(state="queued", total_bytes=0), job(done_bytes=500, rate=100.0, eta=5.0), job(**DONE)]
    with FakeDaemon(store, compact={"job": 3}, job=steps):
        status, out, err = run("compact", store, "--wait")
    assert status == 0
    assert "8 chunks" in out
    assert "\x1b[" in err


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"state": "failed", "error": "worker compact died twice", "exit": WorkerError.exit_code}, 14, "died twice"),
        ({"state": "failed", "error": "model 2 is not there", "exit": ModelMissing.exit_code}, 11, "model 2"),
        ({"state": "failed", "error": "", "exit": 0}, 13, "no reason given"),
        ({"state": "cancelled"}, 1, "compact (task 3) was cancelled"),
    ],
)
def test_a_job_that_fails(fields: dict[str, Any], status: int, message: str, store: Path, run: Run) -> None:
    with FakeDaemon(store, compact={"job": 3}, job=[job(), job(**fields)]):
        found, out, err = run("compact", store, "--wait")
    assert (found, out) == (status, "")
    assert err.startswith("nnfs: compact (task 3) ")
    assert message in err
    with FakeDaemon(store, compact={"job": 3}, job=job(**fields)):
        found, out, _ = run("compact", store, "--wait", "--json")
    assert found == status
    assert json.loads(out.splitlines()[-1])["state"] == fields["state"]


def test_a_job_that_is_forgotten(store: Path, run: Run) -> None:
    gone = UsageError("no task 3: it ended long ago, or with an earlier mount")
    with FakeDaemon(store, compact={"job": 3}, job=[job(), gone]):
        assert run("compact", store, "--wait") == (2, "", f"nnfs: {gone}\n")


@pytest.mark.parametrize("name", [*JOBS, "pause", "resume"])
def test_nobody_answers_for_a_store_that_is_not_mounted(name: str, store: Path, run: Run) -> None:
    status, out, err = run(name, store)
    assert (status, out) == (13, "")
    assert f"it is not mounted (nnfs mount {store} MNT)" in err


@pytest.mark.parametrize("name", [*JOBS, "pause", "resume"])
def test_what_is_no_mount_is_refused(name: str, run: Run) -> None:
    assert run(name, "/etc")[0] == 2
    assert run(name, "/nowhere/at/all")[0] == 1
    assert run(name)[0] == 2


def test_a_daemon_that_refuses(store: Path, run: Run) -> None:
    with FakeDaemon(store, compact=UsageError("the mount is read-only")):
        assert run("compact", store) == (2, "", "nnfs: the mount is read-only\n")


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            [{"block": 5, "why": "damaged block 5: stored bytes are wrong", "files": ["/a at b at 0", "/\n at 16384"]}],
            "damaged: MNT/a at b from byte 0 on, MNT/\\n from byte 16384 on: stored bytes are wrong (block 5)",
        ),
        (
            [{"block": 5, "why": "damaged block 5: why", "files": [f"/f at {n}" for n in range(7)]}],
            "damaged: MNT/f from byte 0 on, MNT/f from byte 1 on, MNT/f from byte 2 on, 4 more places: why (block 5)",
        ),
        ([{"block": 5, "why": "why", "files": []}], "damaged: block 5: why"),
        ([{"block": 5, "why": "why", "files": ["<inode 7> at 0"]}], "damaged: <inode 7> from byte 0 on: why (block 5)"),
        ([{"why": "model 1 is gone: restore it"}], "damaged: model 1 is gone: restore it"),
        (["block 5"], "damaged: block 5"),
        (7, "damaged: 7 blocks"),
        ([{"block": n} for n in range(25)], "damaged: and 5 more (--json lists them)"),
    ],
)
def test_scrub_tells_damage_by_its_exit_status(found: Any, line: str, store: Path, mnt: Path, run: Run) -> None:
    with FakeDaemon(store, scrub={"job": 3}, job=job(kind="scrub", **DONE, result={"damaged": found, "read_bytes": 9})):
        status, out, _ = run("scrub", mnt, "--wait")
    assert status == 7
    assert line.replace("MNT", str(mnt)) in out.splitlines()
    assert "read: 9 B" in out.splitlines()
    assert ("from a backup" in out) is ("from byte" in line)


@pytest.mark.parametrize("found", [[], 0])
def test_a_clean_scrub(found: object, store: Path, run: Run) -> None:
    with FakeDaemon(store, scrub={"job": 3}, job=job(kind="scrub", **DONE, result={"damaged": found})):
        status, out, _ = run("scrub", store, "--wait")
    assert status == 0
    assert "damaged" not in out


def test_a_dry_run_waits_for_its_answer(store: Path, run: Run) -> None:
    rungs = [
        {"codec": "ppm", "stored_bytes": 2 << 10, "seconds": 7200.0},
        {"codec": "neural", "stored_bytes": 1 << 10, "seconds": 864000.0},
    ]
    result = {"chunks": 12, "plain_bytes": 1 << 20, "estimated_bytes": 1 << 10, "rungs": rungs}
    ended = job(kind="dry run", **DONE, result=result)
    with FakeDaemon(store, compact={"job": 3}, job=[job(kind="dry run"), ended]) as daemon:
        status, out, _ = run("compact", store, "--dry-run")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["chunks", "12"], ["plain", "1.00", "MiB"], ["estimated", "1.00", "KiB"], [],
        ["up", "to", "codec", "stored", "all", "cores", "take"],
        ["ppm", "2.00", "KiB", "2", "h", "0", "s"], ["neural", "1.00", "KiB", "10", "d", "0", "s"],
    ]  # fmt: skip
    assert daemon.asked("compact") == [{"path": str(store), "ino": 1, "all": False, "quick": False, "dry_run": True}]
    with FakeDaemon(store, compact={"job": 3}, job=ended):
        assert json.loads(run("compact", store, "--dry-run", "--json")[1])["result"] == result


def interrupted(_: float) -> None:
    raise KeyboardInterrupt


def test_interrupted_the_job_goes_on(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.cli.progress.time.sleep", interrupted)
    with FakeDaemon(store, thaw={"job": 3}, job=job(kind="thaw")) as daemon:
        status, out, err = run("thaw", store, "--wait")
    assert (status, out) == (130, "")
    assert "task 3 goes on without you" in err
    assert f"nnfs thaw {store} --cancel" in err
    assert f"nnfs pause {store}" in err
    assert daemon.asked("cancel") == []


def test_interrupted_a_dry_run_ends(store: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.cli.progress.time.sleep", interrupted)
    with FakeDaemon(store, compact={"job": 3}, job=job(kind="dry run"), cancel={}) as daemon:
        assert run("compact", store, "--dry-run")[0] == 130
    assert daemon.asked("cancel") == [{"job": 3}]


def test_cancel_ends_all_of_its_kind(store: Path, run: Run) -> None:
    states = [("compact", "done"), ("compact", "running"), ("scrub", "queued"), ("compact", "queued")]
    jobs = [job(job=n, kind=kind, state=state, path=f"/mnt/{n}") for n, (kind, state) in enumerate(states, 1)]
    jobs.append(job(job=5, kind="dry run", state="running"))
    with FakeDaemon(store, jobs={"jobs": jobs}, cancel={}) as daemon:
        status, out, _ = run("compact", store, "--cancel")
        assert status == 0
        assert out.splitlines() == [
            "task 2 ends: compact /mnt/2",
            "task 4 ends: compact /mnt/4",
            "task 5 ends: dry run",
        ]
        assert run("thaw", store, "--cancel") == (0, "there is no thaw under way\n", "")
        assert run("scrub", store, "--cancel")[0] == 0
    assert daemon.asked("cancel") == [{"job": 2}, {"job": 4}, {"job": 5}, {"job": 3}]
    assert run("compact", store, "--cancel", "--wait")[0] == 2


def test_pause_and_resume(store: Path, run: Run) -> None:
    with FakeDaemon(store, pause={"paused": True}, resume={"paused": False}, jobs={"jobs": [job()]}) as daemon:
        status, out, _ = run("pause", store)
        assert status == 0
        assert f"nnfs resume {store}" in out
        assert run("resume", store) == (0, "resumed: task 3 (compact)\n", "")
    assert [request["command"] for request in daemon.requests] == ["pause", "resume", "jobs"]


def test_who_waits_for_paused_work_is_told(store: Path, run: Run) -> None:
    answers: dict[str, Any] = {"compact": {"job": 3}, "job": job(**DONE), "status": {"compaction": {"paused": True}}}
    with FakeDaemon(store, **answers):
        assert f"nnfs resume {store} lets it go on" in run("compact", store, "--wait")[2]


ENDED = [
    job(job=1, state="done", path="/a\udcff", stored_before=400 << 10, stored_after=100 << 10, done_bytes=1 << 20),
    job(job=2, kind="scrub", state="failed", error="no\nworker", began=1e9),
    job(job=0, kind="background", state="cancelled"),
    job(job=4, kind="scrub", state="done", result={"damaged_blocks": 30, "damaged": [{}] * 20, "repaired": 2}),
]


@pytest.mark.parametrize("mounted", [True, False])
def test_the_list_of_jobs(mounted: bool, store: Path, run: Run) -> None:
    if mounted:
        with FakeDaemon(store, jobs={"jobs": [*ENDED, job(job=5, path="/b")]}):
            status, out, _ = run("jobs", store)
            found = json.loads(run("jobs", store, "--json")[1])["jobs"]
    else:
        history = History(store / HISTORY_FILE)
        for one in ENDED:
            history.add(one)
        history.write()
        status, out, _ = run("jobs", store)
        found = json.loads(run("jobs", store, "--json")[1])["jobs"]
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["task", "what", "began", "state", "took", "done"]
    assert lines[1].split() == ["1", "compact", "/a\\xff", "-", "done", "1", "s", "1.00", "MiB"]
    assert lines[2].split()[:2] == ["2", "scrub"]
    assert "2001-09-09" in lines[2]
    assert lines[3].split()[:4] == ["-", "background", "-", "cancelled"]
    told = lines[6 if mounted else 5 :]
    assert told == [
        "task 1: 400 KiB became 100 KiB", "task 2: no\\nworker", "task 4: 30 blocks are damaged, 2 repaired",
    ]  # fmt: skip
    assert [one["job"] for one in found] == [1, 2, 0, 4, *([5] if mounted else [])]
    assert found[0]["path_hex"] == "2f61ff"


def test_no_jobs_yet(store: Path, run: Run) -> None:
    assert run("jobs", store) == run("tasks", store) == (0, "nothing has been done yet\n", "")


def test_what_has_to_be_waited_for_is_said(store: Path, run: Run) -> None:
    steps = [job(phase=phase) for phase in ("looking for cold chunks", "starting a worker", "starting a worker")]
    steps += [job(phase="measuring"), job(phase="encoding", done_bytes=200, eta=8.0, rate=100.0), job(**DONE)]
    with FakeDaemon(store, compact={"job": 3}, job=steps):
        lines = run("compact", store, "--wait")[2].splitlines()
    assert lines == [
        "compact: starting a worker", "compact: measuring", "compact: 20 % of 1000 B, 100 B/s, 8 s left",
    ]  # fmt: skip
