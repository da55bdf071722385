"""Files of results, which appear whole under their names or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from nnfs import names
from nnfs.errors import OutOfSpace, UsageError
from nnfs.store.reserve import NO_ROOM


def exists(file: Path) -> UsageError:
    """Return the error for a file that is there and must not be replaced."""
    return UsageError(f"{names.printable(file)} exists: give another name, or --force to replace it")


def write(file: Path, content: str | bytes, mode: int = 0o600, *, replace: bool = True, durable: bool = True) -> None:
    """Write a file in one step, so that no reader finds a part of it, and a failure leaves what was there.

    A device or pipe is written to. Raises OSError, `OutOfSpace`, and without `replace` `UsageError` for a file that is
    there.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", names.ERRORS)
    if os.path.exists(file):
        file = Path(os.path.realpath(file))  # a link stays one
        if not stat.S_ISREG(os.stat(file).st_mode):
            with open(file, "wb") as stream:  # a device or a pipe
                stream.write(data)
            return
    partial = file.with_name(f".{file.name[:60]}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(descriptor)
        _name(partial, file, replace=replace)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutOfSpace(f"{names.printable(file)}: no space left for it; nothing was written") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def _name(partial: Path, file: Path, *, replace: bool) -> None:
    """Give a file its name."""
    if replace:
        os.replace(partial, file)
        return
    try:
        os.link(partial, file)
    except FileExistsError:
        raise exists(file) from None
    except OSError:  # a filesystem without links
        if os.path.lexists(file):
            raise exists(file) from None
        os.rename(partial, file)
