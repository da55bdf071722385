"""A state machine of operations that are done in two directories: answers and whole trees must agree."""

from __future__ import annotations

import itertools
import mmap
import os
import random
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.harness import FULL, Mount, Plain
from tests.semantics.kit import CHUNK, EXCHANGE, NOREPLACE, renameat2
from tests.trees import ACLS, STRANGE_NS, XATTRS, Answer, attempt, links, look, nodes, shortened, special

NAMES = ["a", "b", "c", "long-" + "n" * 240]
PICK = range(64)
OFFSETS = [0, 1, 100, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5, 5 * CHUNK - 10]
LENGTHS = [1, 7, 100, 4096, CHUNK - 1, CHUNK, CHUNK + 9, 2 * CHUNK, 3 * CHUNK + 1]
MODES = [0o644, 0o600, 0o000, 0o755, 0o4755, 0o2755, 0o6711, 0o1777, 0o2770, 0o2644]
# Not both -1: FUSE does not pass that on when the daemon clears suid itself, as libfuse has it.
UIDS, GIDS = [0, 12001], [0, 12100, -1]
Condition = Callable[["SideBySide"], bool]
# Name, weight, condition and choices of each operation: for the random walk, which needs no shrinking and is cheaper.
OPERATIONS: list[tuple[str, float, Condition, dict[str, Sequence[Any]]]] = []


def always(_: SideBySide) -> bool:
    return True


def has_handles(machine: SideBySide) -> bool:
    return bool(machine.handles)


