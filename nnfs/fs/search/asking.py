"""Questions as they come over the control socket, or from the command line for a store that is not mounted."""

from __future__ import annotations

from typing import Any

from nnfs.errors import UsageError
from nnfs.fs.search.catalog import Catalog
from nnfs.fs.search.find import MOST, Wanted, search
from nnfs.fs.search.question import Filters, Likeness, Question, Words
from nnfs.store.env import Store
from nnfs.store.schema import ROOT_INO

Request = dict[str, Any]


def question_of(request: Request) -> Question:
    """Return the question of a request: words, or a file by its name and its beginning. Raises `UsageError`."""
    if "text" in request:
        return Words(_bytes(request["text"]))
    try:
        return Likeness(_bytes(request["name"]), bytes.fromhex(request["head"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"a question that is not understood: {error!r}") from error


def wanted_of(request: Request) -> Wanted:
    """Return what is wanted by a request. Raises `UsageError`."""
    try:
        count, seconds = int(request.get("count", 20)), float(request.get("seconds", 10.0))
        below, without = int(request.get("ino", ROOT_INO)), int(request.get("without", 0))
    except (ValueError, TypeError) as error:
        raise UsageError(f"a question that is not understood: {error!r}") from error
    if not 1 <= count <= MOST:
        raise UsageError(f"{count} answers: say a number from 1 to {MOST}")
    return Wanted(Filters.of(request), count, below, without, seconds)


def _bytes(text: Any) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")


def answer(store: Store, catalog: Catalog, request: Request) -> dict[str, Any]:
    """Return the answer to a request. Slow: call it in a thread. Raises `UsageError`, `StoreDamaged`."""
    return search(store, catalog, question_of(request), wanted_of(request)).as_dict()
