"""Page-level damage of a data file, found without opening it through the engine (which trusts its pages)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmdb import verify as lmdb_verify

from nnfs.errors import StoreDamaged
from nnfs.store.branchkeys import misleading_branch_keys

_verify: Any = lmdb_verify.verify  # has no annotations


def page_damage(data_file: Path) -> list[str]:
    """Return the faults of the B-trees of an LMDB data file. No process may change it meanwhile.

    Reads every page twice, in Python: 20,000 to 60,000 pages (80 to 240 MiB) a second here.
    """
    try:
        found = [str(problem) for problem in _verify(os.fspath(data_file), subdir=False)]
    except lmdb_verify.VerifyError as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001 a walker of arbitrary bytes that fails has found damage
        return [f"the page walker failed: {type(error).__name__}: {error}"]
    return found or _branch_keys(data_file)


def _branch_keys(data_file: Path) -> list[str]:
    fd = os.open(data_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return list(misleading_branch_keys(fd))
    except StoreDamaged as error:
        return [str(error)]
    finally:
        os.close(fd)
