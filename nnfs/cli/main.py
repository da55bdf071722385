"""The `nnfs` command: arguments, help, errors. A command imports its libraries when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import nnfs
from nnfs import names
from nnfs.cli import lookarguments, quotaarguments, searcharguments, snapshotarguments, systemarguments
from nnfs.cli.parser import FsckParser, Parser, parsed
from nnfs.cli.parser import add_json as _add_json
from nnfs.cli.parser import command as _command
from nnfs.cli.values import absolute, byte_count, count, positive
from nnfs.config import CONFIG_FILE, described
from nnfs.constants import DEFAULT_CHUNK_SIZE, POLICIES
from nnfs.errors import NnfsError

INTERRUPTED = 130

EXAMPLES = """\
examples:
  nnfs mount /data /mnt/nn      mount the store /data (nnfs mkfs /data makes it)
  nnfs df /mnt/nn               show what it saves
  nnfs compact /mnt/nn --wait   recompress cold data now
  nnfs umount /mnt/nn           unmount, and wait until everything is on disk
`nnfs help COMMAND` explains a command.
"""


def _mount_epilog() -> str:
    options = "\n".join(f"  {name:<18} {meaning}" for name, meaning in described())
    return f"""\
  nnfs mount /data /mnt/nn
  nnfs mount /data /mnt/nn -o ro,noatime,write_age=2h
  nnfs mount /data /mnt/nn -f            stay in the foreground and log to stderr
  /data /mnt/nn fuse.nnfs defaults 0 0   the same, as a line of /etc/fstab
Mounting an existing empty directory at a terminal makes a new store in it. Scripts, units and mount(8) never make
one: use nnfs mkfs, or the option create. A directory that does not exist is an error.
options of nnfs for -o, with their defaults:
{options}
{CONFIG_FILE} takes the same names (name = "value"), in a table [default] and in one for each store, ["/data"].
-o comes first, then the table of the store, then [default].
"""


def _add_mounting(commands: Any) -> None:
    parser = _command(commands, "mount", "mounting:mount", "mount a store", _mount_epilog())
    parser.add_argument("store", metavar="STORE", help="directory of the store")
    parser.add_argument("mountpoint", metavar="MNT", help="directory to mount on")
    parser.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground until unmounted")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTS",
        help="options of mount(8): ro, allow_other, noatime, suid, dev, exec, fsname=...; create; and those below",
    )  # fmt: skip
    parser.add_argument(
        "--device", metavar="D", help="short for -o device=D: auto, cpu, cuda:0, or several: cuda:0+cpu or cuda:0,cpu"
    )
    parser.add_argument(
        "--chunk-size", type=byte_count, metavar="N", help="for a new store: 16K to 1M, a power of two (128K)"
    )
    parser.add_argument(
        "--log",
        type=absolute,
        metavar="FILE",
        help="log to FILE (default: the journal, else /var/log/nnfs; with -f stderr)",
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="the least level that is logged (info)",
    )
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)

    parser = _command(commands, "umount", "mounting:umount", "unmount, and wait until everything is committed", """\
  nnfs umount /mnt/nn
  nnfs umount -l /mnt/nn     detach a busy mount now; it ends with its last user
""")  # fmt: skip
    parser.add_argument("mountpoint", metavar="MNT", help="the mount point (or the store's directory)")
    parser.add_argument("-l", "--lazy", action="store_true", help="detach now, and do not wait")
    parser.add_argument(
        "-f", "--force", action="store_true", help="abort requests that wait; unwritten data may be lost"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing and return 0 when it is not mounted")


def _add_tasks(commands: Any) -> None:
    parser = _command(commands, "tasks", "tasks:tasks", "list the tasks of the daemon, and how the last 50 ended", """\
  nnfs tasks /mnt/nn
  nnfs tasks /data --json | jq '.jobs[] | select(.state == "failed")'
""", "jobs")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, mounted or not, a mount point, or anything on a mount")
    _add_json(parser)


def _add_recompressing(commands: Any) -> None:
    parser = _command(commands, "compact", "recompress:compact", "recompress cold data at and below a path", """\
  nnfs compact /mnt/nn                        start it; nnfs status /mnt/nn shows its progress
  nnfs compact /mnt/nn/logs --all --wait      recompress everything, even if young, even if slow to read back
  nnfs compact /mnt/nn --quick --wait         with the quick codec only: hours, not weeks, for a terabyte
  nnfs compact /mnt/nn --dry-run              estimate what each codec would save, and how long it would take
  nnfs compact /mnt/nn --cancel
""")  # fmt: skip
    _add_task(parser, "anything on a mount (or the store)")
    parser.add_argument("--all", action="store_true", help="recompress even if young, and even if reading back is slow")
    parser.add_argument("--quick", action="store_true", help="use the quick codec only; slower ones may come later")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; estimate the saving from a sample")

    parser = _command(commands, "thaw", "recompress:thaw", "bring data back to the hot tier: quick to read", """\
  nnfs thaw /mnt/nn/thesis --wait
  nnfs policy /mnt/nn/thesis hot     keep it there
