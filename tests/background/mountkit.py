"""A mount whose workers may misbehave, and commands to its daemon, for tests of recompression."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.background.kit import Chaos
from tests.caches import sync_fs
from tests.conftest import why_no_mount
from tests.harness import wait_for

CHUNK = 131072
Start = Callable[..., Chaos]

mounts = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def end_of(mount: Chaos, number: int) -> dict[str, Any]:
    """Return a task once it has ended."""

    def ended() -> dict[str, Any] | None:
        found = mount.ask("job", job=number)
        return None if found["state"] in ("queued", "running") else found

    return wait_for(f"task {number}", ended, step=0.02)


def target(path: Path) -> dict[str, int]:
    parent = {} if path.is_dir() else {"parent": path.parent.stat().st_ino}
    return {"ino": path.stat().st_ino, **parent}


def done(mount: Chaos, command: str, path: Path, **args: Any) -> dict[str, Any]:
    """Return a task that must end well."""
    task = end_of(mount, mount.ask(command, **target(path), **args)["job"])
    assert task["state"] == "done", task
    return task


def codecs(mount: Chaos, path: Path) -> dict[str, int]:
    """Chunks by codec of a file or of all that is below a directory."""
    found: Counter[str] = Counter()
    for line in mount.ask("stat", ino=path.stat().st_ino)["codecs"]:
        found[line["codec"]] += line["chunks"]
    return dict(found)


def turn(mount: Chaos, path: Path, codec: str) -> None:
    """Wait until all of a file is in one codec."""
    wait_for(f"{path} to become {codec}", lambda: codecs(mount, path).keys() == {codec}, step=0.02)


def sync(mount: Chaos) -> None:
    """Have everything committed: syncfs(2) takes the kernel's pages to the daemon, and no further."""
    sync_fs(mount.path)
    descriptor = os.open(mount.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def cold_read(path: Path) -> bytes:
    """A file's content, from the daemon."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def settled(mount: Chaos) -> int:
    """Return the number of files in the store that are marked."""
    return int(mount.ask("passes")["settled"])
