"""`nnfs set`: options of a mount, shown and changed while it is mounted."""

from __future__ import annotations

import argparse

from nnfs.cli import client, tables
from nnfs.cli.locate import locate
from nnfs.errors import UsageError


def set_options(args: argparse.Namespace) -> int:
    """Change options of a mount until it is unmounted, or show all of them."""
    words = {}
    for text in args.options:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not an option with its value: write {text}=VALUE")
        words[name] = value
    options = client.ask(locate(args.path).store, "set", options=words)["options"]
    if args.json:
        tables.printed_json(options)
    elif not words:
        print(tables.pairs(list(options.items())))
    return 0
