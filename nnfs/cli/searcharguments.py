"""The arguments of `nnfs search` and `nnfs similar`."""

from __future__ import annotations

from typing import Any

from nnfs.cli.parser import add_json, command
from nnfs.cli.values import byte_count, positive, seconds


def add(commands: Any) -> None:
    """Add both commands."""
    parser = command(commands, "search", "search:search", "find files by their names, and by what they are about", """\
  nnfs search /mnt/nn invoice 2019
  nnfs search /mnt/nn/mail "invoice from the plumber" --type f --newer 365d
  nnfs search /mnt/nn main.c --glob 'src/*' -0 | xargs -0 wc -l
Names and directories that have the words come first, then files whose first KiB is about them.
""")  # fmt: skip
    _add_path(parser)
    parser.add_argument("query", metavar="QUERY", nargs="+", help="words")
    _add_filters(parser)

    parser = command(commands, "similar", "search:similar", "find the files that are most like one", """\
  nnfs similar /mnt/nn /mnt/nn/logs/access.log
  nnfs similar /mnt/nn ~/letter.txt -n 5 --json
Files are compared by their names and by the words and bytes of their first KiB. FILE need not lie on the mount.
""")  # fmt: skip
    _add_path(parser)
    parser.add_argument("file", metavar="FILE", help="a file that can be read")
    _add_filters(parser)


def _add_path(parser: Any) -> None:
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or a directory on a mount: search below")


def _add_filters(parser: Any) -> None:
    parser.add_argument("-n", "--count", type=positive, default=20, metavar="N", help="answers at most (20)")
    parser.add_argument("--type", action="append", choices=["f", "d", "l"], help="files, directories, symbolic links")
    parser.add_argument("--larger", type=byte_count, metavar="SIZE", help="of at least so many bytes (10M)")
    parser.add_argument("--smaller", type=byte_count, metavar="SIZE", help="of at most so many bytes")
    parser.add_argument("--newer", type=seconds, metavar="AGE", help="changed within this time (12h, 30d)")
    parser.add_argument("--older", type=seconds, metavar="AGE", help="not changed within this time")
    parser.add_argument("--glob", metavar="GLOB", help="with a path below PATH that fits; * means slashes, too")
    parser.add_argument("--owner", action="append", metavar="USER", help="of this user, by name or number")
    parser.add_argument("--seconds", type=seconds, default=10.0, metavar="S", help="end after this time (10)")
    parser.add_argument("-0", dest="zeros", action="store_true", help="end each path with a zero byte, not with a line")
    add_json(parser)
