"""The kernels for a GPU on a machine that has one: whether they are exact, how fast they are, what they need.

Every payload is compared with the CPU's, byte for byte. Exit status: 0 all is well, 1 something differs or cannot be
compiled, 77 there is no GPU here (`--host` runs the same on the host, which says nothing about speed).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnfs.codec import devicechoice, neural, rans
from nnfs.codec.neural import STATES, Neural
from nnfs.codec.neuraldevice import Coding, DeviceCoder
from nnfs.errors import BuildFailed, CodecError
from nnfs.kernels import compiled, driver, hosted
from nnfs.kernels.driver import Device, Driver
from nnfs.model import selftest
from nnfs.model.lanes import lanes_for
from nnfs.model.weights import Weights, load_weights
from nnfs.workers.catalogue import PRESETS

NO_GPU = 77
ROOT = Path(__file__).resolve().parents[2]
LANES = (1, 8, 64, 512, 1024, 2048, 4096)


def content(count: int, size: int) -> Iterator[bytes]:
    """Yield chunks of this checkout's own text, code and images of code, all different."""
    kinds = ("*.md", "*.py", "*.c", "*.h", "*.safetensors")
    files = [path for kind in kinds for path in sorted(ROOT.glob(f"nnfs/**/{kind}"))]
    whole = b"".join(path.read_bytes()[: 1 << 20] for path in files)
    step = max(1, (len(whole) - size) // max(1, count))
    for k in range(count):
        at = k * step % max(1, len(whole) - size)
        yield (b"%d\n" % k + whole[at : at + size])[:size]


def image_of(device: Device, *, tensor: bool) -> bytes:
    start = time.monotonic()
    image = compiled.cubin(device.version, tensor=tensor)
    kind = "tensor cores" if tensor else "dp4a"
    print(f"  {kind}: {len(image):,} bytes of code in {time.monotonic() - start:.1f} s (kept: next time at once)")
    return image


def prove(device: Device, image: bytes) -> bool:
    """Print whether each size of block gives the digest that all engines give."""
    coder, well = DeviceCoder(device, selftest.weights(), image), True
    for rows in coder.launches.rows:
        coder.rows = rows
        try:
            same = devicechoice.digest(coder) == devicechoice.DIGEST
        except CodecError as why:
            print(f"  {why}")
            same = False
        well &= same
        shared = f"{coder.launches.shared(rows):,} bytes of shared memory"
        print(f"  blocks of {rows} rows, {shared}: {'ok' if same else 'WRONG'}")
    coder.free()
    return well


def compare(coder: DeviceCoder, weights: Weights, plains: Sequence[bytes]) -> bool:
    """Print whether the payloads of the GPU are the CPU's, and whether it reads those."""
    here = Neural(weights, os.cpu_count() or 1)
    want = here.encode_many(plains)
    chunks = [neural.prepared(plain)[0] for plain in plains]
    made = coder.encode([(plain, lanes_for(len(plain))) for plain in chunks], STATES)
    same = [found is None or found == payload[1:] for found, payload in zip(made, want, strict=True) if payload]
    codings = []
    for payload, plain in zip(want, chunks, strict=True):
        if payload:
            values, words, _ = rans.start(payload[1:], STATES)
            codings.append((plain, Coding(len(plain), lanes_for(len(plain)), values, words)))
    read = [
        got == plain
        for (_, got, _), (plain, _) in zip(coder.decode([coding for _, coding in codings]), codings, strict=True)
    ]
    print(
        f"  {sum(same)} of {len(same)} payloads are the CPU's, {sum(read)} of {len(read)} of the CPU's are read right"
    )
    return all(same) and all(read)


def speed(coder: DeviceCoder, lanes: int, size: int) -> bool:
    """Print how fast so many lanes are: chunks of 8 lanes, or one of 1 lane."""
    own = min(8, lanes)
    plains = list(content(lanes // own, size * own // 8))
    start = time.monotonic()
    streams = coder.encode([(plain, own) for plain in plains], STATES)
    encode = time.monotonic() - start
    codings = []
    for plain, stream in zip(plains, streams, strict=True):
        if stream is not None:
            values, words, _ = rans.start(stream, STATES)
            codings.append((plain, Coding(len(plain), own, values, words)))
    start = time.monotonic()
    found = coder.decode([coding for _, coding in codings])
    decode = time.monotonic() - start
    right = all(got == plain for (_, got, _), (plain, _) in zip(found, codings, strict=True))
    total, read = sum(map(len, plains)) / 1e6, sum(len(plain) for plain, _ in codings) / 1e6
    print(
        f"  {lanes:5} lanes, {len(plains):4} chunks of {len(plains[0]):,}: encode {total / encode:9.3f} MB/s,"
        f" decode {read / decode:9.3f} MB/s ({decode:.3f} s){'' if right else '  WRONG'}"
    )
    return right


def memory(coder: DeviceCoder) -> None:
    free = coder.device.free()
    for encoding in (True, False):
        each = coder.bytes_of(1 << 17, 8, encoding=encoding)
        verb = "encode" if encoding else "decode"
        print(f"  {each / 1e6:.1f} MB for each chunk of 128 KiB to {verb}: {int(free * 0.8) // each:,} fit")
    print(f"  {free / 1e9:.1f} GB are free; a batch that fills the GPU has {coder.most() >> 17:,} chunks")


def host_device(folder: str, *, tensor: bool) -> Device:
    return Device(Driver(hosted.library(folder, tensor=tensor)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="test-gpu", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--host", action="store_true", help="run the kernels on the host, with little content")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the number of the GPU")
    parser.add_argument("--chunks", type=int, default=24, metavar="N", help="to compare with the CPU (24)")
    options = parser.parse_args(arguments)
    there = None if options.host else driver.driver()
    if not options.host and there is None:
        print("test-gpu: there is no NVIDIA GPU here, nothing was tested (--host runs the kernels on the host)")
        return NO_GPU
    try:
        if there:
            device = Device(there, options.device)
            print(f"{device.name}, version {device.version / 10}, {device.multiprocessors} multiprocessors")
            kinds = [False, True] if device.version >= compiled.TENSOR else [False]
            images = [(device, image_of(device, tensor=tensor)) for tensor in kinds]
            return run(images, options.chunks, host=False)
        with tempfile.TemporaryDirectory(prefix="nnfs-gpu-") as folder:
            print("the host in a GPU's place; its speed says nothing")
            return run(
                [(host_device(folder, tensor=tensor), b"") for tensor in (False, True)], options.chunks, host=True
            )
    except (BuildFailed, CodecError, RuntimeError, MemoryError) as error:
        print(f"test-gpu: {type(error).__name__}: {error}")
        return 1


def run(images: Sequence[tuple[Device, bytes]], chunks: int, *, host: bool) -> int:
    """Test the kernels without tensor cores and, where they are there, those with them; the rest with the last."""
    well = True
    for (device, image), kind in zip(images, ("dp4a", "tensor cores"), strict=False):
        print(f"the digest of all engines, products by {kind}")
        well &= prove(device, image)
    device, image = images[-1]
    with open(os.path.join(PRESETS, "default.safetensors"), "rb") as file:
        weights = load_weights(file.read())
    coder, size = DeviceCoder(device, weights, image), 1 << (9 if host else 17)
    print("exactness, with the shipped model")
    well &= compare(coder, weights, list(content(min(chunks, 4) if host else chunks, size)))
    well &= compare(coder, weights, [b"\xe8\x05\0\0\0" * 30, os.urandom(200) + bytes(300), b"x"])
    print("memory")
    memory(coder)
    print("one chunk alone")
    well &= speed(coder, 8, size)
    print("speed")
    for lanes in LANES[: 3 if host else None]:
        well &= speed(coder, lanes, size // (4 if host else 1))
    coder.free()
    print("all is well" if well else "SOMETHING DIFFERS: the GPU's kernels must not be used here")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
