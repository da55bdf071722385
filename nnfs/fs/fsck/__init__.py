"""fsck: checks every invariant of FORMAT.md, and repairs a store without making up content.

Derived values (counts, sums, the hash index, link counts, second copies) are computed anew, inodes without a name get
one in /lost+found, and entries that lead nowhere are removed. A damaged block or map node stays, reading it stays an
error, and the files that it belongs to are named.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from nnfs.constants import DATA_FILE
from nnfs.errors import NnfsError, RecordDamaged, StoreDamaged, UsageError
from nnfs.fs.fsck.blocks import Blocks
from nnfs.fs.fsck.context import Context, Problem, Progress, Report
from nnfs.fs.fsck.fixer import Fixer, apply_fixes
from nnfs.fs.fsck.kept import Kept, check_moments
from nnfs.fs.fsck.models import check_scrub
from nnfs.fs.fsck.quotas import check_quotas
from nnfs.fs.fsck.tree import DIR, Entries, check_directories, check_inodes, check_links, check_orphans, check_xattrs
from nnfs.fs.fsck.vectors import check_vectors
from nnfs.fs.pastpaths import shown_path
from nnfs.store import schema
from nnfs.store.env import Store, lock_directory
from nnfs.store.moments import INO_MASK, PAST
from nnfs.store.restore import restore_meta
from nnfs.store.schema import Dentry, State, Superblock
from nnfs.store.txn import Snapshot, load_twice
from nnfs.store.verify import page_damage

__all__ = ["Problem", "Report", "check", "run"]

ADVICE = "restore a backup, or copy what can still be read from a mount with -o ro; keep a copy of the store before"
ROUNDS = 4  # a repair can bring the next problem to light


def run(path: Path, *, data: bool, repair: bool, progress: Progress) -> Report:
    """Check the store in a directory from its pages upwards.

    Raises `NotAStore`, `StoreBusy`, `StoreTooNew`, `UsageError` when it cannot be checked.
    """
    meta, damage = _pages(path, repair, progress)
    if meta and not repair:
        return Report(meta, ["nothing else could be checked: run nnfs fsck --repair, which begins with the meta page"])
    if damage:
        report = _in_child(path, data, progress)
        report.problems[:0] = [Problem("page", line) for line in damage]
        report.notes.append(f"pages of {DATA_FILE} are damaged, its records were not repaired: {ADVICE}")
    else:
        try:
            store = Store.open(path, readonly=not repair)
        except StoreDamaged as error:
            return Report([*meta, Problem("store", str(error))])
        try:
            report = check(store, data=data, repair=repair, progress=progress)
        finally:
            store.close()
    report.problems[:0] = meta
    return report


def _pages(path: Path, repair: bool, progress: Progress) -> tuple[list[Problem], list[str]]:
    """Return the damage of a meta page that can be repaired, or with `repair` has been; and that of all other pages."""
    data_file = path / DATA_FILE
    if not data_file.is_file():
        return [], []  # Store.open says it better
    lock = lock_directory(path)
    try:
        message = restore_meta(data_file, dry_run=not repair)
        meta = [Problem("meta", message, fix=lambda _: None, fixed=repair)] if message else []
        progress("pages", 0, 1)
        return meta, page_damage(data_file)
    finally:
        os.close(lock)


def _in_child(path: Path, data: bool, progress: Progress) -> Report:
    """Check in a child process everything that the engine can still read: damaged pages may crash it."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            store = Store.open(path, readonly=True)
            found = check(store, data=data, repair=False, progress=progress)
            with open(theirs, "w", encoding="utf-8") as pipe:
                json.dump(found.as_dict(), pipe)
        except NnfsError as error:
            with open(theirs, "w", encoding="utf-8") as pipe:
                json.dump(Report([Problem("store", str(error))]).as_dict(), pipe)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    report = Report()
    if not text:
        report.notes.append("the records could not be checked: the engine fails on the damaged pages")
        return report
    answer = json.loads(text)
    for found in answer["errors"]:
        report.problems.append(Problem(found["kind"], found["message"], tuple(found["inodes"]), paths=found["paths"]))
    report.notes, report.counts = answer["notes"], Counter(answer["counts"])
    report.unchecked = answer["unchecked"]
    return report


def check(store: Store, *, data: bool, repair: bool, progress: Progress) -> Report:
    """Check an open store that nobody else changes; with `repair`, repair it and check it again."""
    if repair and store.moments_lost:
        raise UsageError(f"{store.path} cannot be repaired: {store.moments_lost}")
    if repair and store.read_only:
        raise UsageError(f"{store.path} has features that this nnfs does not know: it cannot be repaired by it")
    context = _round(store, data, progress, whole=data)
    if not repair or context.unreadable:
        return context.report
    fixed: list[Problem] = []
    done: list[str] = []
    first = context.report
    carried = [problem for problem in first.problems if problem.kind == "data"]
    for _ in range(ROUNDS):
        done += apply_fixes(store, context)
        repaired = [problem for problem in context.report.problems if problem.fixed]
        if not repaired:
            break
        fixed += repaired
        context = _round(store, False, progress, whole=data)
    report = context.report
    left = [problem for problem in report.problems if problem.kind != "data"]
    report.problems = fixed + carried + left
    report.notes += done
    if report is not first:  # later rounds decode nothing
        report.unchecked = first.unchecked
        report.notes += first.unchecked
    return report


