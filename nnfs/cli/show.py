"""`nnfs df`, `nnfs status` and `nnfs stat`: asked of the daemon, or worked out here when the store is not mounted."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nnfs.cli import client, tables
from nnfs.cli.locate import Place, locate

if TYPE_CHECKING:
    from nnfs.store.env import Store

ROOT_INO = 1


def _answer(place: Place, command: str, offline: Callable[[Store], dict[str, Any]], **args: Any) -> dict[str, Any]:
    if place.mount is not None or client.daemon_pid(place.store) is not None:
        return client.ask(place.store, command, timeout=None if command == "stat" else client.TIMEOUT_S, **args)
    from nnfs.store.env import Store

    store = Store.open(place.store)
    try:
        return offline(store)
    finally:
        store.close()


def df(args: argparse.Namespace) -> int:
    """Space: logical, stored, physical, by codec."""

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import report

        return report.df_report(store)

    answer = _answer(locate(args.path), "df", offline)
    if args.json:
        tables.printed_json(answer)
        return 0
    print(codec_table(answer["codecs"]))
    print()
    logical, stored, physical = (answer[f"{name}_bytes"] for name in ("logical", "stored", "physical"))
    print(tables.pairs([
        ("logical", f"{tables.size(logical)}, content of all files"),
        ("stored", f"{tables.size(stored)}, payloads; ratio {tables.ratio(logical, stored)}"),
        ("physical", f"{tables.size(physical)}, on disk with all metadata; ratio {tables.ratio(logical, physical)}"),
    ]))  # fmt: skip
    return 0


def codec_table(codecs: list[dict[str, Any]]) -> str:
    """One line per codec and model."""
    rows = [
        [
            line["codec"], (line["fingerprint"] or "-")[:12], str(line["chunks"]), tables.size(line["plain_bytes"]),
            tables.size(line["stored_bytes"]), tables.ratio(line["plain_bytes"], line["stored_bytes"]),
        ]
        for line in codecs
    ]  # fmt: skip
    return tables.table(["codec", "model", "chunks", "plain", "stored", "ratio"], rows, left=2)


def status(args: argparse.Namespace) -> int:
    """What the daemon is doing."""
    place = locate(args.path)

    def offline(store: Store) -> dict[str, Any]:
        clean = store.state.clean_commit == store.state.commit
        return {"store": str(store.path), "mounted": False, "commit": store.state.commit, "clean": clean}

    answer = _answer(place, "status", offline)
    if answer.get("mounted") is not False:
        answer = {"store": str(place.store), "mounted": True, **answer}
    if args.json:
        tables.printed_json(answer)
    else:
        print(tables.pairs(list(_flat(answer))))
    return 0


def _flat(answer: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in answer.items():
        label = prefix + name.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, Mapping):
            lines += _flat(value, f"{label} ")
        elif name.endswith("_bytes") and isinstance(value, int):
            lines.append((label, tables.size(value)))
        elif name == "uptime" and isinstance(value, int | float):
            lines.append((label, tables.span(value)))
        elif isinstance(value, bool):
            lines.append((label, "yes" if value else "no"))
        else:
            lines.append((label, "-" if value is None or value == "" else str(value)))
    return lines


def stat(args: argparse.Namespace) -> int:
    """One file: chunks, codecs, stored bytes; of a directory the sum of all below it."""
    place = locate(args.path)
    ino = os.lstat(place.path).st_ino if place.is_inside else ROOT_INO

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import report

        with store.read() as snapshot:
            return report.stat_report(snapshot, ino)

    answer = {"path": os.fspath(place.path), **_answer(place, "stat", offline, ino=ino)}
    if args.json:
        tables.printed_json(answer)
        return 0
    plain, stored = answer["plain_bytes"], answer["stored_bytes"]
    chunks, piece = answer["chunks"], tables.size(answer["chunk_size"])
    lines = [
        ("path", answer["path"]),
        ("inode", f"{answer['ino']}, {answer['type']}"),
        ("size", tables.size(answer["size"])),
        *([("below it", f"{answer['inodes']} inodes")] if "inodes" in answer else []),
        ("chunks", f"{chunks} of up to {piece}, {answer['shared']} of them shared, {answer['holes']} holes"),
        ("stored", f"{tables.size(stored)} for {tables.size(plain)}; ratio {tables.ratio(plain, stored)}"),
    ]
    if answer["damaged"]:
        lines.append(("damaged", f"{answer['damaged']} chunks or map nodes: run nnfs fsck"))
    print(tables.pairs(lines))
    if answer["codecs"]:
        print()
        print(codec_table(answer["codecs"]))
    return 0
