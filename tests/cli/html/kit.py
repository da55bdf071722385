"""Facts of a report, and a reader of its page."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "rect", "br", "link"}
HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'&amp;&lt;", "bad\udcff\udcfe\nbytes\x00\x1b[31m",
    "</svg></title></style><h1>", "\u202egnp.exe", "{}", "]]>", "-->",
]  # fmt: skip


def node(name: str, stored: int, logical: int, *children: dict[str, Any], files: int = 1) -> dict[str, Any]:
    return {
        "name": name, "is_directory": bool(children), "files": files + sum(one["files"] for one in children),
        "stored_bytes": stored, "logical_bytes": logical, "children": list(children),
    }  # fmt: skip


def tree(*children: dict[str, Any], more: int = 0) -> dict[str, Any]:
    stored, logical = (sum(one[f"{kind}_bytes"] for one in children) + more for kind in ("stored", "logical"))
    root = node("", stored, logical, *children, files=bool(more))
    return {**root, "is_directory": True, "damaged": 0, "inodes": 5}


def facts(root: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The facts of a store whose tree is this."""
    codecs = [
        {"codec": "zstd", "fingerprint": None, "chunks": 3, "plain_bytes": 4000, "stored_bytes": 1000},
        {"codec": "neural", "fingerprint": "ab" * 32, "chunks": 2, "plain_bytes": 1000, "stored_bytes": 100},
        {"codec": "neural", "fingerprint": "cd" * 32, "chunks": 1, "plain_bytes": 1000, "stored_bytes": 100},
    ]  # fmt: skip
    df = {
        "logical_bytes": 6000, "stored_bytes": 1200, "physical_bytes": 3000, "free_bytes": 1 << 30, "inodes": 5,
        "codecs": codecs, "gain": 2048,
        "rungs": [{"codec": "cm", "plain_bytes": 4000, "saves_bytes": 500, "seconds": 7200.0}],
    }  # fmt: skip
    summary = {
        "tree": root, "files_by_codec": {"zstd": 2, "neural": 1}, "policies": [], "more_policies": False,
        "damaged_files": 0,
    }  # fmt: skip
    return {
        "time": 1_800_000_000.0, "store": "/data", "mountpoint": "/mnt/nn", "status": {}, "df": df,
        "summary": summary, "snapshots": [], "policy": "auto", "damaged": [],
        "scrubbed": {"checksums": 1_800_000_000.0 - 50 * 86400, "deep": None},
    } | changes  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and texts of a page. Fails on elements that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.texts: list[str] = []
        self.rects: list[tuple[str, float]] = []  # class of the group, area
        self._class = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.attributes.update(given.keys())
        if tag == "g":
            self._class = given["class"] or ""
        if tag == "rect" and given["class"] == "t":
            self.rects.append((self._class, float(given["width"] or 0) * float(given["height"] or 0)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)
