"""Arguments of the commands that look at stores and mounts: df, status, stat, du, report, top, metrics, set."""

from __future__ import annotations

from typing import Any

from nnfs.cli.parser import add_json, command
from nnfs.cli.values import absolute, count, positive, seconds


def add(commands: Any) -> None:
    """Add them to the parser of `nnfs`."""
    _add_looking(commands)
    _add_reporting(commands)
    _add_watching(commands)


def _add_looking(commands: Any) -> None:
    parser = command(commands, "df", "show:df", "show logical, stored and physical bytes, by codec and model", """\
  nnfs df                       one line for each nnfs that is mounted
  nnfs df /mnt/nn
  nnfs df /data --json | jq .physical_bytes
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", nargs="?", help="a store, a mount point, or anything on a mount")
    add_json(parser)

    parser = command(commands, "status", "show:status", "show what the daemon does, and what is damaged", """\
  nnfs status                                          one line for each nnfs that is mounted
  nnfs status /mnt/nn
  kill -TERM $(nnfs status /data --json | jq .pid)     unmount cleanly
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", nargs="?", help="a store, a mount point, or anything on a mount")
    add_json(parser)

    parser = command(commands, "stat", "show:stat", "show how a file, or everything below a directory, is stored", """\
  nnfs stat /mnt/nn/file
  nnfs stat /mnt/nn/photos --json
""")  # fmt: skip
    parser.add_argument("path", metavar="FILE", help="a file or a directory on a mount")
    add_json(parser)

    parser = command(commands, "du", "du:du", "show what directories hold, take and save", """\
  nnfs du /mnt/nn                          the directories in it, and the whole
  nnfs du /mnt/nn -d 3 --sort saved        three levels, those first that save most
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("-d", "--depth", type=count, default=1, metavar="N", help="levels below PATH to show (1)")
    parser.add_argument("--sort", choices=["saved", "stored", "logical", "inodes", "name"], help="largest first")
    add_json(parser)


def _add_reporting(commands: Any) -> None:
    parser = command(commands, "report", "report:report", "write a page about a store: space, soundness, gains", """\
  nnfs report /mnt/nn --html nn.html             one page, which needs neither a server nor scripts
  nnfs report /data --json | jq .summary.files_by_codec
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("--html", metavar="FILE", help="the page to write; it appears when it is complete. -: stdout")
    parser.add_argument("--force", action="store_true", help="replace a FILE that exists")
    add_json(parser)


def _add_watching(commands: Any) -> None:
    parser = command(commands, "top", "top:top", "show each second what a mount does", """\
  nnfs top /mnt/nn
  nnfs top /mnt/nn --interval 10 --count 6 --json
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="S", help="seconds for a line (1)")
    parser.add_argument("--count", type=positive, metavar="N", help="end after N lines (until ^C)")
    parser.add_argument("--lines", action="store_true", help="print lines on a terminal, too, in place of a view")
    add_json(parser)

    parser = command(commands, "metrics", "metrics:metrics", "print the figures of a mount for Prometheus", """\
  nnfs metrics /mnt/nn
  nnfs metrics /mnt/nn --textfile /var/lib/prometheus/node-exporter/nnfs.prom
  nnfs mount /data /mnt/nn -o metrics=127.0.0.1:9567     serve them over HTTP
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("--textfile", type=absolute, metavar="FILE", help="write to FILE, for node_exporter")

    parser = command(commands, "set", "tune:set_options", "show or change the options of a mount", """\
  nnfs set /mnt/nn                                  show all
  nnfs set /mnt/nn cache=64M log_level=debug        until the unmount
""")  # fmt: skip
    parser.add_argument("path", metavar="PATH", help="a store, a mount point, or anything on a mount")
    parser.add_argument("options", metavar="NAME=VALUE", nargs="*", help="an option as for -o, or log_level=LEVEL")
    add_json(parser)
