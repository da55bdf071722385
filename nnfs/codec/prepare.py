"""``python -m nnfs.codec.prepare``: compile the kernels of every cold codec, so that the first read does not wait for it.

Numba keeps what it compiled beside the sources, or in the user's cache where that folder is read-only.
"""

from __future__ import annotations

import sys

from nnfs.codec.catalogue import Catalogue
from nnfs.errors import CodecError

SAMPLE = b"".join(b"%d bottles of beer on the wall, " % n for n in range(300))  # three lanes of the neural codec


def main() -> int:
    """Run a chunk through every codec. Return 1 if one of them does not give it back."""
    catalogue = Catalogue()
    status = 0
    for name in catalogue.names().values():
        try:
            codec = catalogue.named(name)
            payload = codec.encode(SAMPLE)
            if payload is None or codec.decode(payload, len(SAMPLE)) != SAMPLE:
                raise CodecError("does not give back what it was given")
        except CodecError as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