""")  # fmt: skip
    _add_task(parser, "anything on a mount (or the store)")

    parser = _command(commands, "warm", "warm:warm", "decode cold files ahead of reading", """\
  nnfs warm /mnt/nn/thesis --wait
  nnfs warm /mnt/nn/logs --depth 0                     only the files of the directory itself
  find /mnt/nn -name '*.tex' -print0 | nnfs warm /mnt/nn -0
Blocks stay cold; copies of them (option thawed; cache where there are none) are read quickly until others take their
place. Exit status 8: not everything fitted.
""")  # fmt: skip
    _add_task(parser, "anything on a mount (or the store)")
    parser.add_argument("--depth", type=count, metavar="N", help="enter directories N levels below PATH at most (all)")
    parser.add_argument(
        "-0", "--null", action="store_true",
        help="take the files and directories that standard input names, a NUL behind each, and wait",
    )  # fmt: skip

    parser = _command(commands, "scrub", "recompress:scrub", "verify everything that is stored, while mounted", """\
  nnfs scrub /mnt/nn --wait          compare the checksums of all stored bytes; exit status 7: damage
  nnfs scrub /mnt/nn --deep          also decode everything and compare the 512-bit hashes
""")  # fmt: skip
    _add_task(parser, "a store, a mount point, or anything on a mount")
    parser.add_argument("--deep", action="store_true", help="decode everything and compare hashes: slow")

    for name, summary in (
        ("pause", "hold recompression, thawing and scrub"),
        ("resume", "let recompression, thawing and scrub go on"),
    ):
        parser = _command(commands, name, f"recompress:{name}", summary, f"  nnfs {name} /mnt/nn\n")
        parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")


def _add_task(parser: argparse.ArgumentParser, path_help: str) -> None:
    parser.add_argument("path", metavar="PATH", help=path_help)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--wait", action="store_true", help="show the progress, and return when it is done")
    how.add_argument("--cancel", action="store_true", help="end all such tasks of this mount that run or wait")
    _add_json(parser)


def _add_choosing(commands: Any) -> None:
    parser = _command(commands, "policy", "policy:policy", "show or set the policy of recompression of a path", """\
  nnfs policy /mnt/nn/logs             show the policy, and where it comes from
  nnfs policy /mnt/nn/logs cold
  nnfs policy /mnt/nn/logs inherit     remove it: the policy of the directory above holds
policies:
  auto   recompress cold files if reading back stays quick enough (option thaw_limit)
  cold   recompress cold files even if reading back is slow
  hot    never use a cold codec; bring back what already uses one
  never  leave everything as it is
