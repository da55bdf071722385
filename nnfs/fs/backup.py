"""A consistent copy of a store in one file, and increments: what has changed since an earlier backup."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from nnfs.constants import DATA_FILE
from nnfs.errors import ArchiveDamaged, NotAStore, OutOfSpace, StoreDamaged, UsageError
from nnfs.store import increments, privacy, schema
from nnfs.store.env import Store, is_empty
from nnfs.store.increments import Digests, Head
from nnfs.store.reserve import NO_ROOM
from nnfs.store.schema import State
from nnfs.store.txn import load_twice

RECORDS = 5000  # of an increment that are applied in one txn
PIECE = 1 << 20  # bytes


def backup(store: Store, file: Path, since: Path | None = None) -> dict[str, Any]:
    """Write the store as of its last commit to `file`, which appears whole or not at all. Slow: call it in a thread.

    With `since`, an earlier backup, write only what has changed since. Raises `OutOfSpace`, `StoreError`, `UsageError`,
    `ArchiveDamaged`, OSError.
    """
    if since is None:
        return {"file": str(file), "bytes": _written(file, lambda partial: _copy(store, partial))}
    head, digests = _base(since)
    if head.uuid != store.superblock.uuid:
        raise UsageError(f"{since} is a backup of another store")
    with store.read() as snapshot:
        state: State = load_twice(snapshot, schema.STATE_KEY, State.unpack)[0]
        if head.commit > state.commit:
            raise UsageError(f"{since} is of commit {head.commit}, and the store is at {state.commit}: it is newer")
        new = Head(head.uuid, head.commit, state.commit, head.next, state.next_number)

        def write(partial: BinaryIO) -> None:
            increments.write(snapshot, new, digests, partial)
            partial.flush()
            increments.prove(partial)

        return {"file": str(file), "bytes": _written(file, write), "since": head.commit, "commit": state.commit}


def _copy(store: Store, partial: BinaryIO) -> None:
    """Write the whole store, and read it again. Raises `ArchiveDamaged` when that is not what was written."""
    written = hashlib.blake2b()
    source, sink = os.pipe()

    def receive() -> None:
        with open(source, "rb", buffering=0) as pipe:
            while piece := pipe.read(PIECE):
                partial.write(piece)
                written.update(piece)
            partial.flush()

    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive)
        try:
            store.backup(sink)
        finally:
            os.close(sink)
            received.result()  # its error is why the store could not be written into the pipe
    os.fsync(partial.fileno())
    os.posix_fadvise(partial.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else memory would be read, not the disk
    partial.seek(0)
    there = hashlib.blake2b()
    while piece := partial.read(PIECE):
        there.update(piece)
    if there.digest() != written.digest():
        raise ArchiveDamaged("the backup is not what was written: check the disk and the memory, then try again")


def _written(file: Path, write: Callable[[BinaryIO], None]) -> int:
    """Have a file written beside its place, durably, and give it its name. Return its size."""
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)  # not written into: others may have it open, or be allowed to read it
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, privacy.FILE)
    try:
        with open(descriptor, "w+b") as opened:
            write(opened)
            opened.flush()
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        os.rename(partial, file)
    except OutOfSpace as error:
        os.unlink(partial)
        raise OutOfSpace(f"no space left for the backup {partial}") from error
    except OSError as error:
        os.unlink(partial)
        if error.errno in NO_ROOM:
            raise OutOfSpace(f"no space left for the backup {partial}") from error
        raise
    except BaseException:
        os.unlink(partial)
        raise
    _sync(file.parent)
    return size


def _sync(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _base(since: Path) -> tuple[Head, Digests]:
    """Return the state that an earlier backup, a whole one or an increment, has saved."""
    with since.open("rb") as file:
        if increments.is_increment(file):
            head = _proved(file, since)
            for _ in increments.parts(file):
                pass
            return head, increments.digests_of(file)
    with tempfile.TemporaryDirectory() as folder:  # it may lie where nothing can be written
        os.symlink(since.resolve(), Path(folder, DATA_FILE))
        try:
            store = Store.open(Path(folder), readonly=True)
        except (NotAStore, StoreDamaged) as error:
            raise UsageError(f"{since} is no backup of a store, or a damaged one") from error
        try:
            with store.read() as snapshot:
                state, found = store.state, increments.digests(snapshot)
            return Head(store.superblock.uuid, 0, state.commit, 0, state.next_number), found
        finally:
            store.close()


def _proved(file: BinaryIO, path: Path) -> Head:
    try:
        increments.prove(file)
    except ArchiveDamaged as error:
        raise ArchiveDamaged(f"{path}: {error}: use another copy of it, or the parts before it only") from error
    return increments.head_of(file)


def restore(whole: Path, parts: Sequence[Path], target: Path) -> dict[str, Any]:
    """Make a store of a whole backup and the increments after it, in their order. It appears whole or not at all.

    Raises `UsageError` when the parts do not follow each other, `ArchiveDamaged`, `NotAStore`, `OutOfSpace`.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        heads = [_proved(file, part) for file, part in zip(files, parts, strict=True)]
        made = not target.exists()
        if not made and not is_empty(target):
            raise UsageError(f"{target} is not empty: name a directory that is, or that does not exist")
        target.mkdir(privacy.FOLDER, exist_ok=True)
        draft = target / ".restoring"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(privacy.FOLDER)
            commit = _replayed(whole, list(zip(parts, heads, files, strict=True)), draft)
            os.rename(draft / DATA_FILE, target / DATA_FILE)
            _sync(target)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if made:
                target.rmdir()
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise OutOfSpace(f"no space left for the store {target}") from error
            raise
        shutil.rmtree(draft, ignore_errors=True)
    return {"store": str(target), "commit": commit, "parts": len(parts)}


def _replayed(whole: Path, parts: list[tuple[Path, Head, BinaryIO]], draft: Path) -> int:
    """Copy the whole backup, apply the increments, and compare the result of each. Return the last commit."""
    with whole.open("rb") as file:
        if increments.is_increment(file):
            raise UsageError(f"{whole} is an increment: begin with the whole backup that it follows")
    shutil.copyfile(whole, draft / DATA_FILE)
    os.chmod(draft / DATA_FILE, privacy.FILE)
    try:
        store = Store.open(draft)
    except (NotAStore, StoreDamaged) as error:
        raise ArchiveDamaged(f"{whole} is no backup of a store, or a damaged one") from error
    try:
        commit = store.state.commit
        for path, head, part in parts:
            if head.uuid != store.superblock.uuid:
                raise UsageError(f"{path} is of another store")
            if head.base != commit:
                why = "a part before it is missing" if head.base > commit else "it is given too late, or twice"
                raise UsageError(f"{path} follows commit {head.base}, and what was before it ends at {commit}: {why}")
            _apply(store, path, part)
            commit = head.commit
    finally:
        store.close()
    with (draft / DATA_FILE).open("rb") as written:
        os.fsync(written.fileno())
    return commit


def _apply(store: Store, path: Path, file: BinaryIO) -> None:
    parts = increments.parts(file)
    more = True
    while more:
        with store.write() as txn:
            more, count = False, 0
            for table, group, records in parts:
                increments.apply(txn, table, group, records)
                count += len(records)
                if count >= RECORDS:
                    more = True
                    break
    with store.read() as snapshot:
        if increments.digests(snapshot) != increments.digests_of(file):
            raise StoreDamaged(f"{path}: the store is not what was backed up: is the backup before it damaged?")
