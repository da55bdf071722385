"""The thaw cache: bounded copies of decoded cold blocks on disk, so that a block is slow to read only once.

One file per block number, zstd, in a folder of the store. Nothing in it is needed: every copy is compared with the
block's BLAKE2b-512 when it is read, so a bad one costs one more decoding, and copies need no fsync. Numbers are never
used twice, so the copy of a removed block is merely the next to go. Synchronous, for data threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

import zstandard

from nnfs.proof import has_content
from nnfs.store import privacy
from nnfs.store.schema import Block

log = logging.getLogger(__name__)

LEVEL = 3
FREE_SHARE, FREE = 10, 1 << 30  # copies leave a tenth of the filesystem below free, or so many bytes
BYTES_PER_FILE = 4096  # a file takes up a multiple of this
_TEMPORARY = ".new"
_COPY, _UNFINISHED = re.compile("[0-9a-f]{16}"), re.compile(f"[0-9a-f]{{16}}{re.escape(_TEMPORARY)}")  # names of files


class Thawed:
    """Copies by block number, `limit` bytes at most; the least recently used ones go first. 0 keeps none.

    Thread-safe. No method raises for errors of the filesystem below: without a copy a block is decoded again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.bytes = 0  # on disk
        self.hits = self.misses = self.damaged = 0
        self._lock = threading.Lock()
        self._sizes: OrderedDict[int, int] = OrderedDict()  # by number, the least recently used first
        self._writing: set[str] = set()  # names of files that are not finished
        self._mute = False  # the last put failed, and that was logged

    def scan(self) -> None:
        """Find the copies of an earlier mount, oldest first, and drop those above the limit. Slow: call it once."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if _COPY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # dropped at the same time
                            status = entry.stat()
                            if status.st_mode & privacy.OTHERS:  # of an earlier version
                                os.chmod(entry.path, privacy.FILE)
                            found.append((status.st_mtime_ns, int(entry.name, 16), _occupied(status.st_size)))
                    else:
                        self._clear_up(entry)
        except FileNotFoundError:
            pass  # the folder: there are no copies yet
        except OSError as error:
            self._complain(error)
        with self._lock:
            for _, number, size in sorted(found, reverse=True):
                if number not in self._sizes:  # read or written meanwhile
                    self._sizes[number] = size
                    self._sizes.move_to_end(number, last=False)
                    self.bytes += size
        self._evict(self.limit)

    def _clear_up(self, entry: os.DirEntry[str]) -> None:
        """Remove a copy that was unfinished when the last mount ended. Other files stay: a link may lead here."""
        if not _UNFINISHED.fullmatch(entry.name):
            return
        with self._lock, contextlib.suppress(OSError):
            if entry.name not in self._writing:
                os.unlink(entry.path)

    def get(self, number: int, block: Block) -> bytes | None:
        """Return the plain bytes of a block, proved by its hash, or None."""
        if not self.limit:
            return None
        path = self._path(number)
        try:
            with open(path, "rb") as file:
                data = file.read()
            if zstandard.frame_content_size(data) != block.plain:  # else so many bytes would be allocated
                raise zstandard.ZstdError("not of the block's length")
            plain = zstandard.ZstdDecompressor().decompress(data)
        except FileNotFoundError:
            self.misses += 1
            if number in self._sizes:
                self.remove(number)  # somebody else has done so
            return None
        except (OSError, MemoryError, zstandard.ZstdError) as error:
            log.warning("%s: %s; removed", path, error)
        else:
            if has_content(plain, block.hash):
                self._use(number, path, len(data))
                return plain
            log.warning("%s: not the content of block %d; removed", path, number)
        self.damaged += 1
        self.remove(number)
        return None

    def _use(self, number: int, path: str, size: int) -> None:
        """Note that a copy was useful, also for the next mount: files are kept in order of their times."""
        with contextlib.suppress(OSError):
            os.utime(path)
        with self._lock:
            self.hits += 1
            if number not in self._sizes:  # not scanned yet
                self._sizes[number] = _occupied(size)
                self.bytes += _occupied(size)
            self._sizes.move_to_end(number)

    def __contains__(self, number: int) -> bool:
        return number in self._sizes

    def renew(self, number: int) -> int:
        """Have a copy outlive all others, as if it had been read. Return its bytes on disk, 0 if there is none."""
        with self._lock:
            size = self._sizes.get(number, 0)
            if size:
                self._sizes.move_to_end(number)
        if size:
            with contextlib.suppress(OSError):
                os.utime(self._path(number))
        return size

    def put(self, number: int, plain: bytes) -> bool:
        """Keep a copy, if the filesystem below has room to spare. Return whether it was kept."""
        if number in self._sizes or not self.limit:
            return False
        data = zstandard.ZstdCompressor(level=LEVEL).compress(plain)
        size = _occupied(len(data))
        try:
            self._make_folder()
            if size > self.limit or not self._room():
                return False
            self._write(self._path(number), data)
        except OSError as error:
            self._complain(error)
            return False
        self._mute = False
        with self._lock:
            self.bytes += size - self._sizes.get(number, 0)
            self._sizes[number] = size
        self._evict(self.limit)
        return True

    def _make_folder(self) -> None:
        try:
            os.mkdir(self.folder, privacy.FOLDER)
        except FileExistsError:
            return
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            privacy.give(descriptor, self.folder.parent)
        finally:
            os.close(descriptor)

    def _write(self, path: str, data: bytes) -> None:
        new = path + _TEMPORARY
        with self._lock:
            self._writing.add(os.path.basename(new))
        try:
            with open(new, "wb", opener=privacy.opener) as file:
                file.write(data)
            os.rename(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise
        finally:
            self._writing.discard(os.path.basename(new))

    def remove(self, number: int) -> None:
        """Drop one copy."""
        with self._lock:
            self.bytes -= self._sizes.pop(number, 0)
        with contextlib.suppress(OSError):
            os.unlink(self._path(number))

    def clear(self) -> None:
        """Drop all copies, for instance when the filesystem below is full."""
        self._evict(0)

    def evict(self) -> None:
        """Drop the copies above the limit, which may be another one than before."""
        self._evict(self.limit)

    def _evict(self, limit: int) -> None:
        while True:
            with self._lock:
                if self.bytes <= limit or not self._sizes:
                    return
                number = next(iter(self._sizes))
            self.remove(number)

    def _room(self) -> bool:
        """Return whether the filesystem below has more free than copies have to leave."""
        lower = os.statvfs(self.folder)
        return lower.f_bavail * lower.f_frsize >= min(lower.f_blocks * lower.f_frsize // FREE_SHARE, FREE)

    def _path(self, number: int) -> str:
        return os.path.join(self.folder, f"{number:016x}")

    def _complain(self, error: OSError) -> None:
        """Log the first of several errors in a row."""
        if not self._mute:
            log.warning("%s: %s; cold blocks are decoded each time that they are read", self.folder, error)
        self._mute = True


def _occupied(size: int) -> int:
    return -(-size // BYTES_PER_FILE) * BYTES_PER_FILE
