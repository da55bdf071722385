"""Control groups with a limit of memory, of version 1 or 2, for processes of tests."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from nnfs.mount import table
from tests.harness import Mount, command, wait_for

MIB = 1 << 20


class Group:
    """A control group. `argv` runs a command in it."""

    def __init__(self, path: Path, limit: str, deaths: tuple[str, str]) -> None:
        self.path, self._limit, self._deaths = path, limit, deaths

    def limit(self, size: int) -> None:
        (self.path / self._limit).write_text(str(size))

    def is_empty(self) -> bool:
        return not (self.path / "cgroup.procs").read_text()

    @property
    def killed(self) -> int:
        """Processes that were killed for want of memory."""
        file, name = self._deaths
        lines = dict(line.split() for line in (self.path / file).read_text().splitlines())
        return int(lines.get(name, 0))

    def argv(self, *words: str) -> list[str]:
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', os.fspath(self.path / "cgroup.procs"), *words]

    def mounting(self, mount: Mount) -> list[str]:
        """The argv of a daemon in this group, for `Mount`."""
        return self.argv(*command("mount", str(mount.store), str(mount.path), "-f"))


def _homes() -> Iterator[tuple[Path, str, tuple[str, str]]]:
    """Yield the folders in which groups can be made, the name of their limit, and where deaths are counted."""
    for mount in table.mounts():
        if mount.fstype == "cgroup" and "memory" in mount.super_options.split(","):
            yield Path(mount.mountpoint), "memory.limit_in_bytes", ("memory.oom_control", "oom_kill")
        if mount.fstype == "cgroup2":
            home = Path(mount.mountpoint)
            with contextlib.suppress(OSError):
                (home / "cgroup.subtree_control").write_text("+memory")
            yield home, "memory.max", ("memory.events", "oom_kill")


@contextlib.contextmanager
def group(size: int) -> Iterator[Group | str]:
    """A group with this limit; where there can be none, the reason."""
    why = "no control groups for memory are mounted"
    for home, limit, deaths in _homes():
        path = home / f"nnfs-test-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir()
        except OSError as error:
            why = f"no control group can be made: {error}"
            continue
        found = Group(path, limit, deaths)
        try:
            found.limit(size)
        except OSError as error:
            why = f"no limit can be set: {error}"
            path.rmdir()
            continue
        try:
            yield found
        finally:
            wait_for("the processes of the group to end", found.is_empty)
            path.rmdir()
        return
    yield why
