"""The result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nnfs import names

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """The result of a check. `advice` says what to do, "" where nothing is to be done."""

    check: str
    verdict: str
    text: str
    advice: str = ""
    names_files: bool = False  # its text may have names of the user's files

    def line(self) -> str:
        """Return the finding as a line for people."""
        told = f"{self.text}: {self.advice}" if self.advice else self.text
        return f"{self.verdict:<5} {self.check:<12} {names.one_line(told)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        found = asdict(self)
        del found["names_files"]
        return found


def ok(check: str, text: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check, OK, text)


def warn(check: str, text: str, advice: str) -> Finding:
    """Return a finding with which nnfs works, but not as well as it could, or not for everybody."""
    return Finding(check, WARN, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """Return a finding with which something does not work."""
    return Finding(check, FAIL, text, advice)
