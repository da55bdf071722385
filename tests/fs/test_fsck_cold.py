"""fsck of cold blocks and of the models that they need."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from nnfs.codec.base import CM, NEURAL
from nnfs.fs import fsck, swapping
from nnfs.fs.fsck import Report, cold
from nnfs.model import selftest
from nnfs.model.weights import save_weights
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import ChunkChanges, Encoded, Swap, load_block
from nnfs.store.schema import Inode
from nnfs.workers.catalogue import Catalogue, fingerprint
from tests.fs import coldcodec
from tests.fs.swapkit import damage_copy
from tests.fs.test_apply import Files, damage, files

__all__ = ["files"]  # a fixture

PLAINS = [b"".join(b"%d of %d bottles on the wall\n" % (n, k) for n in range(40 + k)) for k in range(4)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Fingerprint and file of a real model, untrained and small."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_weights(selftest.weights(selftest.ARCHITECTURE, b"fsck"), str(path), {})
    data = path.read_bytes()
    return fingerprint(data), data


def check(files: Files, *, data: bool = True, repair: bool = False) -> Report:
    return fsck.check(files.store, data=data, repair=repair, progress=lambda *_: None)


def write(files: Files, name: bytes = b"file") -> Inode:
    inode = files.create(name)
    content: dict[int, Encoded | None] = {
        n: Encoded(blake2b(plain).digest(), 0, len(plain), plain) for n, plain in enumerate(PLAINS)
    }
    files.commit({inode.ino: ChunkChanges(chunks=content)})
    return inode


def swap(files: Files, inode: Inode, at: int, codec: int, model: int, data: bytes) -> int:
    """Give a chunk's block another payload; return the payload's number."""
    [number] = files.fs.block_numbers(inode, at, at)
    with files.store.read() as snapshot:
        block = load_block(snapshot, number)
    assert block is not None
    one = Swap(number, block.payload, (inode.ino, at), codec, model, data)
    assert files.amend(partial(swapping.swap, swaps=[one])) != [None]
    with files.store.read() as snapshot:
        block = load_block(snapshot, number)
    assert block is not None
    return block.payload


def keep(files: Files, model: tuple[bytes, bytes], base: bytes | None = None) -> int:
    return files.amend(partial(swapping.keep_model, fingerprint=model[0], data=model[1], base=base, now=7))


def serve(monkeypatch: pytest.MonkeyPatch, what: type) -> None:
    monkeypatch.setattr(cold, "SERVE", f"{coldcodec.HERE}:{what.__name__}")


def backwards(files: Files, monkeypatch: pytest.MonkeyPatch, what: type = coldcodec.Honest) -> Inode:
    """A file in a cold codec of the tests, and workers that serve it."""
    serve(monkeypatch, what)
    inode = write(files)
    for at, plain in enumerate(PLAINS):
        swap(files, inode, at, CM, 0, plain[::-1])
    return inode


def test_the_real_codecs(files: Files, tiny: tuple[bytes, bytes]) -> None:
    """Sound ones, and in each codec one that holds another content."""
    catalogue = Catalogue("cpu", 1)
    catalogue.load(*tiny)
    number, inode = keep(files, tiny), write(files)
    for at, plain in enumerate(PLAINS):
        codec, model = (NEURAL, number) if at % 2 else (CM, 0)
        data = catalogue.find(codec, tiny[0] if at % 2 else bytes(64)).encode(plain)
        assert data is not None
        swap(files, inode, at, codec, model, data)
    report = check(files)
    assert report.as_dict()["clean"], report.as_dict()
    assert not report.notes
    for at, codec in ((0, CM), (1, NEURAL)):
        other = PLAINS[at].replace(b"bottles", b"barrels")
        wrong = catalogue.find(codec, tiny[0] if codec == NEURAL else bytes(64)).encode(other)
        assert wrong is not None
        swap(files, inode, at, codec, number if codec == NEURAL else 0, wrong)
    report = check(files)
    assert [(problem.kind, problem.paths) for problem in report.problems] == [
        ("data", ["/file at 0"]), ("data", [f"/file at {schema.MIN_CHUNK_SIZE}"]),
    ]  # fmt: skip
    assert all("BLAKE2b" in problem.message for problem in report.problems)
    assert check(files, data=False).problems == []
    assert check(files, repair=True).exit_code == 4


def test_without_data_no_worker_is_started(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards(files, monkeypatch, coldcodec.NotInstalled)
    report = check(files, data=False)
    assert report.as_dict()["clean"]


def test_what_cannot_be_decoded_is_damaged(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = backwards(files, monkeypatch)
    assert check(files).exit_code == 0
    swap(files, inode, 1, CM, 0, b"too short")
    [problem] = check(files).problems
    assert "cannot be decoded: not that long" in problem.message
    assert problem.paths == [f"/file at {schema.MIN_CHUNK_SIZE}"]


def test_many_blocks_keep_to_the_bound(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold, "IN_FLIGHT", 2)
    inode = backwards(files, monkeypatch)
    swap(files, inode, 0, CM, 0, PLAINS[0])
    assert [problem.paths for problem in check(files).problems] == [["/file at 0"]]


@pytest.mark.parametrize("what", [coldcodec.ErringDevice, coldcodec.RefusingDevice])
def test_a_device_that_errs_is_no_damage(files: Files, monkeypatch: pytest.MonkeyPatch, what: type) -> None:
    backwards(files, monkeypatch, what)
    report = check(files)
    assert report.problems == []
    assert len(report.notes) == len(PLAINS)
    assert "decoded it wrongly" in report.notes[0]


def test_a_device_that_dies_leaves_it_to_the_reference(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = backwards(files, monkeypatch, coldcodec.DyingDevice)
    assert check(files).as_dict()["clean"]
    swap(files, inode, 1, CM, 0, PLAINS[1])
    [problem] = check(files).problems
    assert "BLAKE2b-512" in problem.message


@pytest.mark.parametrize("what", [coldcodec.NotInstalled, coldcodec.Dying])
def test_what_was_not_checked_is_not_called_clean(files: Files, monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    backwards(files, monkeypatch, what)
    monkeypatch.setattr(cold, "GIVE_UP", 2)
    report = check(files)
    assert report.problems == []
    assert report.exit_code == 8
    assert not report.as_dict()["clean"]
    [note] = report.unchecked
    assert note in report.notes
    assert f"{len(PLAINS)} blocks of codec cm were not checked" in note
    if what is coldcodec.NotInstalled:
        assert "needs numba, which is not installed" in note


def test_a_repair_does_not_forget_what_was_not_checked(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards(files, monkeypatch, coldcodec.NotInstalled)
    damage(files.store, "total", schema.TOTAL_KEY.pack(CM, 0))
    report = check(files, repair=True)
    assert [problem.fixed for problem in report.problems] == [True]
    assert report.exit_code == 1 | 8
    assert set(report.unchecked) <= set(report.notes)
    assert report.unchecked


# -- models


def test_both_copies_damaged(files: Files, tiny: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which model and what needs it, keeps everything else readable, and repairs nothing."""
    serve(monkeypatch, coldcodec.Honest)
    number, inode = keep(files, tiny), write(files)
    swap(files, inode, 1, NEURAL, number, PLAINS[1][::-1])
    swap(files, inode, 2, NEURAL, number, PLAINS[2][::-1])
    assert check(files).as_dict()["clean"]
    with files.store.read() as snapshot:
        payloads = modelfiles.load_model(snapshot, number).payloads
    damage(files.store, "payload", schema.FRAGMENT_KEY.pack(payloads[0], 0))
    assert [problem.fix is not None for problem in check(files).problems] == [True]
    damage(files.store, "payload", schema.FRAGMENT_KEY.pack(payloads[1], 0))
    for repair in (False, True):
        report = check(files, repair=repair)
        [problem] = report.problems
        assert tiny[0].hex()[:16] in problem.message
        assert "2 blocks need it" in problem.message
        assert "nnfs model add" in problem.message
        assert problem.paths == [f"/file at {at * schema.MIN_CHUNK_SIZE}" for at in (1, 2)]
        assert report.exit_code == 4


