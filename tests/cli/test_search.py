"""`nnfs search` and `nnfs similar`: requests, output, errors; without a daemon's work."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import search
from nnfs.cli.locate import MountEntry, Place
from nnfs.errors import UsageError
from tests.cli.conftest import Run
from tests.cli.kit import FakeDaemon


def found(*paths: str, more: bool = False, complete: bool = True) -> dict[str, Any]:
    lines = [
        {"path": path, "score": 900, "ino": 17, "mode": 0o100644, "size": 5, "mtime": 1_500_000_000, "uid": 0}
        for path in paths
    ]
    return {"found": lines, "more": more, "complete": complete}


def test_a_line_for_each_answer(store: Path, run: Run) -> None:
    with FakeDaemon(store, search=found("a/b", "c\n")) as daemon:
        status, out, error = run("search", store, "two", "words", "-n", "3")
        (asked,) = daemon.asked("search")
    assert (status, out.splitlines(), error) == (0, [f"{store}/a/b", f"{store}/c\\n"], "")
    assert (asked["text"], asked["count"], asked["ino"], asked["seconds"]) == ("two words", 3, 1, 10.0)


def test_zero_bytes_and_json(store: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from nnfs.cli.main import main

    name = os.fsdecode(b"c\n\xff")
    with FakeDaemon(store, search=found("a/b", name)):
        assert main(["search", str(store), "x", "-0"]) == 0
        whole = os.fsencode(str(store))
        assert capfdbinary.readouterr().out == whole + b"/a/b\0" + whole + b"/c\n\xff\0"
        assert main(["search", str(store), "x", "--json"]) == 0
    lines = json.loads(capfdbinary.readouterr().out)
    assert lines[0] == {
        "path": f"{store}/a/b", "score": 900, "type": "file", "size": 5, "mtime": 1.5, "uid": 0, "ino": 17,
    }  # fmt: skip
    assert bytes.fromhex(lines[1]["path_hex"]) == whole + b"/c\n\xff"


def test_filters(store: Path, run: Run) -> None:
    words = (
        "--type f --type d --larger 10K --smaller 1M --newer 1d --older 1h --glob a/* --owner 7 --owner root".split()
    )
    with FakeDaemon(store, search=found()) as daemon:
        assert run("search", store, "x", *words)[:2] == (0, "")
        (asked,) = daemon.asked("search")
    assert (asked["types"], asked["least"], asked["most"], asked["glob"]) == (["f", "d"], 10240, 1 << 20, "a/*")
    assert asked["owners"] == [7, 0]
    assert 82_700e9 <= asked["until"] - asked["since"] <= 82_900e9
    assert asked["until"] <= time.time_ns()


def test_similar_sends_name_and_beginning(store: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_bytes(b"x" * 5000)
    with FakeDaemon(store, search=found("y")) as daemon:
        assert run("similar", store, file)[:2] == (0, f"{store}/y\n")
        (asked,) = daemon.asked("search")
    assert (asked["name"], asked["head"]) == ("letter.txt", "78" * 1024)
    assert "without" not in asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "STORE", "x", "--owner", "no such user"], "no such user here"),
        (["similar", "STORE", "/no/such/file"], "No such file"),
        (["similar", "STORE", "/"], "directory"),
    ],
)
def test_errors(store: Path, run: Run, words: list[str], message: str) -> None:
    with FakeDaemon(store, search=found()):
        status, _, error = run(*(str(store) if word == "STORE" else word for word in words))
    assert status != 0
    assert message in error
    assert error.count("\n") == 1


def test_what_was_not_looked_at_is_told(store: Path, run: Run) -> None:
    with FakeDaemon(store, search=found("a", complete=False)):
        assert "--seconds" in run("search", store, "x")[2]


def test_other_users_see_what_they_may_list(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    entry = MountEntry(str(tmp_path), "fuse.nnfs", str(store))
    place = Place(store, entry, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("shut"))
    answers = [found("shut/x", "open/x", more=True), found("shut/x", "open/x", "gone", "open/x")]
    with FakeDaemon(store, search=answers) as daemon:
        monkeypatch.setattr(search, "_ask", lambda place, request: answers[request["count"] > 2])
        seen, complete = search._answers(place, {}, 2)
        assert daemon.asked("search") == []
    assert ([one["path"] for one in seen], complete) == (["open/x", "open/x"], True)
    with pytest.raises(UsageError):
        search._user("no such user")
