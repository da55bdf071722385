"""The state that all checks share: problems found so far, a summary of every inode, scans that survive damage."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnfs.errors import StoreDamaged
from nnfs.store.env import Store
from nnfs.store.moments import Moment
from nnfs.store.schema import State
from nnfs.store.txn import Snapshot

if TYPE_CHECKING:
    from nnfs.fs.fsck.fixer import Fixer
    from nnfs.fs.fsck.kept import Kept

MASK = (1 << 64) - 1
KEPT = 100_000  # problems of one kind kept for messages and repair; the rest is counted, and found by the next round

CLEAN, CORRECTED, LEFT, FAILED = 0, 1, 4, 8  # exit statuses of fsck(8); the last is added to the others

Progress = Callable[[str, int, int], None]
Fix = Callable[["Fixer"], None]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Problem:
    """One broken invariant. `fix` repairs it; a problem without `fix` stays."""

    kind: str
    message: str
    inodes: tuple[int, ...] = ()
    fix: Fix | None = None
    is_derived: bool = False  # its fix sets a value computed from the records as they are, before others change them
    fixed: bool = False
    chunks: list[tuple[int, int]] = field(default_factory=list)  # (inode, chunk) that cannot be read because of it
    paths: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "message": self.message, "fixed": self.fixed, "fixable": self.fix is not None,
            "inodes": list(self.inodes), "paths": self.paths,
        }  # fmt: skip


@dataclass(slots=True)
class Report:
    """The result of a check: problems, notes (legal, but good to know), and how many records were checked."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    omitted: Counter[str] = field(default_factory=Counter)  # problems by kind beyond those kept
    unchecked: list[str] = field(default_factory=list)  # of the notes: those of checks that could not be made

    @property
    def exit_code(self) -> int:
        code = CORRECTED if self.problems else CLEAN
        if self.omitted or any(not problem.fixed for problem in self.problems):
            code = LEFT
        return code | FAILED if self.unchecked else code

    def as_dict(self) -> dict[str, Any]:
        return {
            "clean": not self.problems and not self.omitted and not self.unchecked,
            "exit_code": self.exit_code,
            "errors": [problem.as_dict() for problem in self.problems],
            "omitted": dict(self.omitted),
            "unchecked": self.unchecked,
            "notes": self.notes,
            "counts": dict(self.counts),
        }


@dataclass(slots=True)
class Node:
    """The summary of one inode. Records that are found are subtracted from `count`, `proof` and `xattrs`, down to 0."""

    kind: int  # mode >> 12
    nlink: int
    flags: int
    size: int
    aux: int
    count: int
    proof: int
    xattrs: int
    links: int = 0  # dentries that name it
    subdirs: int = 0
    parent: int = 0  # of a directory: the one whose dentry names it
    cookie: int = 0  # of that dentry


class Context:
    """One pass of checks over one snapshot, and what it has found."""

    def __init__(self, store: Store, snapshot: Snapshot, state: State, *, data: bool, progress: Progress) -> None:
        self.store, self.snapshot, self.state, self.data, self.progress = store, snapshot, state, data, progress
        self.report = Report()
        self.nodes: dict[int, Node] = {}
        self.damaged_inodes: dict[int, int] = {}  # to the kind that a dentry says it has, 0 unknown
        self.orphans: set[int] = set()
        self.uncertain: set[int] = set()  # files whose map nodes are damaged or lost: references may be missed
        self.unreadable = False  # a table could not be read to its end: nobody knows which records are lost
        self.moments: list[Moment] = []  # snapshots, oldest first
        self.lost_moments = False  # the records of some are damaged
        self.kept: Kept
        self._told: Counter[str] = Counter()

    def problem(self, kind: str, message: str, *inodes: int, fix: Fix | None = None, derived: bool = False) -> Problem:
        problem = Problem(kind, message, inodes, fix, derived)
        self._told[kind] += 1
        if self._told[kind] <= KEPT:
            self.report.problems.append(problem)
        else:
            self.report.omitted[kind] += 1
        return problem

    def note(self, message: str) -> None:
        self.report.notes.append(message)

    def unchecked(self, message: str) -> None:
        """Note a check that could not be made."""
        self.report.notes.append(message)
        self.report.unchecked.append(message)

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield all records of a table; damage of the engine's pages ends it with a problem."""
        total, done = self.store.entries(table), 0
        try:
            for item in self.snapshot.range(table, b""):
                if done % 1024 == 0:
                    self.progress(table, done, total)
                done += 1
                yield item
        except StoreDamaged as error:
            self.problem("page", f"table {table} ends after {done} of {total} records: {error}")
            self.unreadable = True
            return
        if done != total:
            self.problem("page", f"table {table} has {done} records, not {total}")
            self.unreadable = True
        self.report.counts[table] = done

    def check_commit(self, record: str, commit: int, *inodes: int) -> None:
        """Check that a record, named for people, is not newer than the last commit."""
        if commit > self.state.commit:
            newer = commit

            def fix(fixer: Fixer) -> None:
                fixer.state.commit = max(fixer.state.commit, newer + 1)

            message = f"{record} is of commit {commit}, the last one is {self.state.commit}"
            self.problem("commit", message, *inodes, fix=fix)

    def may_be(self, ino: int, kind: int) -> bool:
        """Return whether there is an inode of this type, or one whose record is damaged."""
        node = self.nodes.get(ino)
        return node.kind == kind if node is not None else ino in self.damaged_inodes
