"""`python -m nnfs` is `nnfs`."""

from __future__ import annotations

import sys

from nnfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
