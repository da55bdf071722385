"""The choice of the GPU's own kernels: where they can be compiled and give the payloads that every engine gives.

Where they cannot, the network runs on the GPU by torch (`nnfs.model.cuda`), and all else on the CPU, as before there
were kernels for it; one line of the log says why.
"""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache

import numpy as np

from nnfs.codec import rans
from nnfs.codec.neuraldevice import Coding, DeviceCoder
from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import BuildFailed, CodecError
from nnfs.kernels import compiled, driver
from nnfs.kernels.driver import Device
from nnfs.model import selftest
from nnfs.model.dictionary import Dictionary
from nnfs.model.weights import Weights

log = logging.getLogger(__name__)

DIGEST = "1ae85167d0408fa2badf589a58d1851c"
PLACES = ((611, 3, 1), (1100, 8, 4), (70, 1, 1), (257, 5, 4))  # bytes, lanes and states of the test's chunks


def sample(size: int) -> bytes:
    """Return a chunk whose second half repeats the first, apart from a byte in 50."""
    noise = np.frombuffer(hashlib.shake_256(b"device").digest(2 * size), np.uint8)
    plain = noise[:size] % 11 + 97
    plain[::7] = 32
    plain[size // 2 :] = plain[: size - size // 2]
    plain[::50] = noise[size:][: len(plain[::50])]
    return plain.tobytes()


def digest(coder: DeviceCoder) -> str:
    """Return the digest of a GPU's streams. Raises `CodecError` where it does not read them again."""
    found = hashlib.blake2b(digest_size=16)
    for states in sorted({states for _, _, states in PLACES}):
        chunks = [(sample(size), lanes) for size, lanes, own in PLACES if own == states]
        codings = []
        for (plain, lanes), made in zip(chunks, coder.encode(chunks, states), strict=True):
            if made is None:
                raise CodecError("a chunk of the test does not get smaller")
            found.update(made)
            values, words, _ = rans.start(made, states)
            codings.append(Coding(len(plain), lanes, values, words))
        if [plain for _, plain, _ in coder.decode(codings)] != [plain for plain, _ in chunks]:
            raise CodecError("the GPU does not read what it wrote")
    return found.hexdigest()


@cache
def tested(ordinal: int) -> tuple[Device, bytes] | None:
    """Return a GPU and kernels that have passed the test on it: once per process, None where there are none."""
    there = driver.driver()
    if there is None:
        return None
    why = ""
    try:
        device = Device(there, ordinal)
        for tensor in (True, False):
            try:
                image = compiled.cubin(device.version, tensor=tensor)
                _prove(device, image)
            except (BuildFailed, CodecError) as error:
                why = why or str(error)
                continue
            if why:
                log.info("%s: products without tensor cores: %s", device.name, why)
            return device, image
    except (RuntimeError, MemoryError) as error:
        why = str(error)
    log.warning("the kernels for GPU %d cannot be used (%s): torch runs the network there", ordinal, why)
    return None


def _prove(device: Device, image: bytes) -> None:
    """Raise `CodecError` where kernels do not give the integers of the CPU."""
    coder = DeviceCoder(device, selftest.weights(), image)
    try:
        for rows in coder.launches.rows:  # each is a kernel of its own
            coder.rows = rows
            if digest(coder) != DIGEST:
                raise CodecError("they do not compute what they should")
    finally:
        coder.free()


def ordinal_of(name: str) -> int | None:
    """Return the number of the GPU that a device's name means, None for the CPU; "auto" means the first."""
    if name == "cpu":
        return None
    return int(name.partition(":")[2] or 0)


def opened(weights: Weights, device: str, dictionary: Dictionary | None) -> tuple[str, DeviceCoder] | None:
    """Return the name of a GPU and what codes on it, None where its kernels cannot be used.

    A forced product (`PRODUCT_VARIABLE`) names one of torch's or the CPU's, so it is taken.
    """
    ordinal = ordinal_of(device)
    if ordinal is None or os.environ.get(PRODUCT_VARIABLE):
        return None
    chosen = tested(ordinal)
    if chosen is None:
        return None
    gpu, image = chosen
    try:
        gpu.activate()
        return ("cuda" if device == "auto" else device), DeviceCoder(gpu, weights, image, dictionary)
    except (CodecError, RuntimeError, MemoryError) as error:
        log.warning("the GPU's kernels cannot run this model (%s): torch does", error)
        return None
