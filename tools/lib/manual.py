"""The manual pages and the completion of nnfs, from the parser of its command line: `manual.py FOLDER` writes them.

It needs argparse-manpage and shtab. `texts` is what the wheel and the Debian package have.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nnfs
from nnfs.cli.main import build_parser
from nnfs.config import CONFIG_FILE

SECTION, SYSTEM = "1", "8"
DATE = "2026-11-30"  # of the manual: a build does not change it
SUMMARY = "a compressing filesystem for data that is seldom read"
MARK = "@@"
FOLDERS = ("STORE", "MNT", "DIR")
PATHS = (*FOLDERS, "PATH", "FILE", "TAR")
FILES = f"""\\
.TP
.I {CONFIG_FILE}
options of mounts, see "nnfs mount"
.TP
.I /etc/nnfs/NAME.conf
a mount of the unit nnfs@NAME.service
.TP
.I /var/log/nnfs
logs, where there is no journal
"""
SEE_ALSO = """\\
.SH SEE ALSO
.BR mount.nnfs (8),
.BR umount.nnfs (8),
.BR mount (8),
.BR systemd.unit (5)
"""
HELPERS = {
    "mount": """\
.TH MOUNT.NNFS 8 "%(date)s" "nnfs %(version)s" "nnfs"
.SH NAME
mount.nnfs, mount.fuse.nnfs \\- mount an nnfs filesystem from fstab
.SH SYNOPSIS
.B mount \\-t fuse.nnfs
.I STORE MNT
.RB [ \\-o
.IR OPTIONS ]
.SH DESCRIPTION
.BR mount (8)
calls this program for filesystems of the type
.BR fuse.nnfs ,
also those of
.IR /etc/fstab .
It returns when the filesystem is mounted. It makes no store:
.B nnfs mkfs
does. OPTIONS are those of
.BR mount (8)
and of
.BR nnfs (1),
section "nnfs mount".
.PP
A line of fstab:
.PP
.nf
/data  /mnt/nn  fuse.nnfs  noatime,nofail  0 0
.fi
.SH EXIT STATUS
0 mounted; 1 wrong usage; 32 not mounted.
.SH SEE ALSO
.BR nnfs (1),
.BR mount (8),
.BR fstab (5)
""",
    "umount": """\
.TH UMOUNT.NNFS 8 "%(date)s" "nnfs %(version)s" "nnfs"
.SH NAME
umount.nnfs, umount.fuse.nnfs \\- unmount an nnfs filesystem
.SH SYNOPSIS
.B umount
.I MNT
.SH DESCRIPTION
.BR umount (8)
calls this program. It returns when everything is committed and the daemon has ended, so that the
store may be moved or mounted again at once. With
.B \\-l
or
.B \\-f
the kernel alone detaches the mount.
.SH EXIT STATUS
0 unmounted; 1 wrong usage; 32 not unmounted.
.SH SEE ALSO
.BR nnfs (1),
.BR umount (8)
""",
}


def texts() -> dict[str, str]:
    """Return each file by its path below a prefix."""
    import shtab

    facts = {"date": DATE, "version": nnfs.__version__}
    found = {f"share/man/man{SECTION}/nnfs.{SECTION}": manual(build_parser())}
    for name, text in HELPERS.items():
        found[f"share/man/man{SYSTEM}/{name}.nnfs.{SYSTEM}"] = text % facts
        found[f"share/man/man{SYSTEM}/{name}.fuse.nnfs.{SYSTEM}"] = f".so man{SYSTEM}/{name}.nnfs.{SYSTEM}\n"
    parser = build_parser()
    for one in parsers(parser):
        for action in one._actions:
            if action.metavar in PATHS:
                action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    found["share/bash-completion/completions/nnfs"] = shtab.complete(parser, "bash")
    found["share/zsh/site-functions/_nnfs"] = shtab.complete(parser, "zsh")
    return found


def manual(parser: argparse.ArgumentParser) -> str:
    """Return nnfs(1). A command's examples, which argparse-manpage leaves out, stand behind its description."""
    from argparse_manpage.manpage import Manpage

    examples: list[str] = []
    for one in parsers(parser):
        if one is not parser and one.epilog:
            one.description = f"{one.description or ''} {MARK}{len(examples)}{MARK}"
            examples.append(one.epilog)
    top, parser.epilog = str(parser.epilog), None
    assert parser._subparsers is not None
    parser._subparsers.title = "commands"
    facts = {
        "project_name": "nnfs", "version": nnfs.__version__, "manual_section": SECTION, "date": DATE,
        "manual_title": "nnfs", "description": SUMMARY,
    }  # fmt: skip
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # usage lines do not depend on the terminal
    try:
        page = str(Manpage(parser, facts, format="single-commands-section"))
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    page = re.sub(rf" ?{MARK}(\d+){MARK}", lambda found: "\n" + verbatim(examples[int(found[1])]), page)
    return f"{page}.SH EXAMPLES\n{verbatim(top.removeprefix('examples:'))}.SH FILES\n{FILES}{SEE_ALSO}"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of all its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in dict.fromkeys(action.choices.values()):
                yield from parsers(one)


def verbatim(text: str) -> str:
    """Return lines as they are, for roff."""
    lines = [line.replace("\\", "\\e").replace("-", "\\-") for line in text.strip("\n").splitlines()]
    return "\n".join([".PP", ".nf", *(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines), ".fi", ""])


def main() -> None:
    """Write all files below the folder that is named."""
    for name, text in texts().items():
        path = Path(sys.argv[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
