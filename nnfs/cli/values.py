"""Values of the command line: texts to numbers and paths, with errors that say how to write them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnfs.config import parse_duration, parse_size
from nnfs.mount.table import resolve


def byte_count(text: str) -> int:
    """Parse a number of bytes for argparse."""
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes: write 131072 or 128K") from None


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def seconds(text: str) -> float:
    """Parse a duration of more than 0 seconds."""
    try:
        if duration := parse_duration(text):
            return duration
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: write 0.5, 10 or 1m")


def absolute(text: str) -> Path:
    """Return an absolute path, its directory without symbolic links: the daemon changes its working directory.

    The directory is resolved as by the kernel: "LINK/.." is the parent of the link's target.
    """
    folder, name = os.path.split(text)
    try:
        return Path(resolve(folder or "."), name) if name not in ("", ".", "..") else Path(resolve(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.strerror}") from error
