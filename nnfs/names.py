"""Names are bytes, perhaps no UTF-8: they are shown to people, quoted for a shell, and given to programs as JSON.

In memory a name is text of `os.fsdecode`: a byte that is no UTF-8 is a lone surrogate. No terminal, file or
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
    """Return the bytes of a name. Surrogates that stand for no byte (JSON may have any) pass as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def printable(name: str | os.PathLike[str]) -> str:
    """Return a name for people on one line: `\\n`, `\\x1b`, `\\xff` for what does not print, `\\\\` for a backslash."""
    return one_line(os.fspath(name).replace("\\", "\\\\"))


def one_line(message: str) -> str:
    """Return a message for people that may hold names, on one line: as `printable`, but a backslash stays as it is."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else _escaped(c) for c in message)


def say(message: str) -> None:
    """Print a message for a person on stderr, as a line of this program."""
    sys.stderr.write(f"nnfs: {one_line(message)}\n")
    sys.stderr.flush()


def message_of(error: Exception) -> str:
    """Return the message of an error; for an error of the system, the name that it is about, and the reason."""
    if not isinstance(error, OSError):
        return str(error)
    named = isinstance(error.filename, str | bytes)
    where = f"{printable(os.fsdecode(error.filename)) or repr('')}: " if named else ""
    return f"{where}{error.strerror or error}"


def shell(name: str | os.PathLike[str]) -> str:
    """Return a name as a word of a command that can be copied into bash, zsh or ksh."""
    text = os.fspath(name)
    if text.isprintable():
        return shlex.quote(text)
    body = "".join(f"\\{c}" if c in "\\'" else c if c.isprintable() else _escaped(c) for c in text)
    return f"$'{body}'"


def for_json(value: Any) -> Any:
    """Return an answer for a JSON encoder, without lone surrogates in its texts.

    A lone surrogate becomes `\\xff`, and the object gets a field of the same name with `_hex` behind it: the bytes
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
    """Return text with its lone surrogates as `\\xff`. JSON itself escapes other characters, such as line feeds."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error(ERRORS, _replace)


def use_utf8() -> None:
    """Begin this program again in Python's UTF-8 mode where the locale's encoding is another one.

    A name is then the same text in every process: in the daemon, in commands, and on the control socket.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, words, {**os.environ, "PYTHONUTF8": "1"})


def show_on_terminals() -> None:
    """Let this process print any text: characters that the terminal's encoding lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test may have put something else there
        if reconfigure is not None:
            reconfigure(errors=ERRORS)