def _round(store: Store, data: bool, progress: Progress, *, whole: bool) -> Context:
    """Do all checks once: `data` decodes all chunks, `whole` walks the tree of each snapshot."""
    with store.read() as snapshot:
        context = Context(store, snapshot, store.state, data=data, progress=progress)
        for key, unpack in ((schema.SUPER_KEY, Superblock.unpack), (schema.STATE_KEY, State.unpack)):
            for line in load_twice(snapshot, key, unpack)[1]:
                context.problem("copies", line, fix=lambda _: None)  # every repair writes both copies
        check_moments(context)
        context.kept = Kept(context)
        check_inodes(context)
        check_orphans(context)
        Entries(context).run()
        check_directories(context)
        check_links(context)
        check_quotas(context)
        check_xattrs(context)
        check_scrub(context)
        check_vectors(context)
        Blocks(context).run()
        context.kept.check_trees(whole=whole)
        _check_state(context)
        _name_files(context, snapshot)
    return context


def _check_state(c: Context) -> None:
    """Compare the counters of the state with the records."""
    there = len(c.nodes) + len(c.damaged_inodes)
    if c.unreadable:
        return
    if c.state.inodes != there:
        fix = partial(Fixer.set_state, name="inodes", value=there)
        c.problem("state", f"number of inodes {c.state.inodes}, not {there}", fix=fix, derived=True)
    last = max([*c.nodes, *c.damaged_inodes], default=0)
    if c.state.next_ino <= last or c.state.next_ino < schema.FIRST_FREE_INO:
        fix = partial(Fixer.set_state, name="next_ino", value=max(last + 1, schema.FIRST_FREE_INO))
        c.problem("state", f"next inode number {c.state.next_ino}, but there is {last}", fix=fix, derived=True)
    used = max((int.from_bytes(key[:8], "big") for key in map(c.snapshot.last, ("block", "payload")) if key), default=0)
    if c.state.next_number <= used:
        fix = partial(Fixer.set_state, name="next_number", value=used + 1)
        c.problem("state", f"next block number {c.state.next_number}, but there is {used}", fix=fix, derived=True)
    if c.state.clean_commit > c.state.commit:
        fix = partial(Fixer.set_state, name="clean_commit", value=0)
        c.problem("state", f"clean unmount at commit {c.state.clean_commit}, after the last", fix=fix, derived=True)


def _name_files(c: Context, snapshot: Snapshot) -> None:
    """Add to problems the paths of their inodes: directories are known, files are found by one more scan."""
    wanted = {ino for problem in c.report.problems for ino in (*problem.inodes, *(ino for ino, _ in problem.chunks))}
    wanted |= {ino & INO_MASK for ino in wanted}
    files = wanted - {ino for ino in wanted if ino in c.nodes and c.nodes[ino].kind == DIR}
    names: dict[int, tuple[int, bytes]] = {}
    if files:
        for key, record in snapshot.range("dentry", b""):
            try:
                dentry = Dentry.unpack(key, record)
            except RecordDamaged:
                continue
            if dentry.ino in files:
                names.setdefault(dentry.ino, (schema.KEY2.unpack(key)[0] & INO_MASK, dentry.name))
    for problem in c.report.problems:
        for ino in dict.fromkeys(problem.inodes):
            problem.paths.append(_path(c, snapshot, names, ino))
        size = c.store.superblock.chunk_size
        for ino, chunk in problem.chunks:
            problem.paths.append(f"{_path(c, snapshot, names, ino)} at {chunk * size}")


def _path(c: Context, snapshot: Snapshot, names: dict[int, tuple[int, bytes]], ino: int) -> str:
    """Return the path of an inode; `names` has directory and name of each file."""
    if ino >= PAST:
        return shown_path(snapshot, ino, names)
    parts: list[bytes] = []
    seen: set[int] = set()
    while ino != schema.ROOT_INO and ino not in seen:
        seen.add(ino)
        node = c.nodes.get(ino)
        if ino in names:
            ino, name = names[ino]
        elif node is not None and node.kind == DIR and node.parent:
            key = schema.KEY2.pack(node.parent, node.cookie)
            record = snapshot.get("dentry", key)
            ino, name = node.parent, Dentry.unpack(key, record).name if record else b"?"
        else:
            parts.append(b"<inode %d>" % ino)
            return os.fsdecode(b"/".join(reversed(parts)))
        parts.append(name)
    return os.fsdecode(b"/" + b"/".join(reversed(parts)))
