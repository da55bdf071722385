"""nnfs's own mount options (`-o name=value`), beside those that mount(8) knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nnfs.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Options:
    """Limits of one mount."""

    cache: int = 32 << 20  # bytes of decoded blocks kept; the kernel's page cache holds what was read besides
    dirty: int = 24 << 20  # bytes of written data not committed yet, at which writers wait
    read_timeout: float = 60.0  # seconds within which every read ends


def parse_size(text: str) -> int:
    """Parse a number of bytes with an optional K, M or G. Raises ValueError."""
    unit = text[-1:].upper() if text[-1:].upper() in _UNITS and text[-1:] else ""
    return int(text[: len(text) - len(unit)]) * _UNITS[unit]


def parse_own(words: Mapping[str, str]) -> Options:
    """Return the options of a mount. Raises `UsageError` for unknown names and bad values."""
    values: dict[str, float] = {}
    for name, text in words.items():
        try:
            if name in ("cache", "dirty"):
                values[name] = parse_size(text)
            elif name == "read_timeout":
                values[name] = float(text)
            else:
                raise UsageError(f"unknown mount option {name!r}: see nnfs mount --help")
        except ValueError as error:
            raise UsageError(f"mount option {name}={text}: {error}") from error
    if values.get("dirty", 1 << 30) < 4 << 20 or values.get("cache", 0) < 0 or values.get("read_timeout", 1) <= 0:
        raise UsageError("mount options: dirty must be at least 4M, cache and read_timeout positive")
    return Options(**values)  # type: ignore[arg-type]
