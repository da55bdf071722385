"""The commands `nnfs help` and `nnfs version`."""

from __future__ import annotations

import argparse

import nnfs


def show(args: argparse.Namespace) -> int:
    """Print the help of a command, or of all commands."""
    from nnfs.cli.main import build_parser

    build_parser().parse_args([*args.command, "--help"])  # ends the process
    return 0


def version(_args: argparse.Namespace) -> int:
    """Print the number of this version."""
    print(f"nnfs {nnfs.__version__}")
    return 0
