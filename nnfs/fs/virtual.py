"""Computed extended attributes, `user.nnfs.*`: readable by name, never listed (or rsync -X would try to copy them)."""

from __future__ import annotations

import json
import os
import stat

from nnfs.constants import STORE_XATTR
from nnfs.errors import UsageError
from nnfs.fs import report
from nnfs.fs.filesystem import Filesystem
from nnfs.store.env import Store
from nnfs.store.schema import Inode

STORE, INO = os.fsencode(STORE_XATTR), b"user.nnfs.ino"
STORED, CODECS = b"user.nnfs.stored_bytes", b"user.nnfs.codecs"
INFO, FINGERPRINT = b"user.nnfs.info", b"user.nnfs.fingerprint"
COMPUTED = (STORE, INO, STORED, CODECS, INFO, FINGERPRINT)


def computed(fs: Filesystem, inode: Inode, name: bytes) -> bytes | None:
    """Return the value of a computed attribute that takes no time, None when there is no such attribute."""
    if name == STORE:
        return os.fsencode(fs.store.place.now())
    if name == INO:
        return str(inode.ino).encode()
    if name == STORED and stat.S_ISREG(inode.mode):
        return str(inode.stored).encode()
    return None


def info(store: Store, ino: int) -> bytes:
    """Return the value of `INFO`: what `nnfs stat --json` shows of a file. It takes as long as `codecs`."""
    with store.read() as snapshot:
        try:
            return json.dumps(report.stat_report(snapshot, ino)).encode()
        except UsageError:
            return b"{}"  # not committed yet


def codecs(store: Store, ino: int) -> bytes:
    """Return the value of `CODECS`. It visits all blocks of a file, so do not call it on the loop."""
    with store.read() as snapshot:
        try:
            lines = report.stat_report(snapshot, ino)["codecs"]
        except UsageError:
            lines = []  # not committed yet
    return " ".join(f"{line['codec']}:{line['chunks']}" for line in lines).encode() or b"-"


SLOW = {CODECS: codecs, INFO: info}
