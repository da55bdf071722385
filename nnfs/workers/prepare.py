"""``python -m nnfs.workers.prepare``: compile the kernels of every cold codec, so that nobody waits for it.

The native ones come first (`nnfs.kernels.build`), then numba's, which the reference worker has where others are native.
`nnfs.kernelcache` has the places of numba's. All files are durable when this ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

from nnfs import kernelcache
from nnfs.errors import CodecError
from nnfs.kernels import build
from nnfs.mixer.kernelfiles import PART
from nnfs.model.dictionary import Dictionary
from nnfs.workers import prepared
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.process import reference_environment

SAMPLE = b"".join(b"%d bottles of beer on the wall, " % n for n in range(300))  # three lanes of the neural codec


def remove_old_kernels() -> None:
    """Remove the compiled kernels of other versions, which are not used any more, and half-written files."""
    for root in kernelcache.roots():
        for name in os.listdir(root) if os.path.isdir(root) else ():
            if name.startswith(kernelcache.FOLDER) and name != kernelcache.folder_name():
                shutil.rmtree(os.path.join(root, name), ignore_errors=True)
    for place in kernelcache.places():
        for name in os.listdir(place) if os.path.isdir(place) else ():
            if name.endswith(PART):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(place, name))


def main() -> int:
    """Run a chunk through every codec, on both kinds of engines. Return 1 if a codec does not return it."""
    remove_old_kernels()
    build.main()
    try:
        return _run_on_both()
    finally:
        prepared.note()


def _run_on_both() -> int:
    status = run_all()
    environment = dict(reference_environment())
    if environment.items() <= os.environ.items():
        return status
    command = [sys.executable, "-P", "-c", "import sys; from nnfs.workers.prepare import run_all; sys.exit(run_all())"]
    return max(status, subprocess.run(command, env=os.environ | environment, check=False).returncode)


def run_all() -> int:
    """Run a chunk through every codec. Return 1 if a codec does not return it."""
    catalogue = Catalogue()
    status = 0
    for name in catalogue.names().values():
        try:
            codec = catalogue.find(*catalogue.resolve(name))
            payload = codec.encode(SAMPLE)
            if payload is None or codec.decode(payload, len(SAMPLE)) != SAMPLE:
                raise CodecError("does not give back what it was given")
        except CodecError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    Dictionary(SAMPLE)  # fitted models have one
    return status


if __name__ == "__main__":
    kernelcache.clean_environment(os.environ)
    sys.exit(main())
