"""`nnfs search` and `nnfs similar`: files by words in their names, by what they are about, by likeness to a file."""

from __future__ import annotations

import argparse
import os
import pwd
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from nnfs import names
from nnfs.cli import locate as locating
from nnfs.cli import progress, show, tables
from nnfs.cli.locate import Place, locate
from nnfs.errors import UsageError

if TYPE_CHECKING:
    from nnfs.store.env import Store

MOST = 10_000  # answers that a daemon gives at once
HEAD = 1024  # bytes of a file that are compared
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}

Found = dict[str, Any]


def search(args: argparse.Namespace) -> int:
    """Print what fits the words of a question, the best first."""
    return _asked(args, {"text": " ".join(args.query)})


def similar(args: argparse.Namespace) -> int:
    """Print the files that are most like one."""
    locating.check_answers(args.file)
    with open(args.file, "rb") as file:
        head, status = file.read(HEAD), os.fstat(file.fileno())
    request: dict[str, Any] = {"name": os.path.basename(os.path.abspath(args.file)), "head": head.hex()}
    place = locate(args.path)
    if place.is_inside and os.lstat(place.path).st_dev == status.st_dev:
        request["without"] = status.st_ino
    return _asked(args, request, place)


def _asked(args: argparse.Namespace, question: dict[str, Any], place: Place | None = None) -> int:
    place = place or locate(args.path)
    if place.is_inside and not place.path.is_dir():
        raise UsageError(f"{args.path} is not a directory: search below one, or everything by the mount point")
    request = {**question, **_filters(args), "ino": progress.ino_of(place)}
    found, complete = _answers(place, request, args.count)
    for one in found:
        one["path"] = os.path.join(args.path, one["path"])
    if args.json:
        tables.printed_json([_line(one) for one in found])
    else:
        _print_paths([one["path"] for one in found], zeros=args.zeros)
    if not complete:
        names.say("not everything was looked at within the time: there may be more; --seconds gives it more")
    return 0


def _answers(place: Place, request: dict[str, Any], count: int) -> tuple[list[Found], bool]:
    """Ask until there are enough answers that this user may see, or no more. Return also whether all was looked at."""
    wanted = count
    while True:
        answer = _ask(place, {**request, "count": min(wanted, MOST)})
        visible = [one for one in answer["found"] if _is_visible(place, one["path"])]
        if len(visible) >= count or not answer["more"] or wanted >= MOST:
            return visible[:count], bool(answer["complete"])
        wanted *= 4


def _ask(place: Place, request: dict[str, Any]) -> dict[str, Any]:
    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs.search import asking
        from nnfs.fs.search.catalog import Catalog

        return asking.answer(store, Catalog(store, 1 << 40), request)

    return show.ask_or_read(place, "search", offline, **request)


def _is_visible(place: Place, path: str) -> bool:
    """Return whether this user may list the directory of an answer: the kernel knows. The superuser may list all."""
    if os.geteuid() == 0 or not place.is_inside:
        return True
    whole = os.path.join(place.path, path)
    return os.access(os.path.dirname(whole), os.R_OK | os.X_OK) and os.path.lexists(whole)


def _filters(args: argparse.Namespace) -> dict[str, Any]:
    now = time.time()
    return {
        "types": args.type or [], "least": args.larger or 0, "most": args.smaller, "glob": args.glob or "",
        "since": None if args.newer is None else round((now - args.newer) * 1e9),
        "until": None if args.older is None else round((now - args.older) * 1e9),
        "owners": [_user(owner) for owner in args.owner or []], "seconds": args.seconds,
    }  # fmt: skip


def _user(owner: str) -> int:
    """Return the number of a user. Raises `UsageError`."""
    try:
        return int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise UsageError(f"--owner {owner}: no such user here: give a name that `id` knows, or a number") from None


def _line(one: Found) -> Found:
    """Return an answer as it is shown to programs."""
    return {
        "path": one["path"], "score": one["score"], "type": KINDS.get(stat.S_IFMT(one["mode"]), "other"),
        "size": one["size"], "mtime": one["mtime"] / 1e9, "uid": one["uid"], "ino": one["ino"],
    }  # fmt: skip


def _print_paths(paths: list[str], *, zeros: bool) -> None:
    if not zeros:
        for path in paths:
            print(names.printable(path))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(b"".join(os.fsencode(path) + b"\0" for path in paths))
    sys.stdout.buffer.flush()
