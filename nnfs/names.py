"""Names are bytes: how one that need not be UTF-8 is shown to people, written for a shell, and given to programs.

In memory a name is text as `os.fsdecode` makes it: a byte that is no UTF-8 is a lone surrogate. No terminal, file or
JSON parser takes those. People see `\\xff` for such a byte, and likewise every character that does not print, so a
name never breaks a line nor reaches a terminal's control sequences. Programs get the same text and, beside it, the
bytes: see `for_json`.
"""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from typing import Any

ERRORS = "nnfs.names"  # for `errors=` of a text stream: what it cannot encode is shown as `printable` does
HEX = "_hex"  # behind the name of a field: its text as bytes, in hexadecimal

_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(text: str) -> str:
    return "".join(_SHORT.get(c) or "".join(f"\\x{byte:02x}" for byte in _bytes(c)) for c in text)


def _bytes(text: str) -> bytes:
    """The bytes of a name. Surrogates that stand for no byte (JSON may bring any) have the form that UTF-8 forbids."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def printable(name: str | os.PathLike[str]) -> str:
    """A name for people, on one line: `\\n`, `\\x1b` and `\\xff` for what does not print, `\\\\` for a backslash."""
    return one_line(os.fspath(name).replace("\\", "\\\\"))


def one_line(message: str) -> str:
    """A message for people that may hold names: as `printable`, but that a backslash stays what it is."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else _escaped(c) for c in message)


def say(message: str) -> None:
    """Print a message for a person on stderr, as a line of this program."""
    sys.stderr.write(f"nnfs: {one_line(message)}\n")
    sys.stderr.flush()


def message_of(error: Exception) -> str:
    """Return the message of an error; of one of the system the name that it is about, and why."""
    if not isinstance(error, OSError):
        return str(error)
    named = isinstance(error.filename, str | bytes)
    where = f"{printable(os.fsdecode(error.filename)) or repr('')}: " if named else ""
    return f"{where}{error.strerror or error}"


def shell(name: str | os.PathLike[str]) -> str:
    """A name as a word of a command to be copied into bash, zsh or ksh."""
    text = os.fspath(name)
    if text.isprintable():
        return shlex.quote(text)
    body = "".join(f"\\{c}" if c in "\\'" else c if c.isprintable() else _escaped(c) for c in text)
    return f"$'{body}'"


def for_json(value: Any) -> Any:
    """Return an answer for a JSON encoder: no text in it holds a lone surrogate.

    Where one did, it is shown as `\\xff`, and the object has a field of the same name with `_hex` behind it: the bytes
    of that text in hexadecimal, or for a list the list of them.
    """
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, one in value.items():
            name = _shown(name) if isinstance(name, str) else name
            found[name] = for_json(one)
            if isinstance(one, str) and _is_broken(one):
                found[f"{name}{HEX}"] = _bytes(one).hex()
            elif isinstance(one, list | tuple) and any(isinstance(item, str) and _is_broken(item) for item in one):
                found[f"{name}{HEX}"] = [_bytes(item).hex() if isinstance(item, str) else None for item in one]
        return found
    if isinstance(value, list | tuple):
        return [for_json(one) for one in value]
    return _shown(value) if isinstance(value, str) else value


def _is_broken(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _shown(text: str) -> str:
    """Text with its lone surrogates as `\\xff`; all else, line feeds too, is JSON's to write."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error(ERRORS, _replace)


def use_utf8() -> None:
    """Begin this program again in Python's UTF-8 mode where the locale's encoding is another one.

    A name then is the same text in every process: in the daemon, in commands, in what they say to each other.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, "PYTHONUTF8": "1"})


def show_on_terminals() -> None:
    """Have what this process prints go out whatever it is: escaped where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test may have put something else there
        if reconfigure is not None:
            reconfigure(errors=ERRORS)
