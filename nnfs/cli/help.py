"""`nnfs help` and `nnfs version`."""

from __future__ import annotations

import argparse

import nnfs


def show(args: argparse.Namespace) -> int:
    """The help of a command, or of all."""
    from nnfs.cli.main import build_parser

    build_parser().parse_args([*args.command, "--help"])  # ends here, or with the name of what is no command
    return 0


def version(_args: argparse.Namespace) -> int:
    """This version's number."""
    print(f"nnfs {nnfs.__version__}")
    return 0
