"""The CUDA driver by ctypes: memory, kernels and launches on one GPU. It needs neither a toolkit nor torch.

Tests, and `tools/test-gpu --host`, put a library of the same functions in its place that runs the kernels on the host
(`cuda/host.cpp`, `hosted`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

NAMES = ("libcuda.so.1", "libcuda.so")
_OUT_OF_MEMORY = 2
_MULTIPROCESSORS, _MAJOR, _MINOR, _SHARED = 16, 75, 76, 97  # CUdevice_attribute
_MOST_SHARED = 8  # CUfunction_attribute: dynamic shared memory

_PTR, _INT, _UINT, _SIZE, _U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64
_CALLS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("cuInit", (_UINT,)),
    ("cuGetErrorString", (_INT, _PTR)),
    ("cuDeviceGetCount", (_PTR,)),
    ("cuDeviceGet", (_PTR, _INT)),
    ("cuDeviceGetName", (_PTR, _INT, _INT)),
    ("cuDeviceGetAttribute", (_PTR, _INT, _INT)),
    ("cuDevicePrimaryCtxRetain", (_PTR, _INT)),
    ("cuCtxSetCurrent", (_PTR,)),
    ("cuCtxSynchronize", ()),
    ("cuMemGetInfo_v2", (_PTR, _PTR)),
    ("cuMemAlloc_v2", (_PTR, _SIZE)),
    ("cuMemFree_v2", (_U64,)),
    ("cuMemcpyHtoD_v2", (_U64, _PTR, _SIZE)),
    ("cuMemcpyDtoH_v2", (_PTR, _U64, _SIZE)),
    ("cuMemcpyDtoD_v2", (_U64, _U64, _SIZE)),
    ("cuMemsetD8_v2", (_U64, ctypes.c_ubyte, _SIZE)),
    ("cuModuleLoadData", (_PTR, ctypes.c_char_p)),
    ("cuModuleGetFunction", (_PTR, _PTR, ctypes.c_char_p)),
    ("cuModuleGetGlobal_v2", (_PTR, _PTR, _PTR, ctypes.c_char_p)),
    ("cuFuncSetAttribute", (_PTR, _INT, _INT)),
    ("cuLaunchKernel", (_PTR, *(_UINT,) * 7, _PTR, _PTR, _PTR)),
)


class Driver:
    """The functions of one library. Raises `RuntimeError` where a call fails, `MemoryError` where memory does."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` for a library that cannot be loaded, `RuntimeError` for one without a GPU."""
        self._library = ctypes.CDLL(path)
        try:
            for name, arguments in _CALLS:
                getattr(self._library, name).argtypes = arguments
        except AttributeError as error:
            raise RuntimeError(f"{path} is no CUDA driver that nnfs knows: {error}") from error
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MemoryError("the GPU has no memory left")
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'error %d' % code).decode(errors='replace')}")

    def count(self) -> int:
        """Return how many GPUs there are."""
        found = _INT()
        self.call("cuDeviceGetCount", ctypes.byref(found))
        return found.value


@cache
def driver() -> Driver | None:
    """Return this machine's driver, None where there is no GPU."""
    if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
        return None
    for name in NAMES:
        try:
            found = Driver(name)
            return found if found.count() else None
        except (OSError, RuntimeError):
            continue
    return None


class Memory:
    """Memory of a GPU; freed by `free`, or at the end of a `with`."""

    def __init__(self, driver: Driver, size: int) -> None:
        """Raises `MemoryError`."""
        self._driver, self.size = driver, size
        at = _U64()
        driver.call("cuMemAlloc_v2", ctypes.byref(at), size)
        self.address: int = at.value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.free()

    def free(self) -> None:
        if self.address:
            self._driver.call("cuMemFree_v2", self.address)
            self.address = 0


