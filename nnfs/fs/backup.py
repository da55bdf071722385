"""A consistent copy of a store in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnfs.errors import OutOfSpace
from nnfs.store import privacy
from nnfs.store.env import Store


def backup(store: Store, file: Path) -> dict[str, Any]:
    """Write the store as of its last commit to `file`, which appears whole or not at all. Slow: call it in a thread.

    Raises `OutOfSpace`, `StoreError`, OSError.
    """
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)  # not written into: others may have it open, or be allowed to read it
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, privacy.FILE)
    try:
        store.backup(descriptor)
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
        os.rename(partial, file)
    except OutOfSpace as error:
        os.unlink(partial)
        raise OutOfSpace(f"no space left for the backup {partial}") from error
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(descriptor)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return {"file": str(file), "bytes": size}
