"""The second reader walks stores: the golden one, and one with cold blocks of all kinds."""

from __future__ import annotations

import lzma
from hashlib import blake2b
from pathlib import Path
from struct import pack

import pytest

from nnfs.codec.cm import ContextMixing
from nnfs.constants import DATA_FILE
from nnfs.model import delta
from nnfs.model.weights import load_weights
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import BlockWriter, Swap, load_block
from nnfs.store.env import Store
from tests import test_golden
from tests.conftest import why_no_mount
from tests.format import make
from tests.format.decoder.store import Broken, Entry, lines
from tests.format.decoder.store import Store as Reader
from tests.harness import Mount
from tests.model.golden import sample

CHUNK = 16384


def chunks_of(pieces: dict[int, bytes]) -> dict[int, bytes]:
    """The chunks of a file that was written in pieces, up to the last byte of each."""
    chunks: dict[int, bytearray] = {}
    for offset, content in pieces.items():
        for at, byte in enumerate(content, offset):
            chunk = chunks.setdefault(at // CHUNK, bytearray())
            chunk.extend(bytes(at % CHUNK + 1 - len(chunk)))
            chunk[at % CHUNK] = byte
    return {number: bytes(chunk) for number, chunk in chunks.items()}


def digest_of(content: bytes) -> str:
    """Return the text that the reader should print for a file without holes."""
    chunks = chunks_of({0: content})
    return blake2b(b"".join(pack(">Q", n) + chunk for n, chunk in sorted(chunks.items())), digest_size=16).hexdigest()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The store of version 1 that is kept for ever."""
    (tmp_path / DATA_FILE).write_bytes(lzma.decompress(test_golden.GOLDEN.read_bytes()))
    return tmp_path


def test_the_golden_store(golden: Path) -> None:
    reader = Reader(str(golden))
    tree: dict[bytes, Entry] = {entry.path: entry for entry in reader.tree()}
    assert len(tree) == 1 + len(test_golden.FILES) + 4 + 302
    for name, pieces in test_golden.FILES.items():
        entry = tree[b"/" + name]
        # The kernel writes a page up to its end, with zeros.
        found = {number: plain.rstrip(b"\0") for number, plain in entry.chunks.items()}
        assert found == chunks_of(pieces), name
        assert entry.inode.size == max((offset + len(content) for offset, content in pieces.items()), default=0)
    assert tree[b"/deep/er/hard"].digest == tree[b"/text"].digest
    assert tree[b"/link"].target == b"deep/er/hard"
    assert tree[b"/noise"].xattrs == {b"user.colour": b"\0blue\xff", b"system.posix_acl_access": test_golden.ACL}
    small = tree[b"/small"].inode
    assert (small.mode, small.uid, small.gid, small.atime, small.mtime) == (
        0o106751, 1000, 100, test_golden.EARLY, test_golden.LATE,
    )  # fmt: skip
    assert reader.commit != reader.clean_commit
    assert len(reader.orphans()) == 1
    assert reader.inodes == len(tree) - 1 + 1  # one name more than inodes, and an orphan
    reader.check_totals()
    text = list(lines(reader))
    assert text[0] == "040755 0:0 0 /"
    assert f"100644 0:0 100000 /text {digest_of(test_golden.FILES[b'text'][0])}" in text
    reader.close()


@pytest.mark.parametrize("table", ["inode", "dentry", "map", "block", "payload", "xattr"])
def test_damage_is_noticed(golden: Path, table: str) -> None:
    """A flipped bit, or a missing record."""
    store = Store.open(golden)
    with store.write() as txn:
        key, record = next((key, record) for key, record in txn.range(table, b"") if len(record) > 8)
        if table in ("dentry", "map", "xattr"):
            txn.delete(table, key)
        else:
            txn.put(table, key, bytes([record[0] ^ 1]) + record[1:])
    store.close()
    reader = Reader(str(golden))
    with pytest.raises(Broken):
        list(reader.tree())
    reader.close()


def cold_files() -> dict[str, bytes]:
    """Name, which tells how it is stored, to content."""
    return {
        "raw": bytes(range(256)),
        "zstd": sample(20_000, 1),
        "cm": sample(200, 2),
        "network": sample(150, 3),
        "fitted": sample(120, 4),
    }


def recompress(path: Path) -> None:
    """Give the small files of a store cold payloads, as recompression would."""
    small = make.tiny()
    fits = make.fitted(small)
    whole = delta.compose(small, fits)
    one, other = load_weights(small), load_weights(whole)
    store = Store.open(path)
    with store.write() as txn:
        state = store.state
        state.commit += 1
        blocks = BlockWriter(txn, state, 0, 0)
        first = modelfiles.add_model(txn, blocks, one.fingerprint(), small, base=0, added=1, commit=state.commit)
        blocks.flush()
        second = modelfiles.add_model(txn, blocks, other.fingerprint(), fits, base=first, added=1, commit=state.commit)
        for key, _ in list(txn.range("block", b"")):
            number = schema.KEY.unpack(key)[0]
            block = load_block(txn, number)
            assert block is not None
            name = next((n for n, plain in cold_files().items() if blake2b(plain).digest() == block.hash), "")
            plain = cold_files().get(name, b"")
            if name == "cm":
                codec, model, data = 17, 0, ContextMixing()._mix(plain, 0)
            elif name == "network":
                codec, model, data = 16, first, make.streams(one, plain, 2, 1)
            elif name == "fitted":
                codec, model, data = 16, second, make.streams(other, plain, 1, 1)
            else:
                continue
            assert blocks.swap(Swap(number, block.payload, (0, 0), codec, model, data)) is not None
        blocks.flush()
        txn.put_state(state)
    store.close()


@pytest.mark.mount
@pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
def test_a_store_with_cold_blocks(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.mkdir()
    with Mount(path, chunk_size=CHUNK) as mount:
        for name, content in cold_files().items():
            (mount.path / name).write_bytes(content)
    recompress(path)
    reader = Reader(str(path))
    tree = {entry.path: entry for entry in reader.tree()}
    for name, content in cold_files().items():
        assert tree[b"/" + name.encode()].digest == digest_of(content), name
    reader.check_totals()
    assert sorted(reader.models) == [1, 2]
    reader.close()
