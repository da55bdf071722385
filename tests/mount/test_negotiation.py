"""The INIT negotiation, and mount points that cannot be used: without a mount."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pyfuse3
import pytest
import trio

from nnfs.errors import MountError
from nnfs.mount import connection
from nnfs.mount.connection import Connection, connect, negotiate
from nnfs.mount.options import MountOptions
from tests.mount.kit import MemoryFs


def init_request(flags: int, flags2: int = 0, readahead: int = 1 << 17) -> bytes:
    return connection._IN.pack(104, connection.FUSE_INIT, 2, 0, 0, 0, 0, 0, 7, 45, readahead, flags, flags2)


BEHIND = bytes(range(1, 29))  # fields of fuse_init_out that only a newer libfuse knows


def init_reply(flags: int, error: int = 0, unique: int = 2) -> bytes:
    out = connection._OUT.pack(7, 38, 4096, flags, 0, 0, 1 << 20, 1, 256, 0, 0) + BEHIND
    return connection._OUT_HEADER.pack(80, error, unique) + out


def test_negotiation_sets_only_what_the_kernel_offers() -> None:
    wants = connection.ASYNC_READ | connection.HANDLE_KILLPRIV
    reply, agreed = negotiate(init_request(connection.ASYNC_READ | connection.DONT_MASK), init_reply(wants))
    assert agreed.flags == connection.ASYNC_READ | connection.DONT_MASK
    assert (agreed.max_readahead, agreed.max_background, agreed.congestion_threshold) == (1 << 17, 1024, 768)
    fields = connection._OUT.unpack_from(reply, 16)
    assert reply[52:] == BEHIND
    assert fields[3] == agreed.flags
    assert fields[6] == 1 << 20
    assert fields[8] == 256


@pytest.mark.parametrize(("error", "unique"), [(-errno.EPROTO, 2), (0, 3)])
def test_negotiation_refused_by_libfuse(error: int, unique: int) -> None:
    with pytest.raises(MountError):
        negotiate(init_request(1), init_reply(1, error, unique))


def test_unusable_mountpoints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MountError, match="not a directory"):
        connect(MemoryFs(), str(tmp_path / "file"), MountOptions())
    with pytest.raises(MountError, match="mkdir"):
        connect(MemoryFs(), str(tmp_path / "none"), MountOptions())


@pytest.mark.parametrize("mounted", [True, False])
async def test_a_connection_that_the_kernel_aborts(mounted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ECONNABORTED ends an unmount now and then; while the filesystem is mounted, it is an abort by somebody."""

    async def main(_least: int, _most: int) -> None:
        async with trio.open_nursery():
            raise ConnectionAbortedError(errno.ECONNABORTED, "fuse_session_receive_buf failed")

    own = object.__new__(Connection)
    monkeypatch.setattr(pyfuse3, "main", main)
    monkeypatch.setattr(Connection, "mounted", lambda _: ["here"] if mounted else [])
    with pytest.raises(ExceptionGroup) if mounted else contextlib.nullcontext():
        await own.serve()
