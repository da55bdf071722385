"""`nnfs df` and `nnfs status` without a path: one line for each nnfs that is mounted here."""

from __future__ import annotations

from typing import Any

from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.locate import FSTYPE, Place, locate, mounts
from nnfs.errors import DaemonError, NnfsError

Answer = dict[str, Any]


def places() -> list[tuple[str, Place | NnfsError | OSError]]:
    """Return mount points and places, each store once: by its first mount, not by a bind mount."""
    found: list[tuple[str, Place | NnfsError | OSError]] = []
    seen = set()
    for point in dict.fromkeys(entry.mountpoint for entry in mounts() if entry.fstype == FSTYPE):
        try:
            place = locate(point)
        except (NnfsError, OSError) as error:
            found.append((point, error))
            continue
        if place.store not in seen:
            seen.add(place.store)
            found.append((point, place))
    return found


def ask(command: str) -> list[Answer]:
    """Ask every daemon. Where one does not answer, `error` is the reason."""
    answers = []
    for point, place in places():
        answer: Answer = {"mountpoint": point}
        try:
            if not isinstance(place, Place):
                raise place
            answer |= {"store": str(place.store)}
            answer |= client.ask(place.store, command)
        except (NnfsError, OSError) as error:
            answer["error"] = str(error)
        answers.append(answer)
    return answers


def df(json: bool) -> int:
    """Print for each mounted store the bytes that it holds and takes."""

    def row(answer: Answer) -> list[str]:
        logical, physical, free = (answer.get(f"{name}_bytes") for name in ("logical", "physical", "free"))
        sizes = [tables.size(number) if number is not None else "-" for number in (logical, physical, free)]
        return [*sizes, tables.ratio(logical or 0, physical or 0)]

    return _show(ask("df"), ["logical", "physical", "free", "ratio"], row, json)


def status(json: bool) -> int:
    """Print for each mount what its daemon does."""

    def row(answer: Answer) -> list[str]:
        running = [task for task in answer.get("jobs", []) if task["state"] == "running"]
        now = ", ".join(task["kind"] for task in running) or answer.get("compaction", {}).get("state") or "idle"
        state = "read-only" if answer.get("read_only") else "no space" if answer.get("no_space") else "mounted"
        return [str(answer.get("pid", "-")), state, now, str(answer.get("damaged_blocks", 0))]

    return _show(ask("status"), ["pid", "state", "now", "damaged"], row, json)


def _show(answers: list[Answer], head: list[str], row: Any, json: bool) -> int:
    """Print answers as a table, then errors. Return the exit code."""
    if json:
        tables.printed_json(answers)
    elif not answers:
        print("no nnfs is mounted here")
    rows = [
        [names.printable(answer["store"]), names.printable(answer["mountpoint"]), *row(answer)]
        for answer in answers
        if "error" not in answer
    ]
    if rows and not json:
        print(tables.table(["store", "mounted on", *head], rows, left=2))
    failed = [answer for answer in answers if "error" in answer]
    if failed and not json:
        for answer in failed:
            print(f"{names.printable(answer['mountpoint'])}: {names.one_line(answer['error'])}")
    return DaemonError.exit_code if failed else 0