def operation(
    weight: float = 1, when: Condition = always, **choices: Sequence[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule of the state machine and a step of the random walk."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        OPERATIONS.append((function.__name__, weight, when, choices))
        drawn: dict[str, Any] = {name: st.sampled_from(values) for name, values in choices.items()}
        made: Any = rule(**drawn)
        ruled: Callable[..., None] = precondition(when)(made(function))
        return ruled

    return wrap


class SideBySide(RuleBasedStateMachine):
    """`both` applies an operation to the two trees and compares what it gives."""

    mount: Mount | Plain
    shm: Path
    serial = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        name = f"example-{next(self.serial)}"
        self.bases = (self.shm / name, self.mount.path / name)
        self.handles: list[tuple[int, int]] = []
        self.steps = self.mounted_at = 0
        self.mount.revive()
        self.mount.deadline()
        for base in self.bases:
            base.mkdir(0o755)

    def both(self, run: Callable[[Path], Answer]) -> Answer:
        want, got = (attempt(run, base) for base in self.bases)
        assert got == want, f"the mount gives {got!r}, tmpfs {want!r}"
        return want

    def node(self, pick: int) -> str:
        """One of the paths there are."""
        found = nodes(self.bases[0])
        return found[pick % len(found)]

    def place(self, pick: int, name: str) -> str:
        """A name in one of the directories there are; it may exist."""
        found = [n for n in nodes(self.bases[0]) if stat.S_ISDIR((self.bases[0] / n).lstat().st_mode)]
        return os.path.join(found[pick % len(found)], name)

    def file(self, pick: int) -> str | None:
        """One of the regular files."""
        found = [n for n in nodes(self.bases[0]) if stat.S_ISREG((self.bases[0] / n).lstat().st_mode)]
        return found[pick % len(found)] if found else None

    def data(self, length: int) -> bytes:
        """Bytes that differ from step to step and do not compress to nothing."""
        self.steps += 1
        return (b"%05d" % self.steps + bytes((i * self.steps) & 0xFF for i in range(256))) * (length // 261 + 1)

    # -- names --------------------------------------------------------------------------------------------------------

    @operation(2, pick=PICK, name=NAMES, bits=MODES, mask=[0, 0o022, 0o077])
    def create(self, pick: int, name: str, bits: int, mask: int) -> None:
        path = self.place(pick, name)
        os.umask(mask)
        if not special(self.bases[0] / path):
            self.both(lambda base: os.close(os.open(base / path, os.O_CREAT | os.O_WRONLY, bits)))

    @operation(pick=PICK, name=NAMES, bits=MODES, mask=[0, 0o022])
    def mkdir(self, pick: int, name: str, bits: int, mask: int) -> None:
        path = self.place(pick, name)
        os.umask(mask)
        if path.count("/") < 4:
            self.both(lambda base: os.mkdir(base / path, bits))

    @operation(pick=PICK, name=NAMES, to=["a", "b/c", "../a", "nowhere", "n" * 300])
    def symlink(self, pick: int, name: str, to: str) -> None:
        path = self.place(pick, name)
        self.both(lambda base: os.symlink(to, base / path))

    @operation(pick=PICK, name=NAMES, kind=[stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFREG])
    def mknod(self, pick: int, name: str, kind: int) -> None:
        path = self.place(pick, name)
        self.both(lambda base: os.mknod(base / path, kind | 0o640, os.makedev(1, 3) if kind == stat.S_IFCHR else 0))

    @operation(pick=PICK, to=PICK, name=NAMES)
    def link(self, pick: int, to: int, name: str) -> None:
        old, new = self.node(pick), self.place(to, name)
        self.both(lambda base: os.link(base / old, base / new, follow_symlinks=False))

    @operation(pick=PICK)
    def unlink(self, pick: int) -> None:
        path = self.node(pick)
        if path:
            self.both(lambda base: os.unlink(base / path))

    @operation(pick=PICK)
    def rmdir(self, pick: int) -> None:
        path = self.node(pick)
        if path:
            self.both(lambda base: os.rmdir(base / path))

    @operation(pick=PICK)
    def rmtree(self, pick: int) -> None:
        path = self.node(pick)
        if path and stat.S_ISDIR((self.bases[0] / path).lstat().st_mode):
            self.both(lambda base: shutil.rmtree(base / path))

    @operation(2, pick=PICK, to=PICK, name=NAMES, flags=[0, 0, 0, NOREPLACE, EXCHANGE])
    def rename(self, pick: int, to: int, name: str, flags: int) -> None:
        old, new = self.node(pick), self.place(to, name)
        if old:
            self.both(lambda base: renameat2(base / old, base / new, flags))

    @operation(pick=PICK, to=PICK, flags=[0, EXCHANGE])
    def rename_onto(self, pick: int, to: int, flags: int) -> None:
        old, new = self.node(pick), self.node(to)
        if old and new:
            self.both(lambda base: renameat2(base / old, base / new, flags))

    # -- content ------------------------------------------------------------------------------------------------------

    @operation(3, pick=PICK, offset=OFFSETS, length=LENGTHS, flags=[0, 0, os.O_APPEND, os.O_TRUNC, os.O_SYNC])
    def write(self, pick: int, offset: int, length: int, flags: int) -> None:
        path, data = self.file(pick), self.data(length)[:length]

        def run(base: Path) -> Answer:
            fd = os.open(base / str(path), os.O_WRONLY | flags)
            try:
                return os.write(fd, data) if flags & os.O_APPEND else os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        if path:
            self.both(run)

    @operation(3, pick=PICK, offset=OFFSETS, length=LENGTHS)
    def write_direct(self, pick: int, offset: int, length: int) -> None:
        path, buffer = self.file(pick), mmap.mmap(-1, (length + 4095) // 4096 * 4096)
        buffer[:] = self.data(len(buffer))[: len(buffer)]

        def run(base: Path) -> Answer:
            fd = os.open(base / str(path), os.O_WRONLY | os.O_DIRECT)
            try:
                return os.pwritev(fd, [buffer], offset // 4096 * 4096)
            finally:
                os.close(fd)

        if path:
            self.both(run)

    @operation(3, pick=PICK, offset=OFFSETS, length=LENGTHS, flush=[False, True])
    def write_mapped(self, pick: int, offset: int, length: int, flush: bool) -> None:
        path = self.file(pick)
        if not path or (size := (self.bases[0] / path).stat().st_size) <= offset:
            return
        data = self.data(length)[: min(length, size - offset)]

        def run(base: Path) -> None:
            with (base / path).open("r+b") as f, mmap.mmap(f.fileno(), 0) as m:
                m[offset : offset + len(data)] = data
                if flush:
                    m.flush()

        self.both(run)

    @operation(3, pick=PICK, size=OFFSETS + LENGTHS)
    def truncate(self, pick: int, size: int) -> None:
        path = self.file(pick)
        if path:
            self.both(lambda base: os.truncate(base / path, size))

    @operation(pick=PICK)
    def read(self, pick: int) -> None:
        path = self.file(pick)
        if path:
            self.both(lambda base: (base / path).read_bytes())

    # -- handles that stay open, whatever becomes of the name ---------------------------------------------------------

    @operation(2, lambda self: len(self.handles) < 4, pick=PICK)
    def open(self, pick: int) -> None:
        path = self.file(pick)
        if path:
            one, two = (os.open(base / path, os.O_RDWR) for base in self.bases)
            self.handles.append((one, two))

    def on_handles(self, pick: int, run: Callable[[int], Answer]) -> None:
        def on(fd: int) -> Answer:
            return attempt(lambda _: run(fd), self.shm)

        want, got = map(on, self.handles[pick % len(self.handles)])
        assert got == want, f"the mount gives {got!r}, tmpfs {want!r}"

    @operation(2, has_handles, pick=PICK, offset=OFFSETS, length=LENGTHS)
    def write_handle(self, pick: int, offset: int, length: int) -> None:
        data = self.data(length)[:length]
        self.on_handles(pick, lambda fd: os.pwrite(fd, data, offset))

    @operation(2, has_handles, pick=PICK, size=OFFSETS)
    def truncate_handle(self, pick: int, size: int) -> None:
        self.on_handles(pick, lambda fd: os.ftruncate(fd, size))

    @operation(2, has_handles, pick=PICK)
    def look_at_handle(self, pick: int) -> None:
        def run(fd: int) -> Answer:
            os.fsync(fd)
            st_ = os.fstat(fd)
            return oct(st_.st_mode), st_.st_nlink, st_.st_size, st_.st_uid, os.pread(fd, 1 << 20, 0)

        self.on_handles(pick, run)

    @operation(2, has_handles, pick=PICK)
    def close(self, pick: int) -> None:
        for fd in self.handles.pop(pick % len(self.handles)):
            os.close(fd)

    # -- attributes ---------------------------------------------------------------------------------------------------

    @operation(pick=PICK, bits=MODES)
    def chmod(self, pick: int, bits: int) -> None:
        path = self.node(pick)
        self.both(lambda base: None if (base / path).is_symlink() else os.chmod(base / path, bits))

    @operation(pick=PICK, uid=UIDS, gid=GIDS)
    def chown(self, pick: int, uid: int, gid: int) -> None:
        path = self.node(pick)
        self.both(lambda base: os.lchown(base / path, uid, gid))

    @operation(pick=PICK, ns=STRANGE_NS)
    def utime(self, pick: int, ns: int) -> None:
        path = self.node(pick)
        self.both(lambda base: os.utime(base / path, ns=(ns, ns), follow_symlinks=False))

    @operation(pick=PICK, name=XATTRS, size=[0, 5, 300, 700], flags=[0, 0, 1, 2])
    def setxattr(self, pick: int, name: str, size: int, flags: int) -> None:
        path, value = self.node(pick), self.data(size)[:size]
        self.both(lambda base: os.setxattr(base / path, name, value, flags, follow_symlinks=False))

    @operation(pick=PICK, name=XATTRS)
    def removexattr(self, pick: int, name: str) -> None:
        path = self.node(pick)
        self.both(lambda base: os.removexattr(base / path, name, follow_symlinks=False))

    @operation(pick=PICK, value=ACLS, kind=["access", "default"])
    def set_acl(self, pick: int, value: bytes, kind: str) -> None:
        path, name = self.node(pick), f"system.posix_acl_{kind}"
        self.both(lambda base: os.setxattr(base / path, name, value, follow_symlinks=False))

    @operation(pick=PICK, kind=["access", "default"])
    def remove_acl(self, pick: int, kind: str) -> None:
        path, name = self.node(pick), f"system.posix_acl_{kind}"
        if name in os.listxattr(self.bases[0] / path, follow_symlinks=False):
            self.both(lambda base: os.removexattr(base / path, name, follow_symlinks=False))

    # -- the store ----------------------------------------------------------------------------------------------------

    @operation()
    def fsync_directory(self) -> None:
        def run(base: Path) -> None:
            fd = os.open(base, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

        self.both(run)

    @operation()
    def drop_caches(self) -> None:
        self.mount.drop_caches()

    @operation(1, lambda self: self.steps > self.mounted_at + 8)
    def remount(self) -> None:
        self.mounted_at = self.steps
        self.close_all()
        self.mount.remount()
        self.mount.deadline()
        self.same_trees()

    @operation(3, lambda self: hasattr(self.mount, "turn_round"))
    def turn_round(self) -> None:
        """Let some blocks change under the files, where the mount does that (tests.background.kit)."""
        self.mount.turn_round()  # type: ignore[union-attr]

    # -- comparing ----------------------------------------------------------------------------------------------------

    @invariant()
    def same_names(self) -> None:
        assert nodes(self.bases[1]) == nodes(self.bases[0])

    def same_trees(self) -> None:
        for name in nodes(self.bases[0]):
            want, got = look(self.bases[0] / name), look(self.bases[1] / name)
            differ = {key: (got[key], want[key]) for key in want if got.get(key) != want[key]}
            assert not differ, f"{name!r}: on the mount, on tmpfs: {shortened(differ)}"
        assert links(self.bases[1]) == links(self.bases[0])

    def close_all(self) -> None:
        for pair in self.handles:
            for fd in pair:
                os.close(fd)
        self.handles = []

    def teardown(self) -> None:
        try:
            self.same_trees()
            self.mount.drop_caches()
            self.same_trees()
        finally:
            self.close_all()
            os.umask(0o022)
            for base in self.bases:
                shutil.rmtree(base, ignore_errors=True)


def side_by_side(mounted: Mount | Plain, shm: Path, examples: int) -> None:
    """Examples of hypothesis, shrunk when they fail."""

    class Machine(SideBySide):
        mount = mounted

    Machine.shm = shm
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=80 if FULL else 40,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def walk(mounted: Mount | Plain, shm: Path, seed: int) -> None:
    """Longer than the examples of the state machine, so trees grow; a failure names its steps."""

    class Machine(SideBySide):
        mount = mounted

    Machine.shm = shm
    rng = random.Random(seed)
    machine = Machine()
    steps: list[str] = []
    try:
        for _ in range(1000 if FULL else 250):
            able = [o for o in OPERATIONS if o[2](machine)]
            name, _, _, choices = rng.choices(able, [o[1] for o in able])[0]
            drawn = {key: rng.choice(values) for key, values in choices.items()}
            steps.append(f"{name}({', '.join(f'{k}={v!r}' for k, v in drawn.items())})")
            getattr(machine, name)(**drawn)
            machine.same_names()
        machine.teardown()
    except AssertionError as e:
        e.add_note("\n".join(steps[-30:]))
        machine.close_all()
        raise
