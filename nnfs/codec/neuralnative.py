"""A batch of chunks of the neural codec in native code: one call does all the work of many columns.

Features, network, mixer and coder keep their state where numba's kernels have it (`features.Batch`, `MixState`).
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import CodecError
from nnfs.kernels import library as native
from nnfs.kernels.library import address
from nnfs.mixer import native as mixer
from nnfs.mixer.state import MixState
from nnfs.model import features
from nnfs.model.engines import Model
from nnfs.model.native import NativeModel

ROWS = 64  # of one step of the encoder, where there are few lanes: products want as many
LEAST, MOST = 8, 64  # columns of one step
CALL = 512  # bytes of one call of the decoder: milliseconds, so that an urgent read gets in between

Paths = list[NDArray[np.uint16]]


def kernels_for(model: Model, lanes: list[int]) -> mixer.Kernels | None:
    """Return the mixer's kernels that fit this model's, None if the two are not both native."""
    if not isinstance(model, NativeModel) or max(lanes) > mixer.MOST_LANES:
        return None
    kernels = mixer.kernels()
    return kernels if kernels and (kernels.library, kernels.level) == (model.library, model.level) else None


class NativeBatch:
    """The network's side of some chunks as structures of C."""

    def __init__(self, model: NativeModel, past: features.Batch, columns: int) -> None:
        """`columns` of them go in one step."""
        self.model, self.past, self.columns = model, past, columns
        count, lanes = len(past.sizes), int(past.first[-1])
        self.engine = model.engine(lanes, columns)
        self._room = features.room(columns, lanes)
        self._pasts = (native.Past * count)(
            *(
                native.Past(
                    address(past.plain[k]), int(past.sizes[k]), int(past.lanes[k]), past.begin, int(past.bits[k]),
                    address(past.orders[k]), past.orders.shape[2], address(past.starts[k]),
                    address(past.lane[past.first[k] : past.first[k + 1]]),
                )
                for k in range(count)
            )
        )  # fmt: skip
        self._first = np.ascontiguousarray(past.first, np.int64)
        self._kept: list[Any] = []
        self.batch = native.Batch(
            count, ctypes.addressof(self._pasts), None, None, None, None, address(self._first), columns * lanes,
            *(address(field) for field in self._room),
        )  # fmt: skip

    def _call(self, name: str, *numbers: int | None) -> None:
        call = getattr(self.model.library.calls, name)
        if call(self.model.level, self.model.network, self.engine.state, self.batch, *numbers):
            raise CodecError("neural: an impossible batch")

    def encode(self, between: Callable[[], None]) -> Paths:
        """Return the network's probability of a 1 for each bit of every chunk, (columns, lanes, 8) each."""
        past = self.past
        paths = [
            np.zeros((int(length), int(lanes), 8), np.uint16)
            for length, lanes in zip(past.lengths, past.lanes, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(paths))(*map(address, paths))
        self._kept.append(pointers)
        self.batch.paths = ctypes.addressof(pointers)
        end = int(past.lengths.max())
        for t in range(0, end, self.columns):
            between()
            self._call("nnfs_encode_columns", t, min(t + self.columns, end), self.columns)
        return paths

    def decode(
        self, kernels: mixer.Kernels, mix: MixState, coders: list[native.Coder], alive: list[int],
        between: Callable[[], None], threads: int,
    ) -> list[int]:  # fmt: skip
        """Decode the chunks `alive` into `plain` of `mix`, and return where each chunk's coder stands then.

        A single chunk is decoded by as many threads as there are, see `team.h`.
        """
        count = len(coders)
        own = (native.Mixer * count)(*(kernels.mixer(mix, k) for k in range(count)))
        their = (native.Coder * count)(*coders)
        living = np.zeros(count, np.uint8)
        living[alive] = 1
        self._kept += [own, their, living]
        self.batch.mixers, self.batch.coders = ctypes.addressof(own), ctypes.addressof(their)
        self.batch.alive = address(living)
        end = int(self.past.lengths[alive].max(initial=0))
        step = max(1, CALL // int(self.past.first[-1]))
        with self._team(min(threads, native.MOST_TEAM) if alive == [0] and count == 1 else 1, end) as team:
            for t in range(0, end, step):
                between()
                self._call("nnfs_decode_columns", t, min(t + step, end), team, 0)
        return [coder.cursor for coder in their]

    @contextlib.contextmanager
    def _team(self, members: int, columns: int) -> Iterator[int | None]:
        """Have other threads work on all columns; yield the team of them and the caller, None for the caller alone."""
        calls = self.model.library.calls
        helpers: list[threading.Thread] = []
        room = native.room(calls.nnfs_team_size())
        try:
            with contextlib.suppress(RuntimeError):  # no more threads: the others' work is done by those that are there
                calls.nnfs_team(address(room), members)
                for me in range(1, members):
                    arguments = ("nnfs_decode_columns", 0, columns, address(room), me)
                    helper = threading.Thread(target=self._call, args=arguments, name="helper", daemon=True)
                    helper.start()
                    helpers.append(helper)
            yield address(room) if helpers else None
        finally:
            if helpers:
                calls.nnfs_team(address(room), 0)
                for helper in helpers:
                    helper.join()


def columns_for(lanes: int) -> int:
    """Return how many columns the encoder steps at once with so many lanes."""
    return min(max(ROWS // lanes, LEAST), MOST)
