"""Names for people, shells and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nnfs import names
from tests.harness import environment

ALL_BYTES = bytes(range(1, 256)).replace(b"/", b"")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("größer 中".encode(), "größer 中"),
        (b"a\xff\xfe", "a\\xff\\xfe"),
        (b"a\nb\tc\rd", "a\\nb\\tc\\rd"),
        (b"\x1b[31mred\x7f", "\\x1b[31mred\\x7f"),
        (b"back\\slash", "back\\\\slash"),
        ("\u202e\u2028\u00a0".encode(), "\\xe2\\x80\\xae\\xe2\\x80\\xa8\\xc2\\xa0"),  # bytes, always
    ],
)
def test_for_people(name: bytes, shown: str) -> None:
    assert names.printable(os.fsdecode(name)) == shown
    assert names.one_line(os.fsdecode(name)) == shown.replace("\\\\", "\\")


def test_no_two_names_look_alike() -> None:
    pairs = [(b"\xff", b"\\xff"), (b"\n", b"\\n"), (b"\\\n", b"\\\\n"), ("\u00a0".encode(), b"\\xc2\\xa0")]
    for one, other in pairs:
        assert names.printable(os.fsdecode(one)) != names.printable(os.fsdecode(other))


@pytest.mark.parametrize(
    "name", [b"plain", b"with space", b"it's", b'\xff it\'s \\ "$HOME" `id` \n\x1b', b"-n", b"\x011", ALL_BYTES]
)
def test_for_shells(name: bytes) -> None:
    script = f"printf %s {names.shell(os.fsdecode(name))}".encode()
    assert b"\n" not in script
    assert subprocess.run(["bash", "-c", script], capture_output=True).stdout == name


def test_for_programs() -> None:
    bad, good = os.fsdecode(b"/a\xff"), "/größer\n"
    answer = {"path": bad, "good": good, "files": [good, bad], "jobs": [{"path": bad}], "n": 1, "none": None}
    found = names.for_json(answer)
    text = json.dumps(found, ensure_ascii=False).encode()  # strict: no lone surrogate is left
    assert json.loads(text) == found
    assert found == {
        "path": "/a\\xff", "path_hex": "2f61ff", "good": good,
        "files": [good, "/a\\xff"], "files_hex": [good.encode().hex(), "2f61ff"],
        "jobs": [{"path": "/a\\xff", "path_hex": "2f61ff"}], "n": 1, "none": None,
    }  # fmt: skip
    assert names.for_json({"a": "\ud800"}) == {"a": "\\xed\\xa0\\x80", "a_hex": "eda080"}
    assert names.for_json({"a": good}) == {"a": good}


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict", "utf-8:surrogateescape"])
def test_every_stream_takes_them(encoding: str) -> None:
    script = "import os\nfrom nnfs import names\nnames.show_on_terminals()\nprint(os.fsdecode(b'\\xff') + 'ö\\u4e2d')"
    env = environment({"PYTHONIOENCODING": encoding})
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
    codec = encoding.partition(":")[0]
    assert done.returncode == 0, done.stderr
    if codec == "ascii":
        assert done.stdout == b"\\xff\\xc3\\xb6\\xe4\\xb8\\xad\n"
    else:
        assert done.stdout.decode(codec).startswith("\\xffö")
