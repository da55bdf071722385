"""The commands `nnfs df`, `nnfs status` and `nnfs stat`. They ask the daemon, or read a store that is not mounted."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnfs import names
from nnfs.cli import client, everywhere, policy, progress, tables
from nnfs.cli.locate import Place, locate

if TYPE_CHECKING:
    from nnfs.store.env import Store


def ask_or_read(place: Place, command: str, offline: Callable[[Store], dict[str, Any]], **args: Any) -> dict[str, Any]:
    """Ask the daemon, or have `offline` read a store that is not mounted."""
    if place.mount is not None or client.daemon_pid(place.store) is not None:
        is_long = command in ("stat", "du", "search")  # all below a directory is visited
        return client.ask(place.store, command, timeout=None if is_long else client.TIMEOUT_S, **args)
    return from_store(place.store, offline)


def from_store(path: Path, read: Callable[[Store], dict[str, Any]]) -> dict[str, Any]:
    """Have `read` look at a store that is not mounted."""
    from nnfs.store.env import Store

    store = Store.open(path, readonly=True)
    try:
        return read(store)
    finally:
        store.close()


def df(args: argparse.Namespace) -> int:
    """Print logical, stored and physical bytes, by codec; without a path for all mounts."""
    if args.path is None:
        return everywhere.df(args.json)

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import report

        return report.df_report(store)

    answer = ask_or_read(locate(args.path), "df", offline)
    if args.json:
        tables.printed_json(answer)
        return 0
    print(codec_table(answer["codecs"]))
    print()
    logical, stored, physical = (answer[f"{name}_bytes"] for name in ("logical", "stored", "physical"))
    lines = [
        ("logical", f"{tables.size(logical)}, content of all files"),
        ("stored", f"{tables.size(stored)}, payloads; {_ratios(logical, stored)}"),
        ("physical", f"{tables.size(physical)}, on disk with all metadata; {_ratios(logical, physical)}"),
    ]
    if answer.get("model_bytes"):
        lines.append(("models", f"{tables.size(answer['model_bytes'])} of that, two copies of each"))
    if answer.get("thawed_bytes"):
        lines.append(
            ("thawed", f"{tables.size(answer['thawed_bytes'])} more, copies of cold data that was read lately")
        )
    if answer.get("gain") is not None:
        lines.append(("to gain", f"about {tables.size(answer['gain'])}, by recompressing hot data"))
    lines += [(f"ahead: {row['codec']}", _ahead(row)) for row in answer.get("rungs", [])]
    print(tables.pairs(lines))
    return 0


def _ratios(plain: int, stored: int) -> str:
    return f"ratio {tables.ratio(plain, stored)}, {tables.bits(plain, stored)} bits/byte"


def codec_table(codecs: list[dict[str, Any]]) -> str:
    """Return a table with one line for each codec and model."""
    sums = {name: sum(line[name] for line in codecs) for name in ("chunks", "plain_bytes", "stored_bytes")}
    total = [{"codec": "all", "fingerprint": "", **sums}] if len(codecs) > 1 else []
    rows = [
        [
            line["codec"], "-" if line["fingerprint"] is None else line["fingerprint"][:12], str(line["chunks"]),
            tables.size(line["plain_bytes"]), tables.size(line["stored_bytes"]),
            tables.ratio(line["plain_bytes"], line["stored_bytes"]),
            tables.bits(line["plain_bytes"], line["stored_bytes"]),
        ]
        for line in codecs + total
    ]  # fmt: skip
    return tables.table(["codec", "model", "chunks", "plain", "stored", "ratio", "bits/byte"], rows, left=2)


def status(args: argparse.Namespace) -> int:
    """Print what the daemon does; without a path for all mounts."""
    if args.path is None:
        return everywhere.status(args.json)
    place = locate(args.path)

    def offline(store: Store) -> dict[str, Any]:
        clean = store.state.clean_commit == store.state.commit
        return {"store": str(store.path), "mounted": False, "commit": store.state.commit, "clean": clean}

    answer = ask_or_read(place, "status", offline)
    if answer.get("mounted") is not False:
        answer = {"store": str(place.store), "mounted": True, **answer}
    if args.json:
        tables.printed_json(answer)
    else:
        print(_status_text(answer, place))
    return 0


def _status_text(answer: dict[str, Any], place: Place) -> str:
    """Return the daemon's fields, then recompression and damage, then a table of the workers."""
    rest = dict(answer)
    rest.pop("data_file", None)
    lost = rest.pop("lost", "")
    scrubbed, speeds = rest.pop("scrubbed", None), rest.pop("speeds", [])
    recompression, thaw = rest.pop("compaction", None), rest.pop("thaw_seconds_per_mib", {})
    workers, damaged, tasks, out = (rest.pop(name, []) for name in ("workers", "damaged", "jobs", "codecs_out"))
    paused = bool(recompression and recompression.get("paused"))
    running = [task for task in tasks if task["state"] == "running"]
    lines = [("now", _task_line(task, paused)) for task in running] or [("now", "paused" if paused else "idle")]
    lines = tables.flat(rest) if rest.get("mounted") is False else [*lines, *tables.flat(rest)]
    if lost:
        saving = f"nnfs backup {progress.shell(place)} FILE"
        lines.insert(0, ("LOST", f"the data file {lost}: before the unmount, {saving} saves what it holds"))
    if scrubbed is not None:
        lines.append(("scrubbed", _scrubbed(scrubbed)))
    if recompression is not None:
        lines += tables.flat(recompression, "recompression ")
        lines += [(f"ahead: {row['codec']}", _ahead(row)) for row in recompression.get("rungs", [])]
    lines += [("thaw", f"{seconds:.2f} s per MiB ({codec})") for codec, seconds in thaw.items()]
    lines += [(f"codec {one['codec']}", f"cannot run: {one['why']}; {one['cure']}") for one in out]
    lines += [("speed", _speed(speed)) for speed in speeds]
    lines += [(f"task {task['job']}", _task_line(task, paused)) for task in tasks if task["job"]]  # 0: the background's
    lines += [("damaged", line) for line in progress.listed(damaged, place)]
    if damaged:
        repair = f"nnfs scrub {progress.shell(place)} --wait"
        lines.append(("", f"{repair} repairs what can be repaired, and names the files"))
    parts = [tables.pairs(lines)]
    if workers:
        texts, counts = ["name", "device", "state", "pid"], ["starts", "deaths", "answered", "failed"]
        rows = [
            [str(line.get(name) or "-") for name in texts] + [str(line.get(name, 0)) for name in counts]
            for line in workers
        ]
        head = ["worker", *texts[1:], *counts]
        parts += ["", tables.table(head, rows, left=3)]
        parts += [names.one_line(f"{line['name']}: {line['last_error']}") for line in workers if line.get("last_error")]
    return "\n".join(parts)


