"""The command `nnfs integrate`: links from the places where a system looks to the files of an installed package."""

from __future__ import annotations

import argparse
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nnfs.errors import UsageError
from nnfs.names import printable, say

HELPERS = ("mount", "umount")
TREES = {  # folders below the prefix of a package, and where the system looks for what is in them
    "share/man": "usr/local/share/man",
    "share/bash-completion/completions": "usr/local/share/bash-completion/completions",
    "share/zsh/site-functions": "usr/local/share/zsh/site-functions",
    "lib/systemd/system": "usr/local/lib/systemd/system",
}


def integrate(args: argparse.Namespace) -> int:
    """Make the links, or remove them. Return 1 where something of others is in the way."""
    prefix = Path(sysconfig.get_path("data"))
    found = dict(links(prefix))
    if not any(target.is_relative_to(prefix / "lib/systemd") for target in found.values()):
        raise UsageError(
            f"{prefix} has no units of nnfs: this is for a wheel. In a checkout, tools/run makes the links"
        )
    os.umask(0o022)  # folders that are missing are for all
    in_the_way = 0
    for place, target in found.items():
        link = args.root / place
        if link.is_symlink() and os.readlink(link) == os.fspath(target):
            if args.remove:
                link.unlink()
                print(f"removed {printable(link)}")
        elif args.remove:
            continue
        elif link.exists() and not link.is_symlink():
            say(f"{link} is no link: left alone")
            in_the_way = 1
        else:
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            print(f"{printable(link)} -> {printable(target)}")
    return in_the_way


def links(prefix: Path) -> Iterator[tuple[str, Path]]:
    """Yield the place of each link below the root, and its target."""
    for name in HELPERS:
        for kind in ("nnfs", "fuse.nnfs"):
            yield f"sbin/{name}.{kind}", prefix / "bin" / f"{name}.nnfs"
    if prefix != Path("/usr/local"):
        yield "usr/local/bin/nnfs", prefix / "bin/nnfs"
        for tree, place in TREES.items():
            for path in sorted((prefix / tree).rglob("*nnfs*")):
                if path.is_file():
                    yield f"{place}/{path.relative_to(prefix / tree)}", path
