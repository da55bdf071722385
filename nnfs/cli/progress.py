"""Jobs of a daemon as the command line sees them: started, watched until they end, summed up."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.locate import Place, held
from nnfs.errors import DaemonError, NnfsError, StoreDamaged

ROOT_INO = 1
FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0  # between two questions: a short job's end is seen soon, a long one costs little
STEP_PERCENT = 10  # of progress that is worth a line where there is no terminal
RUNNING = ("queued", "running")
DRY_RUN = "dry run"  # a kind of job
WAITS = ("starting a worker", "measuring")  # phases in which no chunk gets on
SHOWN, PLACES = 20, 3  # damaged blocks, files of one

Job = dict[str, Any]


def ino_of(place: Place) -> int:
    """The inode that a place names, a symbolic link's own if it names one; the root's for a store."""
    return os.lstat(place.path).st_ino if place.is_inside else ROOT_INO


def shell(place: Place) -> str:
    """The path of a place as a word of a command."""
    return names.shell(place.path)


def target(place: Place) -> dict[str, int]:
    """What a job is about; with the directory that a file lies in, since its inode does not know that."""
    if not place.is_inside or place.path.is_dir():
        return {"ino": ino_of(place)}
    return {"ino": ino_of(place), "parent": os.lstat(place.path.parent).st_ino}


def run(place: Place, command: str, *, wait: bool, json: bool, **request: Any) -> int:
    """Start a job; wait for its end when asked to, and print what came of it. Returns the exit code.

    Raises `DaemonError`, with the job's own exit code when the job failed.
    """
    answer = client.ask(place.store, command, path=os.fspath(place.path), **request)
    number, waits_for = int(answer["job"]), int(answer.get("waits_for", 0))
    state = f"waits for {waits_for} other job{'s' if waits_for > 1 else ''}" if waits_for else "is on its way"
    if answer.get("joined"):
        state = f"does the same already{f' and {state}' if waits_for else ''}"
    if not wait:
        if json:
            tables.printed_json({"job": number})
        else:
            print(f"job {number} {state}: nnfs status {shell(place)} shows it")
        return 0
    if answer.get("joined") or waits_for:
        print(f"nnfs: job {number} {state} (nnfs status {shell(place)})", file=sys.stderr)
    job = follow(place, number)
    if json:
        tables.printed_json(job)
    elif job["state"] == "done":
        print(summary(job, place))
    return end_of(job)


def follow(place: Place, number: int) -> Job:
    """Show a job's progress until it has ended, and return it. ^C leaves it running. Raises `DaemonError`."""
    with held(place):
        return _follow(place, number)


def _follow(place: Place, number: int) -> Job:
    paused = client.ask(place.store, "status").get("compaction", {}).get("paused")
    if paused:
        print(f"nnfs: work is paused; nnfs resume {shell(place)} lets it go on", file=sys.stderr)
    show: _Show = _Bar() if sys.stderr.isatty() else _Lines()
    pause, job = FIRST_POLL_S, Job()
    try:
        while True:
            job = client.ask(place.store, "job", job=number)
            if job["state"] not in RUNNING:
                return job
            show(job)
            time.sleep(pause)
            pause = min(2 * pause, LAST_POLL_S)
    except KeyboardInterrupt:
        show.close()
        if job.get("kind") == DRY_RUN:
            client.ask(place.store, "cancel", job=number)  # only we would have seen what it finds
        else:
            path = shell(place)
            print(
                f"\nnnfs: job {number} goes on without you (nnfs status {path} shows it); "
                f"nnfs {job.get('kind', 'compact')} {path} --cancel ends it, nnfs pause {path} holds it",
                file=sys.stderr,
            )
        raise
    finally:
        show.close()


def end_of(job: Job) -> int:
    """The exit code of a job that has ended. Raises `DaemonError` for one that failed or was cancelled."""
    if job["state"] == "done":
        return StoreDamaged.exit_code if _damage(job) else 0
    failure = DaemonError(f"{job['kind']} (job {job['job']}) {job['state']}: {job.get('error') or 'no reason given'}")
    if job["state"] == "cancelled":
        failure = DaemonError(f"{job['kind']} (job {job['job']}) was cancelled")
        failure.exit_code = NnfsError.exit_code
    else:
        failure.exit_code = int(job.get("exit") or failure.exit_code)
    raise failure


def _damage(job: Job) -> list[Any]:
    found = job.get("result", {}).get("damaged", [])
    return found if isinstance(found, list) else [f"{found} blocks"] if found else []


