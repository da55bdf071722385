"""``python -m nnfs.workers.selfcheck``: whether the codecs of this machine read golden payloads, and how fast they are.

A process of its own, for `nnfs doctor`: native code may end the process. It writes a line of JSON for each thing that
it finds, at once, so that what was found before its end counts. The speed is that of one thread, with the chunk that
standard input has; without one nothing is measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM
from nnfs.errors import CodecError
from nnfs.kernelcache import clean_environment
from nnfs.kernels import library
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.wire import NO_MODEL

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json")
PIECES = {PPM: 1 << 17, CM_LIGHT: 1 << 17, CM: 1 << 16, NEURAL: 1 << 16}  # bytes that are measured: seconds
WARM = 4096  # bytes that are coded before


def golden() -> list[dict[str, Any]]:
    """Return payloads that every nnfs reads, with their plain bytes: some of tests/format/golden.json."""
    with open(GOLDEN, encoding="ascii") as file:
        return [
            one | {"plain": base64.b64decode(one["plain"]), "payload": base64.b64decode(one["payload"])}
            for one in json.load(file)
        ]


def exactness(catalogue: Catalogue) -> Iterator[dict[str, Any]]:
    """Yield for each golden payload whether it is decoded to its plain bytes, and if not why."""
    for one in golden():
        found = {"golden": one["name"], "codec": one["codec"], "why": ""}
        try:
            codec = catalogue.find(one["codec"], NO_MODEL)
            if codec.decode(one["payload"], len(one["plain"])) != one["plain"]:
                found["why"] = "wrong bytes"
        except CodecError as error:
            found["why"] = str(error)
        yield found


def speeds(catalogue: Catalogue, sample: bytes) -> Iterator[dict[str, Any]]:
    """Yield the speed of each cold codec that runs, and whether it gives back what it was given."""
    for number, size in PIECES.items():
        plain = sample[:size]
        try:
            codec = catalogue.find(number, NO_MODEL)
            codec.encode(sample[-WARM:])  # kernels are loaded, or compiled, by now
            began = time.perf_counter()
            payload = codec.encode(plain)
            between = time.perf_counter()
            if payload is None or codec.decode(payload, len(plain)) != plain:
                raise CodecError("does not give back what it was given")
            ended = time.perf_counter()
        except CodecError as error:
            yield {"speed": number, "why": str(error)}
            continue
        yield {
            "speed": number, "why": "",
            "encode": len(plain) / (between - began), "decode": len(plain) / (ended - between),
        }  # fmt: skip


def engine(catalogue: Catalogue) -> dict[str, Any]:
    """Return what runs the kernels here. The network has been opened before: its self-test may rule a level out."""
    there = library.library()
    level = None
    if there is not None:
        from nnfs.model.selftest import native_level

        level = native_level()
    return {"device": catalogue.device, "levels": list(there.levels) if there else [], "level": level}


def main() -> None:
    """Check one device."""
    parser = argparse.ArgumentParser("nnfs-selfcheck", description="Checks the codecs of this machine.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto")
    args = parser.parse_args()
    clean_environment(os.environ)
    catalogue = Catalogue(args.device)

    def tell(found: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()

    for found in exactness(catalogue):
        tell(found)
    tell(engine(catalogue))
    sample = sys.stdin.buffer.read()
    for found in speeds(catalogue, sample) if sample else ():
        tell(found)


if __name__ == "__main__":
    main()
