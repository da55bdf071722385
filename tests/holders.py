"""Names the processes that keep a mount busy, as fuser(1) does, without touching the mount itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def _links(process: Path) -> Iterator[str]:
    """Return the files that a process holds: its directories, open files and mappings."""
    for name in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield f"{name} {os.readlink(process / name)}"
    with contextlib.suppress(OSError):
        for fd in os.listdir(process / "fd"):
            with contextlib.suppress(OSError):
                yield f"fd/{fd} {os.readlink(process / 'fd' / fd)}"
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            yield f"map {line.split(maxsplit=5)[-1]}"


def holders(path: Path) -> list[str]:
    """One line "PID (command): what, where" for each thing at or beneath *path* that a process holds."""
    found: dict[str, None] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        for link in _links(process):
            if f"{link.partition(' ')[2]}/".startswith(f"{path}/"):
                with contextlib.suppress(OSError):
                    name = (process / "comm").read_text().strip()
                    found[f"{process.name} ({name}): {link}"] = None
    return list(found)