def _ahead(row: dict[str, Any]) -> str:
    """Return in one line how much a codec has ahead in the background, and how much that saves."""
    plain, saves = tables.size(row["plain_bytes"]), row["saves_bytes"]
    saved = "not known yet what it saves" if saves is None else f"about {tables.size(max(0, saves))} less"
    return f"{plain} of content, {saved}, {tables.span(row['seconds'])}"


def _scrubbed(times: dict[str, float | None]) -> str:
    """Return when everything was last found sound: the beginning of the last scrub that looked at all blocks."""
    names_of = {"checksums": "checksums", "deep": "decoded"}
    return "; ".join(f"{names_of[kind]} {tables.date(at) if at else 'never'}" for kind, at in times.items())


def _speed(speed: dict[str, Any]) -> str:
    """Return the speed of a worker with a codec, as measured lately, as text."""
    parts = [
        f"{name} {tables.size(int((1 << 20) / seconds))}/s"
        for name, seconds in (
            ("encodes", speed["encode_seconds_per_mib"]), ("decodes", speed["decode_seconds_per_mib"]),
        )
        if seconds
    ]  # fmt: skip
    return f"{speed['codec']} (worker {speed['worker']}): {', '.join(parts)}"


def _task_line(task: dict[str, Any], paused: bool) -> str:
    state = "paused" if paused and task["state"] == "running" else task["phase"] or task["state"]
    parts = [progress.named(task), state, progress.progress_of(task)]
    return ", ".join(part for part in parts if part)


def stat(args: argparse.Namespace) -> int:
    """Print chunks, codecs and stored bytes of a file; of a directory the sum of everything below it."""
    place = locate(args.path)
    ino = progress.ino_of(place)

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import report

        with store.read() as snapshot:
            return report.stat_report(snapshot, ino)

    answer = {"path": os.fspath(place.path), **ask_or_read(place, "stat", offline, ino=ino)}
    held = policy.find(place) if place.is_inside else None
    if held is not None:
        answer |= {"policy": held.policy, "policy_from": os.fspath(held.source) if held.source else None}
    if args.json:
        tables.printed_json(answer)
        return 0
    plain, stored = answer["plain_bytes"], answer["stored_bytes"]
    chunks, piece = answer["chunks"], tables.size(answer["chunk_size"])
    lines = [
        ("path", names.printable(answer["path"])),
        ("inode", f"{answer['ino']}, {answer['type']}"),
        ("size", tables.size(answer["size"])),
        *([("below it", f"{answer['inodes']} inodes")] if "inodes" in answer else []),
        ("chunks", f"{chunks} of up to {piece}, {answer['shared']} of them shared, {answer['holes']} holes"),
        ("stored", f"{tables.size(stored)} for {tables.size(plain)}; {_ratios(plain, stored)}"),
        *([("policy", str(held))] if held is not None else []),
    ]
    if answer["damaged"]:
        lines.append(("damaged", f"{answer['damaged']} chunks or map nodes: run nnfs fsck"))
    print(tables.pairs(lines))
    if answer["codecs"]:
        print()
        print(codec_table(answer["codecs"]))
    return 0
