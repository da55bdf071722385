"""The one tree of errors: each class has the errno that answers a FUSE request, and an exit code of the command line.

::

    NnfsError                   EIO     1
    |-- FsError                 own     1   the ordinary errno answer to one request, such as ENOENT
    |-- Cancelled               EIO     1   a task was cancelled
    |-- BuildFailed             EIO     1   the native kernels cannot be compiled on this machine
    |-- UsageError              EINVAL  2   wrong arguments, wrong path: says what to do
    |-- StoreError              EIO     3
    |   |-- NotAStore           EINVAL  4   the directory holds something else, or nothing
    |   |-- StoreBusy           EBUSY   5   mounted (or being checked) already
    |   |-- StoreTooNew         EINVAL  6   a format or feature this version does not know
    |   |-- StoreGone           EIO     3   the data file of a mounted store was deleted or replaced
    |   |-- WriteFailed         EIO     3   the data file could not be written, though there is room
    |   |-- PunchUnsupported    EOPNOTSUPP 3 the filesystem below the store cannot punch holes
    |   `-- StoreDamaged        EIO     7   a record or page that fails its checksum or an invariant
    |       |-- RecordDamaged   EIO     7   one record: names table and key
    |       |-- BlockDamaged    EIO     7   one block: payload, header or hash
    |       `-- FreeListDamaged EIO     7   the engine's list of free pages
    |-- ArchiveDamaged          EIO     7   a tar archive that is cut off or damaged, or something else
    |-- OutOfSpace              ENOSPC  8   the store's filesystem, or what is kept on it, is exhausted; or EDQUOT
    |-- MountError              EIO     9   the kernel refused the mount, or FUSE is missing
    |-- CodecError              EIO     10  a payload that its codec refuses
    |   |-- ModelMissing        EIO     11  an unknown fingerprint
    |   `-- EnginesDisagree     EIO     15  the reference engine decodes a new payload to something else
    |-- TimedOut                EIO     12  a read that did not end within its bound
    |-- DaemonError             EIO     13  the mount's control socket is gone or answered an error
    `-- WorkerError             EIO     14  a codec worker died on a work item, did not start, or met a bug
        |-- CodecUnavailable    EIO     14  a worker lacks what a codec needs
        |   `-- NoCodecRuns     EIO     14  none of the codecs that could compress can run here
        |-- KillsWorkers        EIO     14  a work item of which workers die
        |-- PeerGone            EIO     14  the other side of a worker's socket is not connected any more
        `-- WireError           EIO     14  bytes from the other side of a worker's socket that are no frame

`tests/test_errors.py` compares this drawing with the classes, and finds exceptions that are defined elsewhere.
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import TypeVar


class NnfsError(Exception):
    """Base of all errors with a message for a person."""

    errno: int = errno.EIO
    exit_code: int = 1


class FsError(NnfsError):
    """An ordinary errno answer to one request, such as ENOENT. It is not logged, and it is no damage."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.errno = code


class Cancelled(NnfsError):
    """The task was cancelled."""


class BuildFailed(NnfsError):
    """The native library cannot be built: there is no compiler, or it cannot compile the sources."""


class UsageError(NnfsError):
    """Wrong arguments or a wrong path."""

    errno = errno.EINVAL
    exit_code = 2


class StoreError(NnfsError):
    """A fault of the store directory as a whole."""

    exit_code = 3


class NotAStore(StoreError):
    """The directory holds something else than a store, or does not exist."""

    errno = errno.EINVAL
    exit_code = 4


class StoreBusy(StoreError):
    """Another process has the store open."""

    errno = errno.EBUSY
    exit_code = 5


class StoreTooNew(StoreError):
    """The store has a format version or an incompatible feature that this version does not know."""

    errno = errno.EINVAL
    exit_code = 6


class StoreGone(StoreError):
    """The data file of an open store has lost its name: its content will be gone after the mount."""


class WriteFailed(StoreError):
    """The data file could not be written, though the filesystem below has room. The commit may be tried again."""


class PunchUnsupported(StoreError):
    """The filesystem below knows no holes: free pages stay with the file until LMDB uses them again."""

    errno = errno.EOPNOTSUPP


class StoreDamaged(StoreError):
    """The content of the store fails a checksum or an invariant."""

    exit_code = 7


class RecordDamaged(StoreDamaged):
    """One record fails its checksum, or is missing although another record proves that it must be there."""

    def __init__(self, table: str, key: bytes, why: str) -> None:
        super().__init__(f"damaged {table} record {key.hex()}: {why}")
        self.table = table
        self.key = key


class BlockDamaged(StoreDamaged):
    """The stored or the plain bytes of one block are not what its header says."""

    def __init__(self, block: int, why: str) -> None:
        super().__init__(f"damaged block {block}: {why}")
        self.block, self.why = block, why


class FreeListDamaged(StoreDamaged):
    """The list of free pages is damaged: space is lost, but no data."""


class ArchiveDamaged(NnfsError):
    """A tar archive is cut off or damaged, or it is something else."""

    exit_code = 7


class OutOfSpace(NnfsError):
    """The filesystem below the store has no room, or a quota is reached."""

    errno = errno.ENOSPC
    exit_code = 8


class MountError(NnfsError):
    """Mounting or unmounting failed."""

    exit_code = 9


class CodecError(NnfsError):
    """A codec refuses a payload."""

    exit_code = 10


class ModelMissing(CodecError):
    """A block needs a model that the store does not hold."""

    exit_code = 11


class EnginesDisagree(CodecError):
    """The reference engine decodes a payload that was just encoded to something else, or refuses it.

    Nothing is encoded with that codec any more until the next mount.
    """

    exit_code = 15


class TimedOut(NnfsError):
    """A read did not end within its bound."""

    exit_code = 12


class DaemonError(NnfsError):
    """The daemon of a mount did not answer, or answered an error."""

    exit_code = 13


class WorkerError(NnfsError):
    """A codec worker could not be started, died twice on the same work item, ran out of memory, or met a bug."""

    exit_code = 14


class CodecUnavailable(WorkerError):
    """A worker lacks what a codec needs: nothing is wrong with the data, nor with the worker for other codecs."""


class NoCodecRuns(CodecUnavailable):
    """None of the codecs that could compress can run here."""


class KillsWorkers(WorkerError):
    """Workers have died of one work item: the fault lies with the item, not with them."""


class PeerGone(WorkerError):
    """The other side of a worker's socket is not connected any more, so nobody waits for answers."""


class WireError(WorkerError):
    """Bytes from the other side of a worker's socket break the protocol."""


E = TypeVar("E", bound=Exception)


def kept(error: E) -> E:
    """Return an error without the frames that its traceback holds alive, so that it can be stored.

    Frames hold transactions, chunks and buffers, often in a cycle with the error itself, and the daemon seldom collects
    cycles. If the error is not of nnfs, most likely a bug, its traceback stays as text.
    """
    if error.__traceback__ is not None and not isinstance(error, NnfsError | OSError | MemoryError):
        error.add_note("".join(traceback.format_exception(error)).rstrip())
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None:
            chain += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
            one.__traceback__ = one.__cause__ = one.__context__ = None
    return error


def again(error: E) -> E:
    """Return a new instance of a stored error, to be raised: an error that is raised collects frames."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin
