"""`nnfs metrics`: the figures of a mount for Prometheus."""

from __future__ import annotations

import argparse

from nnfs.cli import client, wholefile
from nnfs.cli.locate import locate

MODE = 0o644  # node_exporter is another user


def metrics(args: argparse.Namespace) -> int:
    """Print the metrics of a mount, or write them to a file for the textfile collector of node_exporter."""
    text = client.ask(locate(args.path).store, "metrics")["text"]
    if args.textfile is None:
        print(text, end="")
    else:
        wholefile.write(args.textfile, text, MODE, durable=False)
    return 0