class Kernel:
    """One function of a module."""

    def __init__(self, device: Device, function: ctypes.c_void_p) -> None:
        self._device, self._function = device, function

    def allow(self, shared: int) -> None:
        """Let its blocks have so many bytes of shared memory. Raises `RuntimeError` where there are fewer."""
        self._device.driver.call("cuFuncSetAttribute", self._function, _MOST_SHARED, shared)

    def launch(self, blocks: int, threads: int, shared: int, argument: Any) -> None:
        """Run it with one argument, a ctypes object, and return at once."""
        pointers = (_PTR * 1)(ctypes.addressof(argument))
        sizes = blocks, 1, 1, threads, 1, 1, shared
        self._device.driver.call("cuLaunchKernel", self._function, *sizes, None, pointers, None)


class Device:
    """One GPU. Each thread that uses it calls `activate` first."""

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        """Raises `RuntimeError` where there is no such GPU."""
        self.driver, self.lock = driver, threading.RLock()
        handle = _INT()
        driver.call("cuDeviceGet", ctypes.byref(handle), ordinal)
        self._context = _PTR()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle.value)
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), handle.value)
        self.name = name.value.decode(errors="replace")
        self.version = self._attribute(handle, _MAJOR) * 10 + self._attribute(handle, _MINOR)  # 90: sm_90
        self.multiprocessors = self._attribute(handle, _MULTIPROCESSORS)
        self.shared = self._attribute(handle, _SHARED)  # bytes that a block may have
        self.activate()

    def _attribute(self, handle: ctypes.c_int, attribute: int) -> int:
        value = _INT()
        self.driver.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle.value)
        return value.value

    def activate(self) -> None:
        self.driver.call("cuCtxSetCurrent", self._context)

    def wait(self) -> None:
        """Wait for all launches. Raises `RuntimeError` for one that failed: this process can use the GPU no more."""
        self.driver.call("cuCtxSynchronize")

    def free(self) -> int:
        """Return how many bytes are free."""
        free, total = _SIZE(), _SIZE()
        self.driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def memory(self, size: int) -> Memory:
        return Memory(self.driver, size)

    def put(self, address: int, content: NDArray[Any] | ctypes.Structure | ctypes.Array[Any]) -> None:
        """Copy from here to the GPU."""
        if isinstance(content, np.ndarray):
            if not content.flags.c_contiguous:
                raise ValueError("a copy takes contiguous arrays")
            self.driver.call("cuMemcpyHtoD_v2", address, content.ctypes.data, content.nbytes)
        else:
            self.driver.call("cuMemcpyHtoD_v2", address, ctypes.addressof(content), ctypes.sizeof(content))

    def get(self, address: int, content: NDArray[Any] | ctypes.Array[Any]) -> None:
        """Copy from the GPU into an array."""
        if isinstance(content, np.ndarray):
            self.driver.call("cuMemcpyDtoH_v2", content.ctypes.data, address, content.nbytes)
        else:
            self.driver.call("cuMemcpyDtoH_v2", ctypes.addressof(content), address, ctypes.sizeof(content))

    def copy(self, to: int, origin: int, size: int) -> None:
        self.driver.call("cuMemcpyDtoD_v2", to, origin, size)

    def zero(self, address: int, size: int) -> None:
        self.driver.call("cuMemsetD8_v2", address, 0, size)


class Module:
    """Compiled kernels, loaded."""

    def __init__(self, device: Device, image: bytes) -> None:
        """Raises `RuntimeError` for an image that this GPU does not take."""
        self._device, self._module = device, _PTR()
        device.driver.call("cuModuleLoadData", ctypes.byref(self._module), image)

    def kernel(self, name: str) -> Kernel:
        function = _PTR()
        self._device.driver.call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        return Kernel(self._device, function)

    def integers(self, name: str) -> list[int]:
        """Return the content of a global array of int32."""
        at, size = _U64(), _SIZE()
        self._device.driver.call(
            "cuModuleGetGlobal_v2", ctypes.byref(at), ctypes.byref(size), self._module, name.encode()
        )
        found = np.zeros(size.value // 4, np.int32)
        self._device.get(at.value, found)
        return [int(value) for value in found]
