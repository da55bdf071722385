"""The arguments of commands about the machine: `nnfs doctor`, `nnfs prepare`, `nnfs integrate`."""

from __future__ import annotations

from typing import Any

from nnfs.cli.parser import add_json, command
from nnfs.cli.values import absolute

DOCTOR = """\
  nnfs doctor                                 this machine: FUSE, rights, processor, exactness, clock, space
  nnfs doctor /mnt/nn                         the store and its daemon, too
  nnfs doctor /mnt/nn --bundle report.tar.gz  pack what the report of a bug needs
Each line has a verdict (ok, warn, fail), the check, what was found, and what to do. The exit status is 0 where nothing
fails. The bundle has no names and no content of files; README.txt in it says what it has.
"""


def add(commands: Any) -> None:
    """Add the commands."""
    parser = command(commands, "doctor", "doctor.main:doctor", "check this machine, and a store", DOCTOR)
    parser.add_argument("path", metavar="PATH", nargs="?", help="a store, a mount point, or anything on a mount")
    parser.add_argument("--quick", action="store_true", help="leave out what takes seconds: codecs, speed, GPU")
    parser.add_argument("--bundle", type=absolute, metavar="FILE", help="write a tar archive for the report of a bug")
    add_json(parser)

    parser = command(commands, "prepare", "preparing:prepare", "compile the kernels of the codecs here", """\
  nnfs prepare          a few minutes; else the first mount begins it
""")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="even if it was done; what is compiled stays")

    parser = command(commands, "integrate", "integrating:integrate", "link an installed nnfs into this system", """\
  sudo /opt/nnfs/bin/nnfs integrate       mount helpers in /sbin, the command, units, manual pages, completion
  sudo /opt/nnfs/bin/nnfs integrate --remove
All are symbolic links to files of the package. Files of others are left alone. A Debian package needs none of this.
""")  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="remove the links again")
    parser.add_argument(
        "--root", type=absolute, default=absolute("/"), metavar="DIR", help="the root of the system (/)"
    )
