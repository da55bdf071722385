"""The kernels on one GPU: what they are given, and how many rows a block has."""

from __future__ import annotations

import ctypes

from nnfs.errors import CodecError
from nnfs.kernels.driver import Device, Module
from nnfs.kernels.library import Coder, Mixer, Network, Past

TILES = (1, 2, 4)  # of 8 rows each: the blocks that there are kernels for
ROWS = 8
WARP, WARPS, GROUP, WINDOW, HEAD = 32, 16, 4, 64, 32
FIELDS = 4 * (8 + 5 + 6 + 2 * 14 + 3) + 8 * 5  # bytes of a row's features and of what else lasts a column
TREE = 4 * 512  # bytes of a row's frequencies
CANDIDATES = 6

_PTR, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Chunk(ctypes.Structure):
    """`Chunk` of cuda/room.h."""

    _fields_ = (
        ("past", Past), ("mixer", Mixer), ("coder", Coder), ("probability", _PTR), ("first", _I32), ("unused", _I32),
    )  # fmt: skip


class Work(ctypes.Structure):
    """`Work` of cuda/room.h."""

    _fields_ = (
        *((name, _PTR) for name in ("network", "chunks", "groups", "keys", "values")),
        ("begin", _I64), ("end", _I64), ("encoding", _I32), ("unused", _I32),
    )  # fmt: skip


class Launches:
    """The kernels of one module, for one network's sizes."""

    def __init__(self, device: Device, image: bytes, network: Network) -> None:
        """`network`: its sizes. Raises `CodecError` for a module of other structures, or too small a GPU."""
        self._device, module = device, Module(device, image)
        *sizes, self._mixing, self.threads, self._pad = module.integers("nnfs_sizes")
        if sizes != [ctypes.sizeof(kind) for kind in (Network, Chunk, Work)] or self.threads != WARP * WARPS:
            raise CodecError("the GPU's kernels have other structures than this nnfs: it is not used")
        self._network = network
        self._columns = {}
        for tiles in TILES:
            shared = self.shared(ROWS * tiles)
            if shared <= device.shared:
                kernel = module.kernel(f"nnfs_columns_{tiles}")
                kernel.allow(shared)
                self._columns[ROWS * tiles] = (kernel, shared)
        if not self._columns:
            raise CodecError(f"{device.name} has too little shared memory for this network")
        self._streams = module.kernel("nnfs_streams")
        self.rows = sorted(self._columns)  # that a block may have
        self.most_rows = self.rows[-1]

    def shared(self, rows: int) -> int:
        """Return the bytes of shared memory of a block: as `lay_out` in cuda/room.h."""
        n, pad = self._network, self._pad
        wide, heads = (n.heads + 2 * n.kv_heads) * HEAD, n.heads * HEAD
        first: int = max(rows * TREE, rows * (4 * n.width + n.hidden + pad))
        second: int = max(rows * self._mixing, rows * (n.width + wide + heads + 3 * pad) + WARPS * GROUP * 2 * WINDOW)
        return first + second + rows * FIELDS + -(-rows * CANDIDATES // 16) * 16

    def rows_for(self, lanes: int, most: int) -> int:
        """Return the rows of a block: as few as keep all multiprocessors busy with `lanes`, and hold `most` of a chunk.

        Raises `CodecError` where no block has room for that many.
        """
        there = [rows for rows in self.rows if rows >= most]
        if not there:
            raise CodecError(f"a chunk of {most} lanes, and the GPU's blocks have room for {self.most_rows}")
        wanted = -(-lanes // self._device.multiprocessors)
        return next((rows for rows in there if rows >= wanted), there[-1])

    def columns(self, rows: int, blocks: int, work: Work) -> None:
        kernel, shared = self._columns[rows]
        kernel.launch(blocks, self.threads, shared, work)

    def streams(self, chunks: int, count: int) -> None:
        """Encode the bits of `count` chunks, whose probabilities are known."""
        self._streams.launch(count, WARP, 0, ctypes.c_uint64(chunks))
