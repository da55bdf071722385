"""``python -m nnfs.train``: the command line of corpus, training, export and fitting."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from nnfs.errors import NnfsError
from nnfs.kernelcache import clean_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m nnfs.train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_corpus(commands.add_parser("corpus", help="build a training corpus from raw folders and packages"))
    _add_network(commands.add_parser("network", help="train a network on a corpus; goes on from its last checkpoint"))
    _add_export(commands.add_parser("export", help="make a model file of a checkpoint"))
    _add_mixing(commands.add_parser("mixing", help="make start values for the mixing of codec cm"))
    _add_fit(commands.add_parser("fit", help="fit a model to some content; prints what that gains, as JSON"))
    arguments = parser.parse_args(argv)
    clean_environment(os.environ)
    os.umask(0o077)  # corpora, checkpoints and models hold pieces of what they were made from
    try:
        status: int = arguments.run(arguments)
    except NnfsError as error:
        print(f"nnfs.train: {error}", file=sys.stderr)
        return error.exit_code
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
    from nnfs.train import buildcorpus, fetch

    packages = list(arguments.debs)
    if arguments.fetch:
        packages += fetch.fetch(arguments.fetch)
    if arguments.system:
        packages += fetch.system_roots()
    options = buildcorpus.Options(
        out=arguments.out,
        roots=arguments.roots,
        packages=packages,
        exclude_content=arguments.exclude_content,
        size=arguments.size << 20,
    )
    buildcorpus.build(options)
    return 0


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus made by the corpus command")
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoints and logs")
    parser.add_argument("--steps", type=int, required=True, help="steps in all, of 16 rows of 1,024 bytes by default")
    parser.add_argument("--cooldown", type=float, default=0.25, help="share of the steps over which the rate falls")
    parser.add_argument("--batch", type=int, default=4, help="rows of one forward pass")
    parser.add_argument("--passes", type=int, default=2, help="forward passes of each process per step")
    parser.add_argument("--processes", type=int, default=2, help="on a CPU, each of one thread")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of all learning rates")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--from", dest="start", default="", metavar="FILE", help="the model file that a new run goes on from"
    )
    parser.add_argument(
        "--engine", default="", choices=("fused", "torch"), help="the passes (the quickest that there is)"
    )
    parser.set_defaults(run=_network)


def _network(arguments: argparse.Namespace) -> int:
    from nnfs.model.architecture import Architecture
    from nnfs.train.trainer import Plan, train

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    print(train(Plan(**options), Architecture()))
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.safetensors in network's folder")
    parser.add_argument("corpus", metavar="CORPUS", help="the corpus, for the start values of the mixing stage")
    parser.add_argument("--out", required=True, metavar="FILE", help="the model file")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from nnfs.train.export import export

    fingerprint = export(arguments.checkpoint, arguments.corpus, arguments.out)
    print(f"{arguments.out}: {fingerprint.hex()}")
    return 0


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", metavar="CORPUS", help="a corpus made by the corpus command")
    parser.add_argument("--out", required=True, metavar="FILE", help="like nnfs/mixer/mixing.npz, frozen with codec 17")
    parser.add_argument("--examples", type=int, default=700, help="pieces of the corpus to learn from")
    parser.set_defaults(run=_mixing)


def _mixing(arguments: argparse.Namespace) -> int:
    from nnfs.mixer import startvalues
    from nnfs.train import mixing
    from nnfs.train.corpus import Corpus

    count: int = arguments.examples
    examples = mixing.alone(mixing.pieces(Corpus(arguments.corpus), count))
    mixing.save(mixing.train(examples, count, startvalues.untrained(False)), arguments.out)
    return 0


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, and folders of files, that are alike")
    parser.add_argument("--base", required=True, metavar="FILE", help="the model to start from")
    parser.add_argument("--out", required=True, metavar="FILE", help="what is changed of it: a delta")
    parser.add_argument("--seconds", type=float, default=1200, help="about how long (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.set_defaults(run=_fit)


def _fit(arguments: argparse.Namespace) -> int:
    from nnfs.train.fit import Plan, fit

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    print(json.dumps(fit(Plan(**options))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
