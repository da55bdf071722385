"""Answers: which names and contents fit a question, in which order, and under which filters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs.errors import UsageError
from nnfs.fs.search import asking, find
from nnfs.fs.search.catalog import Catalog
from nnfs.store import schema, vectors
from nnfs.store.env import Store
from nnfs.store.vectors import Vector
from tests.fs.kit import CHUNK
from tests.fs.search.kit import index, make, paths, tree

PROSE = {
    "a/one.txt": b"The invoice of the plumber: taps and pipes were mended, the boiler cleaned, and the bill is due.\n",
    "a/two.txt": b"An invoice of the carpenter: doors and windows were planed. The carpenter's bill is due.\n",
    "b/three.txt": b"Whales are mammals of the ocean. A blue whale eats krill, its calf drinks milk.\n",
    "b/four.txt": b"Krill and plankton feed whales. An ocean has more krill than other food that whales eat.\n",
    "c.c": b"#include <stdio.h>\nint main(int argc, char **argv) { printf(\"%d\\n\", argc); return 0; }\n",
    "d.c": b"#include <stdlib.h>\nint main(void) { char *p = malloc(10); free(p); return p == NULL; }\n",
}  # fmt: skip


@pytest.fixture
def prose(tmp_path: Path) -> Iterator[Store]:
    store = make(tmp_path / "store", PROSE)
    assert index(store) == len(PROSE)
    yield store
    store.close()


def like(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name.rpartition("/")[2], "head": PROSE[name].hex(), **more}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("report", ["report", "report.txt", "my report 2.odt", "reporting.log", "airport/preport.c"]),
        ("REPORT", ["report", "report.txt", "my report 2.odt", "reporting.log", "airport/preport.c"]),
        ("airport", ["airport", "airport/preport.c", "airport/x"]),
        ("port airport/x", ["airport/x", "airport", "airport/preport.c"]),
        ("größe", ["GRÖSSE.txt"]),
        ("no such name", []),
    ],
)
def test_names(tmp_path: Path, text: str, expected: list[str]) -> None:
    names = ["report", "report.txt", "my report 2.odt", "reporting.log", "airport/preport.c", "airport/x", "GRÖSSE.txt"]
    store = make(tmp_path / "store", tree(names))
    found = paths(store, text=text)
    assert found[: len(expected)] == expected or set(found) == set(expected)
    assert set(expected) <= set(found)
    store.close()


def test_content_is_found_by_its_words(prose: Store) -> None:
    assert set(paths(prose, text="krill whales ocean")[:2]) == {"b/three.txt", "b/four.txt"}
    assert paths(prose, text="carpenter")[0] == "a/two.txt"


def test_likeness(prose: Store) -> None:
    for one, other in (("a/one.txt", "a/two.txt"), ("b/three.txt", "b/four.txt"), ("c.c", "d.c")):
        assert paths(prose, **like(one))[:1] == [one]
        assert paths(prose, **like(one))[1] == other


def test_a_file_is_not_like_itself_when_it_is_left_out(prose: Store) -> None:
    found = asking.answer(prose, Catalog(prose, 1 << 30), like("c.c"))["found"]
    assert found[0]["path"] == "c.c"
    assert paths(prose, **like("c.c", without=found[0]["ino"]))[0] == "d.c"


def test_below_a_directory(prose: Store) -> None:
    (folder,) = asking.answer(prose, Catalog(prose, 1 << 30), {"text": "b", "types": ["d"]})["found"]
    assert folder["path"] == "b"
    assert set(paths(prose, text="txt", ino=folder["ino"])) == {"three.txt", "four.txt"}
    with pytest.raises(UsageError, match="no such directory"):
        paths(prose, text="txt", ino=4711)
    with pytest.raises(UsageError, match="not a snapshot"):
        paths(prose, text="txt", ino=3 << 48 | 1)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"types": ["d"]}, {"a", "b"}), ({"types": ["l"]}, set()), ({"types": ["f"], "glob": "b/*"}, {"b/three.txt"}),
        ({"least": 97}, {"a/one.txt"}), ({"most": 90, "types": ["f"]}, {"c.c", "d.c"}),
        ({"owners": [7]}, set()), ({"until": 5}, set()), ({"since": 1 << 62}, set()),
    ],
)  # fmt: skip
def test_filters(prose: Store, filters: dict[str, Any], expected: set[str]) -> None:
    found = {path for text in ("a", "b", "c", "d", "three", "one") for path in paths(prose, text=text, **filters)}
    assert expected <= found
    for path in found:
        size = len(PROSE.get(path, b""))
        assert size >= filters.get("least", 0)
        assert size <= filters.get("most", 1 << 60)
        assert ("types" not in filters) or (path in PROSE) == (filters["types"] == ["f"])
        assert "glob" not in filters or path.startswith("b/")
        assert not {"owners", "until", "since"} & filters.keys()


def test_count_and_more(prose: Store) -> None:
    catalog = Catalog(prose, 1 << 30)
    answer = asking.answer(prose, catalog, {"text": "txt", "count": 3})
    assert (len(answer["found"]), answer["more"], answer["complete"]) == (3, True, True)
    answer = asking.answer(prose, catalog, {"text": "txt", "count": 4, "types": ["f"], "glob": "*.txt"})
    assert (len(answer["found"]), answer["more"]) == (4, False)


@pytest.mark.parametrize("request_", [{}, {"text": " "}, {"text": "a", "count": 0}, {"text": "a", "types": ["x"]},
                                      {"name": "a", "head": "zz"}, {"text": "a", "least": "much"}])  # fmt: skip
def test_bad_questions(prose: Store, request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        paths(prose, **request_)


def test_many_rows_are_looked_at_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "AT_ONCE", 3)
    store = make(tmp_path / "store", tree([f"report {number}.txt" for number in range(20)]))
    assert len(paths(store, text="report", count=50)) == 20
    answer = asking.answer(store, Catalog(store, 1 << 30), {"text": "report", "owners": [9], "seconds": 0})
    assert (answer["found"], answer["complete"]) == ([], False)
    store.close()


def edit(store: Store, ino: int, **fields: Any) -> None:
    key = schema.KEY.pack(ino)
    with store.write() as txn:
        record = txn.get("vector", key)
        assert record is not None
        vector = Vector.unpack(key, record)
        for name, value in fields.items():
            setattr(vector, name, value)
        txn.put("vector", key, vector.pack(key))


@pytest.mark.parametrize("fields", [{"block": 4711}, {"recipe": 9}])
def test_a_vector_of_another_block_or_recipe_does_not_count(prose: Store, fields: dict[str, int]) -> None:
    found = asking.answer(prose, Catalog(prose, 1 << 30), {"text": "carpenter"})["found"]
    edit(prose, found[0]["ino"], **fields)
    assert "a/two.txt" not in paths(prose, text="carpenter")
    assert index(prose) == 1
    assert paths(prose, text="carpenter")[0] == "a/two.txt"


def test_a_damaged_vector_does_not_count(prose: Store) -> None:
    found = asking.answer(prose, Catalog(prose, 1 << 30), {"text": "carpenter"})["found"]
    with prose.write() as txn:
        txn.put("vector", schema.KEY.pack(found[0]["ino"]), bytes(vectors.RECORD_SIZE))
        txn.put("vector", schema.KEY.pack(4711), b"short")
    assert "a/two.txt" not in paths(prose, text="carpenter")
    assert paths(prose, text="two")[0] == "a/two.txt"
    assert index(prose) == 2  # one is made anew, one has no file
    assert paths(prose, text="carpenter")[0] == "a/two.txt"


def test_a_damaged_name_is_no_answer(prose: Store) -> None:
    with prose.write() as txn:
        key, record = next((key, record) for key, record in txn.range("dentry", b"") if b"c.c" in record)
        txn.put("dentry", key, record[:-1] + bytes([record[-1] ^ 1]))
    assert "c.c" not in paths(prose, text="c.c")


def test_a_store_without_vectors_is_searched_by_names(tmp_path: Path) -> None:
    store = make(tmp_path / "store", PROSE)
    assert paths(store, text="two.txt")[0] == "a/two.txt"
    assert paths(store, text="carpenter") == []
    assert set(paths(store, **like("c.c"))) == {"c.c", "d.c"}
    store.close()
    assert len(PROSE["a/one.txt"]) < CHUNK
