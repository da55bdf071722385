"""argparse with errors of one line: the fault, a word that was perhaps meant, and the --help to read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from nnfs import names
from nnfs.config import meant
from nnfs.errors import UsageError

FSCK_USAGE = 16  # as of fsck(8)


class Parser(argparse.ArgumentParser):
    """The parser of `nnfs`, or of one command."""

    usage_exit = UsageError.exit_code

    def error(self, message: str) -> NoReturn:
        names.say(message)
        print(f"try: {self.prog} --help", file=sys.stderr)
        sys.exit(self.usage_exit)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"no command {value!r}{meant(str(value), known)}")
        raise argparse.ArgumentError(
            action, f"invalid choice: {value!r} (choose from {', '.join(known)}){meant(str(value), known)}"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and note the parser of the command: an error names its --help."""
        found, rest = super().parse_known_args(args, namespace)
        if not hasattr(found, "parser"):  # the innermost is the first to return
            found.parser = self
        return found, rest

    def knows(self, word: str) -> bool:
        """Return whether a word is an option."""
        return any(word in action.option_strings for action in self._actions)

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Exit with a message about unknown words."""
        options = [option for action in self._actions for option in action.option_strings]
        word = next((word for word in words if word.startswith("-")), words[0])
        name = word.partition("=")[0]
        advice = meant(name, options) if name.startswith("--") else ""
        if name in options:
            advice = "; options go behind the command"
        self.error(f"unrecognized arguments: {' '.join(words)}{advice}")


class FsckParser(Parser):
    """The parser of `nnfs fsck`."""

    usage_exit = FSCK_USAGE


def parsed(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of a command, or exit with a message about the fault."""
    words = sys.argv[1:] if argv is None else list(argv)
    if len(words) == 1 and words[0].startswith("-") and not parser.knows(words[0]):  # else: a COMMAND is required
        parser.unknown(words)
    args, rest = parser.parse_known_args(words)
    found: argparse.Namespace = args
    if rest:
        found.parser.unknown(rest)
    return found


def command(commands: Any, name: str, run: str, summary: str, examples: str, *aliases: str) -> argparse.ArgumentParser:
    """Add a command and return its parser. `run` is its module in `nnfs.cli` and its function."""
    module = "nnfs.cli." + run
    parser: argparse.ArgumentParser = commands.add_parser(
        name, aliases=aliases, help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + examples, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=module)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def action(actions: Any, name: str, run: str, summary: str, path: str) -> argparse.ArgumentParser:
    """Add an action of a command and return its parser. `run` as for `command`; `path` is the help of its PATH."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary)
    parser.set_defaults(run="nnfs.cli." + run)
    parser.add_argument("path", metavar="PATH", help=path)
    return parser