@pytest.mark.parametrize("what", ["file", "record"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_copy_is_repaired(files: Files, tiny: tuple[bytes, bytes], what: str, which: int) -> None:
    number = keep(files, tiny)
    damage_copy(files, number, what, which)
    assert check(files).exit_code == 4
    assert check(files, repair=True).exit_code == 1
    report = check(files)
    assert report.as_dict()["clean"], report.as_dict()


def test_a_lost_copy_is_repaired(files: Files, tiny: tuple[bytes, bytes]) -> None:
    number = keep(files, tiny)
    with files.store.write() as txn:
        model = modelfiles.load_model(txn, number)
        txn.delete_prefix("payload", schema.KEY.pack(model.payload_b))
        txn.delete(*modelfiles.places(number)[0])
    assert check(files, repair=True).exit_code == 1
    assert check(files).as_dict()["clean"]


def test_a_lost_record_keeps_its_files(files: Files, tiny: tuple[bytes, bytes]) -> None:
    number = keep(files, tiny)
    with files.store.read() as snapshot:
        model = modelfiles.load_model(snapshot, number)
    for place in modelfiles.places(number):
        damage(files.store, *place)
    report = check(files, repair=True)
    assert report.exit_code == 4
    assert f"model {number}: both copies of its record are damaged; 0 blocks need it" in report.problems[0].message
    with files.store.read() as snapshot:
        assert list(modelfiles.copies(snapshot, model)) == [tiny[1], tiny[1]]


def test_a_file_that_is_another_model(files: Files, tiny: tuple[bytes, bytes]) -> None:
    keep(files, (b"?" * 64, tiny[1]))
    keep(files, (b"!" * 64, b"no model at all"))
    assert check(files, data=False).problems == []
    first, second = check(files).problems
    assert "its file has another fingerprint" in first.message
    assert second.kind == "model"


def test_the_base_of_a_delta_is_missing(files: Files, tiny: tuple[bytes, bytes]) -> None:
    base = keep(files, tiny)
    number, inode = keep(files, (b"D" * 64, b"a delta"), tiny[0]), write(files)
    swap(files, inode, 1, NEURAL, number, b"cold")
    assert check(files, data=False).problems == []
    with files.store.write() as txn:
        modelfiles.drop_model(txn, base, 0)
    [problem] = check(files, data=False).problems
    assert f"is a delta over model {base}, which is lost; 1 blocks need it" in problem.message
    assert problem.paths == [f"/file at {schema.MIN_CHUNK_SIZE}"]


def test_a_delta_over_a_delta(files: Files, tiny: tuple[bytes, bytes]) -> None:
    keep(files, tiny)
    number = keep(files, (b"D" * 64, b"a delta"), tiny[0])
    with files.store.write() as txn:
        model = modelfiles.load_model(txn, number)
        model.base = number
        modelfiles.put_model(txn, number, model)
    assert "itself a delta" in check(files, data=False).problems[0].message


def test_a_whole_fitted_model(files: Files, tiny: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are sent what the delta and its base make together."""
    delta = pytest.importorskip("nnfs.model.delta")
    monkeypatch.setattr(delta, "compose", lambda base, data: base if data == b"nothing changed" else b"?")
    keep(files, (b"B" * 64, tiny[1]))
    number = keep(files, (tiny[0], b"nothing changed"), b"B" * 64)
    with files.store.read() as snapshot:
        assert modelfiles.whole_model(snapshot, number) == tiny[1]


def test_wrong_keys_and_flags_of_models(files: Files, tiny: tuple[bytes, bytes]) -> None:
    number = keep(files, tiny)
    with files.store.write() as txn:
        model = modelfiles.load_model(txn, number)
        model.flags = 0x80
        modelfiles.put_model(txn, number, model)
        txn.put("model", b"\0\0", b"?")
        txn.put("model", b"\1", b"?")
        txn.put("main", modelfiles.COPY + b"\1\2\3", b"?")
        again = modelfiles.load_model(txn, number)
        modelfiles.put_model(txn, 7, again)
    kinds = [problem.kind for problem in check(files, data=False).problems]
    assert kinds.count("key") == 3
    assert kinds.count("model") == 3  # the flags of both, and one fingerprint for two
    assert "payload" in kinds  # both claim the same files


def test_damaged_pages_are_looked_at_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the child includes the checks that could not be made."""
    made = Files(tmp_path / "store")
    backwards(made, monkeypatch, coldcodec.NotInstalled)
    made.fs.close()
    made.store.close()
    monkeypatch.setattr(fsck, "page_damage", lambda _: ["page 5: made up"])
    report = fsck.run(tmp_path / "store", data=True, repair=False, progress=lambda *_: None)
    assert report.exit_code == 4 | 8
    assert len(report.unchecked) == 1
