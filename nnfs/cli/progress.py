"""Tasks of a daemon as the command line sees them: started, watched until they end, summed up."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.locate import Place, held
from nnfs.constants import ROOT_INO
from nnfs.errors import DaemonError, NnfsError, StoreDamaged

FIRST_POLL_S, LAST_POLL_S = 0.05, 1.0  # between two questions: a short task's end is seen soon, a long one costs little
STEP_PERCENT = 10  # of progress that is worth a line where there is no terminal
RUNNING = ("queued", "running")
DRY_RUN = "dry run"  # a kind of task
WAITS = ("starting a worker", "measuring")  # phases in which no chunk gets on
SHOWN, PLACES = 20, 3  # damaged blocks, files of one

Task = dict[str, Any]


def ino_of(place: Place) -> int:
    """Return the number of a place's inode: of a symbolic link its own, of a store the root."""
    return os.lstat(place.path).st_ino if place.is_inside else ROOT_INO


def shell(place: Place) -> str:
    """Return the path of a place as a word of a command."""
    return names.shell(place.path)


def target(place: Place) -> dict[str, int]:
    """Return the inode number of a task's target; of a file also its directory's, which the inode does not name."""
    if not place.is_inside or place.path.is_dir():
        return {"ino": ino_of(place)}
    return {"ino": ino_of(place), "parent": os.lstat(place.path.parent).st_ino}


def run(place: Place, command: str, *, wait: bool, json: bool, **request: Any) -> int:
    """Start a task. With --wait wait for its end and print the result. Return the exit code.

    Raises `DaemonError`, with the task's own exit code when the task failed.
    """
    answer = client.ask(place.store, command, path=os.fspath(place.path), **request)
    number, waits_for = int(answer["job"]), int(answer.get("waits_for", 0))
    state = f"waits for {waits_for} other task{'s' if waits_for > 1 else ''}" if waits_for else "is on its way"
    if answer.get("joined"):
        state = f"does the same already{f' and {state}' if waits_for else ''}"
    if not wait:
        if json:
            tables.printed_json({"job": number})
        else:
            print(f"task {number} {state}: nnfs status {shell(place)} shows it")
        return 0
    if answer.get("joined") or waits_for:
        names.say(f"task {number} {state} (nnfs status {shell(place)})")
    task = follow(place, number, show=_Objects() if json and not request.get("dry_run") else None)
    if json:
        tables.printed_json(task, in_one_line=not request.get("dry_run"))
    elif task["state"] == "done":
        print(summary(task, place))
    return end_of(task)


def follow(place: Place, number: int, show: Show | None = None) -> Task:
    """Show a task's progress until it has ended, and return the task. ^C leaves it running. Raises `DaemonError`.

    Without `show`: as a bar on a terminal, else as lines, on standard error.
    """
    with held(place):
        return _follow(place, number, show)


def _follow(place: Place, number: int, show: Show | None) -> Task:
    paused = client.ask(place.store, "status").get("compaction", {}).get("paused")
    if paused:
        names.say(f"work is paused; nnfs resume {shell(place)} lets it go on")
    show = show or display()
    pause, task = FIRST_POLL_S, Task()
    try:
        while True:
            task = client.ask(place.store, "job", job=number)
            if task["state"] not in RUNNING:
                return task
            show(task)
            time.sleep(pause)
            pause = min(2 * pause, LAST_POLL_S)
    except KeyboardInterrupt:
        show.close()
        if task.get("kind") == DRY_RUN:
            client.ask(place.store, "cancel", job=number)  # nobody else would see its findings
        else:
            path = shell(place)
            print(
                f"\nnnfs: task {number} goes on without you (nnfs status {path} shows it); "
                f"nnfs {task.get('kind', 'compact')} {path} --cancel ends it, nnfs pause {path} holds it",
                file=sys.stderr,
            )
        raise
    finally:
        show.close()


def end_of(task: Task) -> int:
    """Return the exit code of a task that has ended. Raises `DaemonError` for one that failed or was cancelled."""
    if task["state"] == "done":
        return StoreDamaged.exit_code if _damage(task) else 0
    failure = DaemonError(
        f"{task['kind']} (task {task['job']}) {task['state']}: {task.get('error') or 'no reason given'}"
    )
    if task["state"] == "cancelled":
        failure = DaemonError(f"{task['kind']} (task {task['job']}) was cancelled")
        failure.exit_code = NnfsError.exit_code
    else:
        failure.exit_code = int(task.get("exit") or failure.exit_code)
    raise failure


def _damage(task: Task) -> list[Any]:
    found = task.get("result", {}).get("damaged", [])
    return found if isinstance(found, list) else [f"{found} blocks"] if found else []


def summary(task: Task, place: Place) -> str:
    """Return the summary of a task that is done."""
    if task.get("note") and not task["done_chunks"]:
        return f"{task['kind']}: {task['note']}"
    if task["kind"] == DRY_RUN:
        return "\n".join([tables.pairs(tables.flat(task["result"])), *_rungs(task["result"])])
    what = f"{task['done_chunks']} chunks, {tables.size(task['done_bytes'])}, {tables.span(task['seconds'])}"
    lines = [f"{task['kind']}: {what}"]
    if task["stored_before"]:
        before, after = task["stored_before"], task["stored_after"]
        saved = f"{tables.size(before - after)} saved" if after <= before else f"{tables.size(after - before)} more"
        lines.append(f"recompressed: {tables.size(before)} became {tables.size(after)}, {saved}")
    if task["cold_chunks"]:
        lines.append(f"cold: {task['cold_chunks']} of these chunks")
    elif task["kind"] == "compact" and task["done_chunks"]:
        lines.append("nothing became cold: it gains nothing, or reads back too slowly (--all ignores that)")
    if task["failed_chunks"]:
        lines.append(f"failed: {task['failed_chunks']} chunks stay as they were; the daemon's log says why")
    if task.get("note"):
        lines.append(f"not used: {task['note']}")
    rest = {name: value for name, value in task.get("result", {}).items() if name != "damaged"}
    lines += [f"{name}: {value}" for name, value in tables.flat(rest)]
    found = _damage(task)
    lines += [f"damaged: {line}" for line in listed(found, place)]
    if any(isinstance(entry, dict) and entry.get("files") for entry in found):
        lines.append("to do: write these files again from a backup, or remove them; reading there is an error (EIO)")
    return "\n".join(lines)


