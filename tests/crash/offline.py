"""The tree that a mount of a store would show, read by the daemon's layers in a child: some 20 times quicker."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from nnfs.fs import fsck
from nnfs.store.env import Store
from tests.crash.model import Entry, View
from tests.damage.child import in_child
from tests.damage.truth import Offline

KINDS = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l"}


def observe(store: Path, cold: Any = None, below: str = "") -> View:
    """All below a directory; `cold` decodes cold blocks. AssertionError with the traceback if it cannot be read."""

    def look() -> View:
        shown: View = {}
        opened = Store.open(store)
        _add(Offline(opened, cold), below, shown)
        opened.close()
        return {os.path.relpath(path, below) if below else path: entry for path, entry in shown.items()}

    return in_child(look)


def _add(view: Offline, folder: str, shown: View) -> None:
    for name in view.names(folder):
        path = os.path.join(folder, name)
        mode, _, _, nlink, size, mtime = view.stat(path)
        kind = KINDS[stat.S_IFMT(mode)]
        data = b"".join(piece() for piece in view.pieces(path)) if kind == "f" else b""
        assert len(data) == size or kind != "f", f"{path}: {len(data)} bytes are read, {size} were to be"
        target = view.target(path) if kind == "l" else ""
        xattrs = tuple(sorted(view.xattrs(path).items()))
        shown[path] = Entry(kind, stat.S_IMODE(mode), data, target, xattrs, nlink, mtime)
        if kind == "d":
            _add(view, path, shown)


def fsck_clean(store: Path) -> None:
    """fsck with all data finds nothing."""

    def check() -> tuple[int, object]:
        report = fsck.run(store, data=True, repair=False, progress=lambda *_: None)
        return report.exit_code, report.as_dict()

    code, report = in_child(check)
    assert code == 0, report
