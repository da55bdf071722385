"""Names and texts for the page: nothing in them is markup, and each has a length that is known."""

from __future__ import annotations

import html

from nnfs import names

NAME, SENTENCE = 110, 300  # characters that are shown


def escaped(text: str) -> str:
    """Return text for the page, on one line. Characters that do not print are shown as `\\n`, `\\xff`."""
    return html.escape(names.one_line(text), quote=True)


def shortened(name: str, most: int = NAME) -> str:
    """Return a name as people see it, cut to so many characters."""
    return cut(names.printable(name), most)


def cut(text: str, most: int = SENTENCE) -> str:
    """Return text on one line, with an ellipsis in its middle where it is longer than `most` characters."""
    text = names.one_line(text)
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"