A file is cold when it was not used for a while (options write_age, read_age).
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a file or a directory on a mount")
    parser.add_argument("policy", nargs="?", choices=[*POLICIES, "inherit"], metavar="POLICY", help="the policy to set")

    parser = _command(commands, "model", "models:list_models", "list, add and retire the models of a store", """\
  nnfs model list /mnt/nn
  nnfs model add /mnt/nn new.safetensors
  nnfs model add /mnt/nn/logs fitted.safetensors --use
  nnfs model retire /mnt/nn 3f5a
""")  # fmt: skip
    actions = parser.add_subparsers(metavar="list|add|retire", required=True, parser_class=Parser)
    parser = actions.add_parser("list", help="list models, what each encoded, and whether both copies are sound")
    parser.set_defaults(run="nnfs.cli.models:list_models")
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    _add_json(parser)
    parser = actions.add_parser("add", help="put the file of a model into the store")
    parser.set_defaults(run="nnfs.cli.models:add")
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("file", metavar="FILE", help="the model: a whole one, or a delta over one that the store has")
    parser.add_argument("--use", action="store_true", help="encode everything below the directory PATH with it")
    parser = actions.add_parser("retire", help="encode nothing more with it; delete it when no block needs it")
    parser.set_defaults(run="nnfs.cli.models:retire")
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("fingerprint", metavar="FINGERPRINT", help="the first digits of its fingerprint")

    parser = _command(commands, "train", "models:train", "fit the default model to the files below a directory", """\
  nnfs train /mnt/nn/logs                 fit, and keep the model if it saves more than it takes
  nnfs train /mnt/nn/logs --wait          then recompress the files there
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a directory on a mount, with files of one kind")
    parser.add_argument("--seconds", type=positive, default=1200, metavar="N", help="how long to learn (1200)")
    parser.add_argument("--keep-always", action="store_true", help="keep the model even if it saves less than it takes")
    parser.add_argument("--wait", action="store_true", help="then recompress everything below PATH, and wait for that")
    _add_json(parser)


def _add_maintaining(commands: Any) -> None:
    parser = _command(commands, "mkfs", "maintain:mkfs", "make an empty store", """\
  nnfs mkfs /data
  nnfs mkfs /data --chunk-size 64K
""")  # fmt: skip
    parser.add_argument("store", metavar="STORE", help="an empty directory, or one to be made")
    parser.add_argument(
        "--chunk-size", type=byte_count, default=DEFAULT_CHUNK_SIZE, metavar="N",
        help="16K to 1M, a power of two (128K): large ones compress better, small ones suit random writes",
    )  # fmt: skip

    parser = _command(commands, "fsck", "maintain:fsck", "check a store that is not mounted", """\
  nnfs fsck /data                  check every invariant of the format, and all checksums
  nnfs fsck /data --data           also decode every chunk and compare its hash
  nnfs fsck /data --repair         repair what can be repaired; files without a name go to /lost+found
exit status as of fsck(8): 0 clean, 1 errors corrected, 4 errors left, 8 could not check, 16 wrong usage
""")  # fmt: skip
    parser.__class__ = FsckParser
    parser.add_argument("store", metavar="STORE", help="directory of the store")
    parser.add_argument("--data", action="store_true", help="also decode every chunk and compare its BLAKE2b-512")
    parser.add_argument("--repair", action="store_true", help="repair; make a copy of data.mdb first if you can")
    _add_json(parser)

    parser = _command(commands, "backup", "maintain:backup", "copy a store, mounted or not, into one file", """\
  nnfs backup /mnt/nn /backup/nn.mdb
  nnfs backup /mnt/nn /backup/nn.tuesday --since /backup/nn.mdb       only what has changed since
  nnfs backup /mnt/nn /backup/nn.wednesday --since /backup/nn.tuesday
restore:
  nnfs restore /backup/nn.mdb /backup/nn.tuesday /backup/nn.wednesday /data2 && nnfs mount /data2 /mnt/nn
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("file", metavar="FILE", help="the file to write; it appears when the copy is complete")
    parser.add_argument("--since", metavar="BACKUP", help="write only what has changed since this backup")
    _add_json(parser)

    parser = _command(commands, "restore", "maintain:restore", "make a store of a backup and its increments", """\
  nnfs restore /backup/nn.mdb /data2
  nnfs restore /backup/nn.mdb /backup/nn.tuesday /backup/nn.wednesday /data2
""")  # fmt: skip
    parser.add_argument("backup", metavar="BACKUP", help="a whole backup")
    parser.add_argument("rest", metavar="INCREMENT ... STORE", nargs="+", help="what follows it, and the new store")
    _add_json(parser)


def _add_moving(commands: Any) -> None:
    parser = _command(commands, "export", "archive:export", "write a tree into a tar archive", """\
  nnfs export /mnt/nn/logs /backup/logs.tar
  nnfs export /mnt/nn - | ssh other nnfs import - /mnt/nn
  nnfs export /mnt/nn - | zstd > /backup/nn.tar.zst
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a file or a directory on a mount")
    parser.add_argument("tar", metavar="TAR", help="the archive to write; it appears when it is complete. -: stdout")
    _add_json(parser)

    parser = _command(commands, "import", "archive:import_", "extract a tar archive into a directory of a mount", """\
  nnfs import /backup/logs.tar /mnt/nn/logs
  zstdcat /backup/nn.tar.zst | nnfs import - /mnt/nn
""")  # fmt: skip
    parser.add_argument("tar", metavar="TAR", help="the archive, of nnfs export, GNU tar, bsdtar, ... -: stdin")
    parser.add_argument("path", metavar="PATH", help="a directory on a mount")
    parser.add_argument("--numeric-owner", action="store_true", help="owners by number, even if their names are known")
    _add_json(parser)


def _add_helping(commands: Any) -> None:
    parser = _command(commands, "help", "help:show", "show the help of a command", """\
  nnfs help compact
  nnfs help model add
""")  # fmt: skip
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="a command, and one of its actions")
    _command(commands, "version", "help:version", "show the version", "  nnfs version\n")


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="nnfs", description="A filesystem that compresses cold data with a neural network and proves every read.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"nnfs {nnfs.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_mounting(commands)
    lookarguments.add(commands)
    _add_tasks(commands)
    _add_recompressing(commands)
    _add_choosing(commands)
    _add_maintaining(commands)
    snapshotarguments.add(commands)
    quotaarguments.add(commands)
    searcharguments.add(commands)
    _add_moving(commands)
    systemarguments.add(commands)
    _add_helping(commands)
    return parser


def _open_standard_descriptors() -> None:
    """Put /dev/null where a caller has closed 0, 1 or 2, so that no store or pipe gets such a number."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        os.set_inheritable(null, True)
        null = os.dup(null)
    os.close(null)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    _open_standard_descriptors()
    if argv is None:
        names.use_utf8()
    names.show_on_terminals()
    umask = os.umask(0o077)  # stores, backups, logs, models are for their owner
    try:
        args = parsed(build_parser(), argv)
        args.umask = umask
        module, _, name = args.run.partition(":")
        run = getattr(importlib.import_module(module), name)
        status: int = run(args)
        sys.stdout.flush()
    except NnfsError as error:
        names.say(names.message_of(error))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `nnfs ... | head`: the flush at exit must not complain
        return NnfsError.exit_code
    except OSError as error:
        names.say(names.message_of(error))
        return NnfsError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        os.umask(umask)
    return status
