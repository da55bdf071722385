"""Checks of the codecs: a child process decodes golden payloads on each engine, and measures how fast they are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from nnfs.background.calibration import Kind, sample
from nnfs.cli import tables
from nnfs.cli.doctor.finding import Finding, fail, ok, warn
from nnfs.codec import NAMES
from nnfs.codec.base import NEURAL
from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import BuildFailed, CodecUnavailable
from nnfs.kernels import build, library
from nnfs.workers.process import reference_environment
from nnfs.workers.startup import quiet_threads

SECONDS = 900  # for a child: where no kernels are compiled yet, it compiles them
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
DAMAGED = (
    "this nnfs, or this processor, cannot be trusted with data: install nnfs again, test the memory, and report it"
)
Lines = list[dict[str, Any]]


def checks(*, with_speed: bool = True) -> Iterator[Finding]:
    """Yield what is found about the kernels, the codecs on each engine, the GPU, and the speed."""
    yield _library()
    try:
        chunk = sample(Kind.TEXT) if with_speed else b""
    except CodecUnavailable as error:
        yield fail("samples", str(error), "install nnfs again")
        chunk = b""
    found, trouble = run("cpu", chunk)
    yield from _path(found, trouble)
    yield _exact("exactness", found, trouble)
    yield _exact("reference", *run("cpu", b"", dict(reference_environment())))
    yield from _speeds(found)
    yield gpu()


def run(device: str, chunk: bytes, environment: dict[str, str] | None = None) -> tuple[Lines, str]:
    """Run the child. Return what it has found, and how it ended where that was not in order."""
    own = {name: value for name, value in os.environ.items() if name != PRODUCT_VARIABLE} | (environment or {})
    quiet_threads(own, 1)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (package, own.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "nnfs.workers.selfcheck", "--device", device]
    try:
        done = subprocess.run(command, input=chunk, capture_output=True, env=own, timeout=SECONDS, check=False, cwd="/")
    except subprocess.TimeoutExpired:
        return [], f"no result within {SECONDS} s"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith(b"}")]
    if not done.returncode:
        return lines, ""
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return lines, f"ended with {how}{f': {said[-1]}' if said else ''}"


def _library() -> Finding:
    if build.found() is not None:
        return ok("native", "the kernels are compiled")
    try:
        build.compiler()
    except BuildFailed as error:
        return warn("native", f"no native kernels, a third of the speed ({error})", "then nnfs prepare compiles them")
    return warn("native", "the kernels are not compiled yet", "nnfs prepare does it; the first mount does it, too")


def _path(found: Lines, trouble: str) -> Iterator[Finding]:
    """Yield the engine that runs on this processor."""
    engine = next((line for line in found if "levels" in line), None)
    if engine is None:
        yield fail("cpu", f"the self-check of the codecs {trouble or 'told nothing'}", DAMAGED)
        return
    if engine["level"]:
        first, used = engine["levels"][0], engine["level"]
        if first != used and not os.environ.get(library.VARIABLE):
            yield fail(
                "cpu", f"the kernels {first} compute wrongly here, {used} are used", "report it: a bug, or a CPU"
            )
        else:
            yield ok("cpu", f"native kernels ({used}; {', '.join(engine['levels'])} can run)")
    else:
        yield warn("cpu", "numba's kernels, a third as fast as native ones", "nnfs prepare compiles those")


def _exact(check: str, found: Lines, trouble: str) -> Finding:
    """Return whether an engine decodes all golden payloads."""
    golden = [line for line in found if "golden" in line]
    wrong = [line for line in golden if line["why"]]
    if not golden or (trouble and not wrong):
        return fail(check, f"the self-check of the codecs {trouble or 'told nothing'}", DAMAGED)
    if not wrong:
        return ok(check, f"{len(golden)} golden payloads are decoded to their bytes")
    told = "; ".join(sorted({f"{NAMES[line['codec']]}: {line['why']}" for line in wrong}))
    lacks = all("not installed" in line["why"] for line in wrong)
    return (warn if lacks else fail)(check, told, "install it to read such data" if lacks else DAMAGED)


def _speeds(found: Lines) -> Iterator[Finding]:
    """Yield the speed of each codec, with one thread and one chunk."""
    speeds = [line for line in found if "speed" in line]
    if wrong := [line for line in speeds if line["why"]]:
        yield fail("speed", "; ".join(f"{NAMES[line['speed']]}: {line['why']}" for line in wrong), DAMAGED)
    good = [line for line in speeds if not line["why"]]
    if not good:
        return
    texts = [
        f"{NAMES[line['speed']]} {tables.size(int(line['decode']))}/s ({tables.size(int(line['encode']))}/s)"
        for line in good
    ]
    yield ok("speed", f"one thread decodes (encodes) {', '.join(texts)}")


def gpu() -> Finding:
    """Return whether there is a GPU, and whether the codec of the network runs on it."""
    if not any(map(os.path.exists, GPU_FILES)):
        return ok("gpu", "no NVIDIA GPU: the processor does all")
    if importlib.util.find_spec("torch") is None:
        advice = "pip install 'nnfs[neural]', or tools/run --torch cuda, for the network on it"
        return warn("gpu", "there is an NVIDIA GPU, and torch is not installed", advice)
    found, trouble = run("auto", b"")
    network = next((line for line in found if line.get("codec") == NEURAL), {"why": trouble or "told nothing"})
    engine = next((line for line in found if "device" in line), {"device": "cpu"})
    if network["why"]:
        return fail("gpu", f"the network does not run on the GPU: {network['why']}", "-o device=cpu does without it")
    if not engine["device"].startswith("cuda"):
        return warn("gpu", "there is an NVIDIA GPU, but the processor is used", "install its driver and torch for CUDA")
    return ok("gpu", f"{engine['device']} decodes the golden payload to its bytes")
