"""The arguments of `nnfs quota`."""

from __future__ import annotations

from typing import Any

from nnfs.cli.parser import Parser, action, add_json, command
from nnfs.cli.values import byte_count, count

DIRECTORY = "a directory on a mount; the root (or the store): the limit of everything"


def add(commands: Any) -> None:
    """Add the command and its actions."""
    parser = command(commands, "quota", "quotas:show_limits", "limit bytes and inodes of directories, or of all", """\
  nnfs quota set /mnt/nn/home/ann --bytes 10G --inodes 100000
  nnfs quota set /mnt/nn --bytes 2T              the limit of the whole filesystem
  nnfs quota set /mnt/nn/home/ann --inodes 0     take one limit away
  nnfs quota show /mnt/nn                        all limits, and what counts for each
  nnfs quota remove /mnt/nn/home/ann
  nnfs quota check /mnt/nn --repair
Bytes are the sizes of files, as ls -l shows them: compression and holes save nothing of a limit. The directory itself
counts as one inode. Limits hold for everybody, root too.
""")  # fmt: skip
    actions = parser.add_subparsers(metavar="set|show|remove|check", required=True, parser_class=Parser)
    parser = _action(actions, "set", "set_limits", "set limits; return when all below the directory is counted")
    parser.add_argument("--bytes", type=byte_count, metavar="N", help="limit of the sizes of files: 10G; 0: none")
    parser.add_argument("--inodes", type=count, metavar="N", help="limit of files, directories, links ...; 0: none")
    _add_no_wait(parser)
    add_json(parser)
    parser = _action(
        actions, "show", "show_limits", "show all limits of a mount, or those that hold for a directory or file",
        "a store, a mount point, or anything on a mount",
    )  # fmt: skip
    add_json(parser)
    parser = _action(actions, "remove", "remove", "take the limits of a directory away")
    _add_no_wait(parser)
    parser = _action(actions, "check", "check", "count everything anew, and compare", "anything on a mount")
    parser.add_argument("--repair", action="store_true", help="correct what is wrong")
    add_json(parser)


def _action(actions: Any, name: str, run: str, summary: str, path: str = DIRECTORY) -> Any:
    return action(actions, name, f"quotas:{run}", summary, path)


def _add_no_wait(parser: Any) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return at once; it is counted in the background")
