"""The page of `nnfs report`: what a store holds, what takes the space, what is wrong, and what can still be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import nnfs
from nnfs.cli import tables
from nnfs.cli.html import palette, treemap
from nnfs.cli.html.text import cut, escaped, shortened

MOST = 300_000  # bytes of a page
LISTED = 20  # rows of a table of names
SCRUB_DAYS = 40  # after which a scrub is called old, as by the rules for Prometheus
HOUR, DAY = 3600.0, 86_400.0
GREAT = 0.8  # of a directory in one directory within it: then that one is listed in its place

Facts = dict[str, Any]
Cell = str | tuple[str, str]  # text, and its class
Piece = Callable[[Facts], Iterator[str]]


def page(facts: Facts) -> str:
    """Return the page of these facts (`nnfs.cli.report` gathers them), at most `MOST` bytes of UTF-8."""
    least = treemap.LEAST
    while True:
        text = "".join(_page(facts, least))
        if len(text.encode()) <= MOST or least > treemap.WIDTH * treemap.HEIGHT:
            return text
        least *= 2  # a name of many characters that must be escaped takes more than others


def _page(facts: Facts, least: float) -> Iterator[str]:
    store = escaped(shortened(facts["store"]))
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>nnfs: {store}</title><style>{palette.css()}</style></head><body>"
    where = facts.get("mountpoint")
    place = f"mounted on {escaped(shortened(where))}" if where else "not mounted"
    yield f"<header><h1>nnfs: {store}</h1>"
    yield f'<p class="dim">{place}; {tables.date(facts["time"])}, nnfs {escaped(nnfs.__version__)}</p></header><main>'
    yield from _figures(facts)
    for part in (_codecs, lambda facts: _map(facts, least), _gain, _health, _directories, _snapshots, _policy):
        yield from part(facts)
    yield "</main></body></html>\n"


def _figures(facts: Facts) -> Iterator[str]:
    df = facts["df"]
    logical, physical = df["logical_bytes"], df["physical_bytes"]
    saved = f"{100 * (1 - physical / logical):.0f} %" if logical > physical else "nothing yet"
    pairs = [
        ("content of all files", tables.size(logical)), ("payloads", tables.size(df["stored_bytes"])),
        ("on disk, with metadata", tables.size(physical)), ("saved on disk", saved),
        ("inodes", f"{df['inodes']:,}"), ("free below", tables.size(df["free_bytes"])),
    ]  # fmt: skip
    yield "<dl>"
    for name, value in pairs:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"
    yield "</dl>"


def _codecs(facts: Facts) -> Iterator[str]:
    """Yield the table by codec, in the form of compsize."""
    files, sums = facts["summary"]["files_by_codec"], dict[str, list[int]]()
    for line in facts["df"]["codecs"]:
        own = sums.setdefault(line["codec"], [0, 0, 0])
        for place, field in enumerate(("chunks", "stored_bytes", "plain_bytes")):
            own[place] += line[field]
    rows: list[Sequence[Cell]] = [_codec(name, f"{files.get(name, 0):,}", own) for name, own in sums.items()]
    every = [sum(own[place] for own in sums.values()) for place in range(3)]
    total = facts["summary"]["tree"]["files"]
    rows.insert(0, _codec("all", f"{total:,}", every))
    caption = "A file counts for each codec that its chunks have; a chunk that several files share counts once."
    yield "<h2>By codec</h2>"
    yield from _table(caption, ("type", "files", "chunks", "stored", "logical", "percent"), rows, first="sum")


def _codec(name: str, files: str, own: Sequence[int]) -> Sequence[Cell]:
    chunks, stored, plain = own
    return name, files, f"{chunks:,}", tables.size(stored), tables.size(plain), _percent(plain, stored)


def _percent(logical: int, stored: int) -> str:
    return f"{100 * stored / logical:.1f} %" if logical else "-"


def _map(facts: Facts, least: float) -> Iterator[str]:
    yield "<h2>What takes the space</h2>"
    if not facts["summary"]["tree"]["stored_bytes"]:
        yield "<p>Nothing is stored yet.</p>"
        return
    yield f"<figure>{treemap.svg(facts['summary']['tree'], least)}<figcaption>"
    yield "Area: stored bytes. Colour: what is left of the content:"
    yield '<ul class="key">'
    for number, label in enumerate(palette.labels()):
        yield f'<li><i class="s{number}"></i>{label}</li>'
    yield "</ul></figcaption></figure>"


def _gain(facts: Facts) -> Iterator[str]:
    df = facts["df"]
    yield "<h2>To gain</h2>"
    if df.get("gain") is not None:
        yield f"<p>Recompressing hot data will save about {tables.size(df['gain'])}.</p>"
    rows: list[Sequence[Cell]] = [
        (
            row["codec"], tables.size(row["plain_bytes"]),
            "not known yet" if row["saves_bytes"] is None else tables.size(max(0, row["saves_bytes"])),
            _hours(row["seconds"]),
        )
        for row in df.get("rungs", [])
    ]  # fmt: skip
    if not rows:
        yield "<p>No cold codec has anything before it.</p>"
        return
    caption = "What each cold codec has before it in the background, from quick to small; the codecs follow each other."
    yield from _table(caption, ("codec", "content ahead", "saves about", "hours"), rows)
    yield '<p class="dim"><code>nnfs compact PATH --dry-run</code> encodes a sample for a better estimate.</p>'


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "known while mounted"
    return f"{seconds / HOUR:,.1f}" if seconds >= HOUR / 10 else "less than 0.1"


def _health(facts: Facts) -> Iterator[str]:
    yield "<h2>Soundness</h2>"
    troubles = list(_troubles(facts))
    yield '<p class="bad">Something is wrong:</p><ul>' if troubles else "<p>Nothing is known to be wrong.</p>"
    for text in troubles:
        yield f'<li class="bad">{escaped(cut(text))}</li>'
    yield "</ul>" if troubles else ""
    rows: list[Sequence[Cell]] = []
    for kind, what in (("checksums", "checksums of all payloads"), ("deep", "everything decoded, all hashes")):
        at = facts["scrubbed"].get(kind)
        days = (facts["time"] - at) / DAY if at else None
        age = "never" if days is None else f"{days:,.0f} days ago"
        old = kind == "checksums" and (days is None or days > SCRUB_DAYS)
        rows.append((what, tables.date(at) if at else "-", (age, "bad" if old else "")))
    caption = "The last scrub that found all sound. <code>nnfs scrub PATH</code> looks again."
    yield from _table(caption, ("scrub", "begun", "age"), rows)


def _troubles(facts: Facts) -> Iterator[str]:
    """Yield what is wrong, a sentence each."""
    status, summary = facts.get("status", {}), facts["summary"]
    for field, text in (("lost", "the data file"), ("read_only", "read-only:"), ("device_errs", "")):
        if status.get(field):
            yield f"{text} {status[field] if status[field] is not True else 'it is mounted so'}".strip()
    if status.get("no_space"):
        yield "a commit waits for room on the disk below"
    found = facts.get("damaged", [])
    yield from found[:LISTED]
    if len(found) > LISTED:
        yield f"and {len(found) - LISTED} more damaged blocks (nnfs status --json)"
    if summary["tree"]["damaged"] or summary["damaged_files"]:
        count = summary["tree"]["damaged"] + summary["damaged_files"]
        yield f"{count} inodes or files have damaged records: run nnfs fsck"
    for one in status.get("codecs_out", []):
        yield f"codec {one['codec']} cannot run here: {one['why']}; {one['cure']}"


def _directories(facts: Facts) -> Iterator[str]:
    yield "<h2>Largest directories</h2>"
    found = sorted(_largest(facts["summary"]["tree"]), key=lambda one: -one[1]["stored_bytes"])
    if not found:
        yield "<p>None takes a part of the whole that could be seen.</p>"
        return
    rows: list[Sequence[Cell]] = [
        (
            escaped(shortened(path)), f"{node['files']:,}", tables.size(node["stored_bytes"]),
            tables.size(node["logical_bytes"]), _percent(node["logical_bytes"], node["stored_bytes"]),
        )
        for path, node in found[:LISTED]
    ]  # fmt: skip
    caption = "With everything below them; a directory nearly all of which lies in one below it is left out."
    yield from _table(caption, ("directory", "files", "stored", "logical", "percent"), rows)


def _largest(root: Facts) -> Iterator[tuple[str, Facts]]:
    """Yield the directories below the root with their paths, but those that hold little besides another one."""
    open_ = [("", root)]
    while open_:
        path, node = open_.pop()
        below = [one for one in node["children"] if one["is_directory"]]
        if path and all(one["stored_bytes"] <= GREAT * node["stored_bytes"] for one in below):
            yield path, node
        open_ += [(f"{path}/{one['name']}" if path else one["name"], one) for one in below]


def _snapshots(facts: Facts) -> Iterator[str]:
    yield "<h2>Snapshots</h2>"
    found = facts["snapshots"]
    if not found:
        yield "<p>There are none.</p>"
        return
    rows: list[Sequence[Cell]] = [
        (
            escaped(shortened(one["name"])) + (" (being deleted)" if one["deleting"] else ""),
            tables.date(one["created"]), f"{one['inodes']:,}", tables.size(one["logical_bytes"]),
            tables.size(one["only_here_bytes"]), tables.size(one["written_since_bytes"]),
        )
        for one in found[::-1][:LISTED]
    ]  # fmt: skip
    caption = f"{len(found)} in all, the newest first. Only here: what deleting just this one would free."
    yield from _table(caption, ("snapshot", "taken", "inodes", "logical", "only here", "written since"), rows)


def _policy(facts: Facts) -> Iterator[str]:
    summary = facts["summary"]
    yield f"<h2>Policy of recompression</h2><p>Where nothing else is set: <b>{escaped(facts['policy'])}</b>.</p>"
    found = summary["policies"]
    if not found:
        return
    rows: list[Sequence[Cell]] = [(escaped(shortened(one["path"]) or "/"), one["policy"]) for one in found[:LISTED]]
    if len(found) > LISTED:
        rows.append((f"and {'more than ' if summary['more_policies'] else ''}{len(found) - LISTED} more", ""))
    yield from _table("Files and directories with a policy of their own.", ("path", "policy"), rows)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], first: str = "") -> Iterator[str]:
    """Yield a table. Texts are HTML already; `first` is the class of the first row."""
    yield f"<table><caption>{caption}</caption><thead><tr>"
    yield from (f'<th scope="col">{text}</th>' for text in head)
    yield "</tr></thead><tbody>"
    for number, row in enumerate(rows):
        yield f'<tr class="{first}">' if first and not number else "<tr>"
        for cell in row:
            text, kind = cell if isinstance(cell, tuple) else (cell, "")
            yield f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"
        yield "</tr>"
    yield "</tbody></table>"
