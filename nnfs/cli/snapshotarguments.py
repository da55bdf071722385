"""The arguments of `nnfs snapshot`."""

from __future__ import annotations

from typing import Any

from nnfs.cli import keeprules
from nnfs.cli.parser import Parser, action, add_json, command

ANYWHERE = "a store that is mounted, a mount point, or anything on a mount"


def add(commands: Any) -> None:
    """Add the command and its actions."""
    parser = command(commands, "snapshot", "snapshots:list_snapshots", "take and use snapshots of a filesystem", """\
  nnfs snapshot create /mnt/nn before-cleaning
  ls /mnt/nn/.nnfs/snapshots/before-cleaning
  nnfs snapshot list /mnt/nn
  nnfs snapshot diff /mnt/nn before-cleaning
  nnfs snapshot restore /mnt/nn/thesis before-cleaning --to /mnt/nn/thesis.old
  nnfs snapshot delete /mnt/nn before-cleaning
  nnfs snapshot prune /mnt/nn --keep hourly=24,daily=30,monthly=12
A snapshot shows the whole filesystem as it was, and can only be read. Taking one takes no space; what is changed or
deleted later stays until no snapshot has it any more.
""")  # fmt: skip
    actions = parser.add_subparsers(metavar="create|list|diff|delete|restore|prune", required=True, parser_class=Parser)
    _add_taking(actions)
    _add_comparing(actions)
    _add_deleting(actions)


def _action(actions: Any, name: str, run: str, summary: str, path: str = ANYWHERE) -> Any:
    return action(actions, name, f"snapshots:{run}", summary, path)


def _add_taking(actions: Any) -> None:
    parser = _action(actions, "create", "create", "take a snapshot now")
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"its name ({keeprules.PREFIX} and the time, UTC)")
    add_json(parser)
    parser = _action(actions, "list", "list_snapshots", "list snapshots, with what only they hold")
    add_json(parser)


def _add_comparing(actions: Any) -> None:
    parser = _action(actions, "diff", "diff", "show what has changed since a snapshot, or between two", ANYWHERE)
    parser.add_argument("name", metavar="NAME", help="the older snapshot")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="the younger one (the filesystem as it is now)")
    parser.epilog = "+ added, - removed, > renamed, M content changed, a mode, owner or extended attributes changed"
    add_json(parser)
    parser = _action(
        actions, "restore", "restore", "copy a file or directory out of a snapshot", "its path, as it was then"
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the snapshot")
    parser.add_argument("--to", metavar="DEST", help="where to put it (where it was)")
    parser.add_argument("--replace", action="store_true", help="delete what is there now")


def _add_deleting(actions: Any) -> None:
    parser = _action(actions, "delete", "delete", "delete snapshots; their space comes back in the background")
    parser.add_argument("name", metavar="NAME", nargs="+", help="the snapshots")
    parser = _action(actions, "prune", "prune", "delete the snapshots that no rule keeps")
    parser.add_argument(
        "--keep", type=keeprules.rules, required=True, metavar="RULES",
        help="hourly=24,daily=30: keep the newest of each of the last 24 hours and 30 days that have any; "
        "also weekly, monthly, yearly, and last=N for the N newest",
    )  # fmt: skip
    parser.add_argument(
        "--prefix", default=keeprules.PREFIX, metavar="TEXT",
        help=f"look only at names that begin so ({keeprules.PREFIX}); the others stay",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="delete nothing; print what would be deleted")
    add_json(parser)