def _rungs(result: dict[str, Any]) -> list[str]:
    """Return the table of sizes and hours that each codec would reach, on all cores of this machine."""
    rows = [
        [row["codec"], tables.size(row["stored_bytes"]), tables.span(row["seconds"])] for row in result.get("rungs", [])
    ]
    return ["", tables.table(["up to codec", "stored", "all cores take"], rows)] if rows else []


def lines_of(found: list[Any], place: Place) -> list[str]:
    """Return a line for each damaged block."""
    return [_damaged(entry, place) if isinstance(entry, dict) else str(entry) for entry in found]


def listed(found: list[Any], place: Place) -> list[str]:
    """Return a line for each damaged block, and one for the number of those left out."""
    lines = lines_of(found[:SHOWN], place)
    return [*lines, *([f"and {len(found) - SHOWN} more (--json lists them)"] if len(found) > SHOWN else [])]


def _damaged(entry: dict[str, Any], place: Place) -> str:
    """Return one line about a damaged block: place, reason and number."""
    block, files = entry.get("block"), entry.get("files") or []
    why = str(entry.get("why", "")).removeprefix(f"damaged block {block}: ")
    if block is None:
        return why
    where = [shown_place(file, place) for file in files[:PLACES]]
    where += [f"{len(files) - PLACES} more places"] if len(files) > PLACES else []
    return f"{', '.join(where)}: {why} (block {block})" if where else f"block {block}: {why}"


def shown_place(file: str, place: Place) -> str:
    """Return a place in a file, which the daemon names "/path at 131072", with the mount point in front."""
    path, _, offset = file.rpartition(" at ")
    root = place.mount.mountpoint.rstrip("/") if place.mount is not None and path.startswith("/") else ""
    return f"{names.printable(root + path)} from byte {offset} on"


def cancel(place: Place, *kinds: str) -> int:
    """Cancel all tasks of some kinds that have not ended yet, on whatever path they work."""
    tasks = [
        task for task in client.ask(place.store, "jobs")["jobs"] if task["state"] in RUNNING and task["kind"] in kinds
    ]
    for task in tasks:
        client.ask(place.store, "cancel", job=task["job"])
        print(f"task {task['job']} ends: {named(task)}")
    if not tasks:
        print(f"there is no {kinds[0]} under way")
    return 0


def named(task: Task) -> str:
    """Return a task's kind and path."""
    return f"{task['kind']} {names.printable(task['path'])}" if task.get("path") else str(task["kind"])


def progress_of(task: Task) -> str:
    """Return share, rate and time left of a task, as far as they are known."""
    parts = []
    if task["total_bytes"]:
        parts.append(f"{percent(task)} % of {tables.size(task['total_bytes'])}")
    if task["rate"]:
        parts.append(f"{tables.size(int(task['rate']))}/s")
    if task["eta"] is not None:
        parts.append(f"{tables.span(task['eta'])} left")
    return ", ".join(parts)


def percent(task: Task) -> int:
    """Return how many percent of a task are done, rounded down."""
    total: int = task["total_bytes"]
    return min(100, 100 * int(task["done_bytes"]) // total) if total else 0


def title(task: Task) -> str:
    """Return a task's kind and phase."""
    return f"{task['kind']} {task['phase'] or task['state']}" if task["state"] in RUNNING else str(task["kind"])


def display() -> Show:
    """Return a bar for a terminal, else lines for a log, on standard error."""
    return _Bar() if sys.stderr.isatty() else _Lines()


def objects() -> Show:
    """Return a display for programs: one object a second on standard output."""
    return _Objects()


class Show(Protocol):
    """A display of a task that is called with its state from time to time, and closed at its end."""

    def __call__(self, task: Task) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Progress for a log: a line for each tenth, and for each phase in which no chunk gets on."""

    def __init__(self) -> None:
        self._next = STEP_PERCENT
        self._waits = ""

    def __call__(self, task: Task) -> None:
        if task["phase"] in WAITS and task["phase"] != self._waits:  # the user must know why it makes no progress
            self._waits = task["phase"]
            print(f"{task['kind']}: {task['phase']}", file=sys.stderr, flush=True)
        if (now := percent(task)) >= self._next:
            self._next = now - now % STEP_PERCENT + STEP_PERCENT
            print(f"{task['kind']}: {progress_of(task)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _Objects:
    """Progress for a program: the running task each second, as one line of JSON on standard output."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, task: Task) -> None:
        if (now := time.monotonic()) - self._told >= LAST_POLL_S:
            self._told = now
            tables.printed_json(task, in_one_line=True)

    def close(self) -> None:
        pass


class _Bar:
    """Progress for a terminal: a bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, text="")
        self._bar.start()

    def __call__(self, task: Task) -> None:
        self._bar.update(
            self._task, description=title(task), total=task["total_bytes"] or None, completed=task["done_bytes"],
            text=progress_of(task),
        )  # fmt: skip

    def close(self) -> None:
        self._bar.stop()
