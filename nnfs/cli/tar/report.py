"""The outcome of an export or an import: counts, and the members that did not pass."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Any

from nnfs.errors import NnfsError, StoreDamaged
from nnfs.names import message_of


@dataclass
class Report:
    """Counts of members by kind; `skipped` has what was left out on purpose, `failed` what should have passed."""

    files: int = 0
    directories: int = 0
    hard_links: int = 0
    others: int = 0
    plain_bytes: int = 0  # sizes of the files
    archive_bytes: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    exit_code: int = 0

    def skip(self, name: bytes, why: str) -> None:
        """Note something that is left out, which is no error."""
        self.skipped.append({"path": os.fsdecode(name), "why": why})

    def fail(self, name: bytes, error: Exception | str, code: int = NnfsError.exit_code) -> None:
        """Note a member that did not pass, and the exit code for that: the largest of all holds."""
        if isinstance(error, OSError):
            code = StoreDamaged.exit_code if error.errno == errno.EIO else code
            error = error.strerror or str(error)
        elif isinstance(error, NnfsError):
            code, error = error.exit_code, message_of(error)
        self.failed.append({"path": os.fsdecode(name), "why": str(error)})
        self.exit_code = max(self.exit_code, code)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {name: value for name, value in vars(self).items() if name != "exit_code"}
