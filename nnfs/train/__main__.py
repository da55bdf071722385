"""``python -m nnfs.train``: the corpus and the training, by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m nnfs.train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_corpus(commands.add_parser("corpus", help="build a training corpus from raw folders and packages"))
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "roots", nargs="*", metavar="ROOT", help="hand-picked folders: first choice; archives in them included"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the corpus; its index is FILE.npy, FILE.json, FILE.txt"
    )
    parser.add_argument(
        "--debs",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of packages: .deb, .whl, .tar.gz, .tgz, .jar, .zip",
    )
    parser.add_argument("--system", action="store_true", help="take this machine's own files as well (Debian: /usr)")
    parser.add_argument(
        "--exclude-content", action="append", default=[], metavar="DIR", help="leave out what shares text with it"
    )
    parser.add_argument("--size", type=int, default=800, metavar="MB", help="aim (default %(default)s)")
    parser.add_argument("--fetch", metavar="DIR", help="first download the packages of the list into DIR, and use them")
    parser.set_defaults(run=_corpus)


def _corpus(arguments: argparse.Namespace) -> int:
    from nnfs.train import build, fetch

    packages = list(arguments.debs)
    if arguments.fetch:
        packages += fetch.fetch(arguments.fetch)
    if arguments.system:
        packages += fetch.system_roots()
    options = build.Options(
        out=arguments.out,
        roots=arguments.roots,
        packages=packages,
        exclude_content=arguments.exclude_content,
        size=arguments.size << 20,
    )
    build.build(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