def summary(job: Job, place: Place) -> str:
    """What a job that is done has done."""
    if job.get("note") and not job["done_chunks"]:
        return f"{job['kind']}: {job['note']}"
    if job["kind"] == DRY_RUN:
        return tables.pairs(tables.flat(job["result"]))
    text = (
        f"{job['kind']}: {job['done_chunks']} chunks, {tables.size(job['done_bytes'])}, {tables.span(job['seconds'])}"
    )
    lines = [text]
    if job["stored_before"]:
        before, after = job["stored_before"], job["stored_after"]
        saved = f"{tables.size(before - after)} saved" if after <= before else f"{tables.size(after - before)} more"
        lines.append(f"recompressed: {tables.size(before)} became {tables.size(after)}, {saved}")
    if job["cold_chunks"]:
        lines.append(f"cold: {job['cold_chunks']} of these chunks")
    elif job["kind"] == "compact" and job["done_chunks"]:
        lines.append("nothing became cold: it gains nothing, or reads back too slowly (--all ignores that)")
    if job["failed_chunks"]:
        lines.append(f"failed: {job['failed_chunks']} chunks stay as they were; the daemon's log says why")
    if job.get("note"):
        lines.append(f"not used: {job['note']}")
    rest = {name: value for name, value in job.get("result", {}).items() if name != "damaged"}
    lines += [f"{name}: {value}" for name, value in tables.flat(rest)]
    found = _damage(job)
    lines += [f"damaged: {line}" for line in listed(found, place)]
    if any(isinstance(entry, dict) and entry.get("files") for entry in found):
        lines.append("to do: write these files again from a backup, or remove them; reading there is an error (EIO)")
    return "\n".join(lines)


def listed(found: list[Any], place: Place) -> list[str]:
    """Damaged blocks, one line each, and how many more there are."""
    lines = [_damaged(entry, place) if isinstance(entry, dict) else str(entry) for entry in found[:SHOWN]]
    return [*lines, *([f"and {len(found) - SHOWN} more (--json lists them)"] if len(found) > SHOWN else [])]


def _damaged(entry: dict[str, Any], place: Place) -> str:
    """Where, what, and the block's number: what a person needs first."""
    block, files = entry.get("block"), entry.get("files") or []
    why = str(entry.get("why", "")).removeprefix(f"damaged block {block}: ")
    if block is None:
        return why
    where = [shown_place(file, place) for file in files[:PLACES]]
    where += [f"{len(files) - PLACES} more places"] if len(files) > PLACES else []
    return f"{', '.join(where)}: {why} (block {block})" if where else f"block {block}: {why}"


def shown_place(file: str, place: Place) -> str:
    """A place in a file as the daemon names it, "/path at 131072", for a person who knows the mount point."""
    path, _, offset = file.rpartition(" at ")
    root = place.mount.mountpoint.rstrip("/") if place.mount is not None and path.startswith("/") else ""
    return f"{names.printable(root + path)} from byte {offset} on"


def cancel(place: Place, *kinds: str) -> int:
    """End all jobs of some kinds that have not ended yet, wherever they are at work."""
    jobs = [job for job in client.ask(place.store, "jobs")["jobs"] if job["state"] in RUNNING and job["kind"] in kinds]
    for job in jobs:
        client.ask(place.store, "cancel", job=job["job"])
        print(f"job {job['job']} ends: {named(job)}")
    if not jobs:
        print(f"there is no {kinds[0]} under way")
    return 0


def named(job: Job) -> str:
    """A job's kind and where it is at work."""
    return f"{job['kind']} {names.printable(job['path'])}" if job.get("path") else str(job["kind"])


def progress_of(job: Job) -> str:
    """Share, rate and time left, as far as they are known."""
    parts = []
    if job["total_bytes"]:
        parts.append(f"{percent(job)} % of {tables.size(job['total_bytes'])}")
    if job["rate"]:
        parts.append(f"{tables.size(int(job['rate']))}/s")
    if job["eta"] is not None:
        parts.append(f"{tables.span(job['eta'])} left")
    return ", ".join(parts)


def percent(job: Job) -> int:
    """How much of a job is done, rounded down."""
    total: int = job["total_bytes"]
    return min(100, 100 * int(job["done_bytes"]) // total) if total else 0


def title(job: Job) -> str:
    """A job's kind and what it is at."""
    return f"{job['kind']} {job['phase'] or job['state']}" if job["state"] in RUNNING else str(job["kind"])


class _Show(Protocol):
    def __call__(self, job: Job) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """For a log: one line for each tenth, and for what has to be waited for."""

    def __init__(self) -> None:
        self._next = STEP_PERCENT
        self._waits = ""

    def __call__(self, job: Job) -> None:
        if job["phase"] in WAITS and job["phase"] != self._waits:  # else nobody would know why it does not get on
            self._waits = job["phase"]
            print(f"{job['kind']}: {job['phase']}", file=sys.stderr, flush=True)
        if (now := percent(job)) >= self._next:
            self._next = now - now % STEP_PERCENT + STEP_PERCENT
            print(f"{job['kind']}: {progress_of(job)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """For a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, text="")
        self._bar.start()

    def __call__(self, job: Job) -> None:
        self._bar.update(
            self._task, description=title(job), total=job["total_bytes"] or None, completed=job["done_bytes"],
            text=progress_of(job),
        )  # fmt: skip

    def close(self) -> None:
        self._bar.stop()
