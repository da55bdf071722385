"""Lines of a daemon's log without names: of each message stays what this nnfs's own source says, and numbers.

A message is made of a format, which stands in the source, and of arguments, which may be names of files. So the formats
are read from the source; where a message has one of them, its arguments are left out but for numbers, texts of errnos
and names of exceptions. Any other line is left out as a whole.
"""

from __future__ import annotations

import ast
import builtins
import errno
import os
import re
from collections.abc import Iterator
from functools import cache

import nnfs
from nnfs import errors

HIDDEN = "..."
METHODS = frozenset({"debug", "info", "warning", "error", "critical", "exception", "log"})
_HEAD = re.compile(r"(?P<head>\S+ (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) )(?P<logger>[\w.]+): (?P<message>.*)")
_JOURNAL = re.compile(r"(?P<head>\S+ nnfs\[\d+\]: )(?P<logger>[\w.]+): (?P<message>.*)")
_FRAME = re.compile(r'(?P<indent>\s+)File "(?P<file>[^"]*)", line (?P<line>\d+),? in (?P<function>[\w<>.]+)')
_TRACEBACK = re.compile(
    r"[ |+-]*(?:Exception Group )?Traceback \(most recent call last\):"
    r"|(?:Current thread|Thread) 0x[0-9a-f]+ \(most recent call first\):"
)
_PLACE = re.compile(r"%(?:(?P<flags>[-#0-9.+ ]*)(?P<kind>[a-zA-Z])|%)")
_EXCEPTIONS = [
    *(name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)),
    *(name for name in vars(builtins) if name.endswith(("Error", "Exception", "Group", "Interrupt"))),
]
_TEXTS = sorted({os.strerror(number) for number in errno.errorcode}, key=len, reverse=True)
_KNOWN = re.compile(rf"(?:\[Errno \d+\] )?(?:{'|'.join(map(re.escape, _TEXTS))})|\b(?:{'|'.join(_EXCEPTIONS)})\b")
_RAISED = re.compile(rf"(?P<head>[ |+]*(?:[a-z_]\w*\.)*(?:{'|'.join(_EXCEPTIONS)}))(?:: (?P<message>.*))?")


def shown(line: str) -> str:
    """Return a line of a log without names."""
    if frame := _FRAME.fullmatch(line):
        return f"{frame['indent']}File {_module(frame['file'])}, line {frame['line']}, in {frame['function']}"
    for pattern in (_HEAD, _JOURNAL):
        if found := pattern.fullmatch(line):
            return f"{found['head']}{found['logger']}: {_message(found['logger'], found['message'])}"
    if found := _RAISED.fullmatch(line):
        return f"{found['head']}: {_known(found['message'])}" if found["message"] else line
    return line if _TRACEBACK.fullmatch(line) or not line.strip() else HIDDEN


def _message(logger: str, message: str) -> str:
    for pattern in _patterns(logger):
        if found := pattern.fullmatch(message):
            parts, at = [], 0
            for number in range(1, pattern.groups + 1):
                start, end = found.span(number)
                parts += [message[at:start], _known(message[start:end])]
                at = end
            return "".join(parts) + message[at:]
    return HIDDEN


def _known(text: str) -> str:
    """Return what of an argument is known to be no name."""
    found = [match[0] for match in _KNOWN.finditer(text)]
    return " ".join([*found, HIDDEN]) if found else HIDDEN


@cache
def _patterns(logger: str) -> list[re.Pattern[str]]:
    """Return the formats of a logger, which has the name of its module, the longest first. Groups may be names."""
    formats = {one for one in _formats(logger) if len(_PLACE.sub("", one).strip(" :,.;()")) > 2}
    return [re.compile(_pattern(one), re.DOTALL) for one in sorted(formats, key=len, reverse=True)]


def _pattern(form: str) -> str:
    parts, at = [], 0
    for place in _PLACE.finditer(form):
        parts.append(re.escape(form[at : place.start()]))
        kind = place["kind"]
        parts.append("%" if kind is None else r"[-+0-9.eE]+" if kind in "dufgeEF" else "(.*)")
        at = place.end()
    return "".join(parts) + re.escape(form[at:])


def _formats(logger: str) -> Iterator[str]:
    base = os.path.join(os.path.dirname(nnfs.__file__), *logger.split(".")[1:])
    path = next((path for path in (f"{base}.py", os.path.join(base, "__init__.py")) if os.path.isfile(path)), None)
    if logger.split(".", maxsplit=1)[0] != "nnfs" or path is None:
        return
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            constants = [argument for argument in node.args if isinstance(argument, ast.Constant)]
            yield from (constant.value for constant in constants[:1] if isinstance(constant.value, str))


def _module(file: str) -> str:
    """Return the part of a source file's path that tells the module, not the place where it is installed."""
    parts = file.split("/")
    roots = [place for place, part in enumerate(parts) if part in ("nnfs", "site-packages")]
    return "/".join(parts[max(roots, default=len(parts) - 1) :])
