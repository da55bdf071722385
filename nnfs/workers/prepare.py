"""``python -m nnfs.workers.prepare``: compile the kernels of every cold codec, so that no read waits for it.

First the native ones (`nnfs.kernels.build`); where that cannot be, numba's do their work. Numba keeps what it compiled
beside the sources, or in the user's cache where that folder is read-only.
"""

from __future__ import annotations

import os
import shutil
import sys

from nnfs.errors import CodecError
from nnfs.kernelcache import FOLDER
from nnfs.kernels import build
from nnfs.model.dictionary import Dictionary
from nnfs.workers.catalogue import Catalogue

SAMPLE = b"".join(b"%d bottles of beer on the wall, " % n for n in range(300))  # three lanes of the neural codec


def remove_old_kernels() -> None:
    """Remove the compiled kernels of other versions, which nothing will ask for again (see `nnfs.kernelcache`)."""
    current = os.environ["NUMBA_CACHE_DIR"]
    folder, name = os.path.split(current)
    if os.path.isdir(folder):
        for other in os.listdir(folder):
            if other.startswith(FOLDER) and other != name:
                shutil.rmtree(os.path.join(folder, other), ignore_errors=True)


def main() -> int:
    """Run a chunk through every codec. Return 1 if one of them does not give it back."""
    remove_old_kernels()
    build.main()
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
    sys.exit(main())
