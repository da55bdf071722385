"""`nnfs metrics`: the figures of a mount for Prometheus."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from nnfs.cli import client
from nnfs.cli.locate import locate


def metrics(args: argparse.Namespace) -> int:
    """Print the metrics of a mount, or write them to a file for the textfile collector of node_exporter."""
    text = client.ask(locate(args.path).store, "metrics")["text"]
    if args.textfile is None:
        print(text, end="")
    else:
        write(args.textfile, text)
    return 0


def write(file: Path, text: str) -> None:
    """Write a file in one step, readable by everybody: its reader must not find a part of it. Raises `OSError`."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as part:
            part.write(text)
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
