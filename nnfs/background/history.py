"""The last tasks of a store that have ended, kept over remounts: `STORE/jobs.json`, beside the data and no part of it.

Losing the file loses the list of ended tasks and nothing else. So it is written without fsync, and not on a full disk.
Other versions of nnfs do not look at it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from nnfs.constants import HISTORY_FILE
from nnfs.store import privacy

KEPT = 50
LISTED = 20  # damaged blocks of a record, with so many files each
VERSION = 1

Record = dict[str, Any]

log = logging.getLogger(__name__)


class History:
    """Records of ended tasks, the oldest first. With `path` None nothing is read or written."""

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._path, self._read_only = path, read_only
        self.records, self.scrubbed = read(path) if path is not None else ([], {})

    @property
    def last(self) -> int:
        """The greatest number of a task."""
        return max((int(record["job"]) for record in self.records), default=0)

    def add(self, record: Record) -> None:
        """Add a record to memory; `write` puts all records on disk."""
        self.records = [*self.records, _short(record)][-KEPT:]
        result = record.get("result", {})
        if record["kind"] == "scrub" and record["state"] == "done" and result.get("since") and not result["unchecked"]:
            for kind in ("deep", "checksums") if result["deep"] else ("checksums",):
                self.scrubbed = {**self.scrubbed, kind: result["since"]}

    def write(self) -> None:
        """Write the file anew. Raises nothing: no task may fail for its record."""
        if self._path is None or self._read_only:
            return
        draft = self._path.with_name(f".{HISTORY_FILE}")
        text = json.dumps({"version": VERSION, "jobs": self.records, "scrubbed": self.scrubbed})
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(draft, flags, privacy.FILE), "w") as file:
                privacy.give(file.fileno(), draft.parent)
                file.write(text)
            os.rename(draft, self._path)
        except OSError as error:
            log.warning("the list of tasks is not kept: %s", error)
            with contextlib.suppress(OSError):
                draft.unlink()


def read(path: Path) -> tuple[list[Record], dict[str, float]]:
    """Return the records of a file, and when all was last found sound. Return none for a missing or invalid file."""
    try:
        found = json.loads(path.read_bytes())
        records = [record for record in found["jobs"] if isinstance(record["job"], int) and record["kind"]]
        return records[-KEPT:], {str(kind): float(at) for kind, at in found["scrubbed"].items()}
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read, it is begun anew: %r", path, error)
        return [], {}


def _short(record: Record) -> Record:
    """Return a record cut to what a list of tasks has room for."""
    result = dict(record.get("result", {}))
    damaged = result.get("damaged")
    if isinstance(damaged, list):
        result.setdefault("damaged_blocks", len(damaged))
        result["damaged"] = [
            {**one, "files": one["files"][:LISTED]} if isinstance(one, dict) and one.get("files") else one
            for one in damaged[:LISTED]
        ]
    return {**record, "eta": None, "result": result}
