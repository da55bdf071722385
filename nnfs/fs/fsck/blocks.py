"""Checks of blocks, payloads, the chunk map, and everything derived from them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from nnfs import codec
from nnfs.codec.base import FIRST_COLD, NEURAL
from nnfs.errors import BlockDamaged, RecordDamaged
from nnfs.fs.fsck.cold import ColdBlocks
from nnfs.fs.fsck.context import MASK, Context, Node, Problem
from nnfs.fs.fsck.fixer import Fixer
from nnfs.fs.fsck.models import Models
from nnfs.fs.fsck.tree import DIR, FILE
from nnfs.proof import wrong_payload
from nnfs.store import schema, sealing
from nnfs.store.blocks import load_block
from nnfs.store.schema import FRAGMENT_MAX, Block, MapNode, Total
from nnfs.workers.ladder import decode_hot

FILES_NAMED = 1000  # chunks listed for one damaged block


class Blocks:
    """Checks blocks in one pass, the map in another, and compares both. It takes 36 bytes of memory for each block."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.numbers, self.payloads = array("Q"), array("Q")  # in the order of the block table
        self.plain, self.stored = array("I"), array("I")
        self.refs, self.found = array("Q"), array("Q")
        self.bad: dict[int, Problem] = {}  # blocks whose content cannot be read
        self.totals: dict[bytes, Total] = {}
        self.models = Models(c)
        self.cold = ColdBlocks(c, self.damaged)
        self.fragments = self.indexed = self.logical = 0
        self.headers_lost = False

    def run(self) -> None:
        self.models.run()
        self.payloads.extend(self.models.payloads)
        self.fragments += self.models.fragments
        try:
            self.check_blocks()
            self.cold.finish()
        finally:
            self.cold.close()
        self.models.tell_needs(self.totals)
        self.check_map()
        self.check_files()
        self.check_refs()
        self.check_payloads()
        self.check_index()
        self.check_totals()
        self.check_reserved()

    def index_of(self, number: int) -> int | None:
        """Return the position of a block with a sound header, None when there is none."""
        at = bisect_left(self.numbers, number)
        return at if at < len(self.numbers) and self.numbers[at] == number else None

    # -- blocks by themselves

    def check_blocks(self) -> None:
        for key, record in self.c.scan("block"):
            if len(key) != 8:
                drop = partial(Fixer.delete, table="block", key=key)
                self.c.problem("key", f"block table has a key {key.hex()}", fix=drop)
                continue
            number: int = schema.KEY.unpack(key)[0]
            try:
                block = Block.unpack(key, record)
            except RecordDamaged as error:
                self.bad[number] = self.c.problem("block", f"block {number}: {error}")
                self.headers_lost = True
                continue
            self.remember(number, block)
            for why in self.wrong_header(number, block):
                self.c.problem("block", f"block {number}: {why}")
            self.c.check_commit(f"block {number}", block.commit)
            self.check_index_of(number, block)
            why = self.wrong_content(number, block)
            if why:
                self.damaged(number, why)

    def damaged(self, number: int, why: str) -> None:
        self.bad[number] = self.c.problem("data", f"block {number}: {why}")

    def remember(self, number: int, block: Block) -> None:
        self.numbers.append(number)
        self.payloads.append(block.payload)
        self.plain.append(block.plain)
        self.stored.append(block.stored)
        self.refs.append(block.refs)
        self.found.append(0)
        total = self.totals.setdefault(schema.TOTAL_KEY.pack(block.codec, block.model), Total())
        total.blocks += 1
        total.plain += block.plain
        total.stored += block.stored

    def wrong_header(self, number: int, block: Block) -> Iterator[str]:
        if not 1 <= number < self.c.state.next_number:
            yield f"number is not below the next one, {self.c.state.next_number}"
        if not 1 <= block.payload < self.c.state.next_number:
            yield f"payload number {block.payload} is not below the next one, {self.c.state.next_number}"
        if block.codec not in codec.NAMES:
            yield f"unknown codec {block.codec}"
        elif bool(block.model) != (block.codec == NEURAL):
            yield f"codec {block.codec} with model {block.model}"
        if not 1 <= block.plain <= self.c.store.superblock.chunk_size:
            yield f"{block.plain} plain bytes in chunks of {self.c.store.superblock.chunk_size}"
        if block.flags & ~(Block.FLAG_TRIED | Block.ROUND_BITS):
            yield f"unknown flags {block.flags:#x}"

    def wrong_content(self, number: int, block: Block) -> str:
        """Read a payload. Return what is wrong with it, "" if nothing is. Cold blocks are decoded later."""
        prefix, parts, expected = schema.KEY.pack(block.payload), [], 0
        in_order = True
        for key, fragment in self.c.snapshot.prefix("payload", prefix):
            in_order &= key == schema.FRAGMENT_KEY.pack(block.payload, expected) and len(fragment) > 0
            in_order &= expected == 0 or len(fragment) <= FRAGMENT_MAX
            parts.append(fragment)
            expected += 1
        self.fragments += expected
        if not in_order:
            return f"payload {block.payload} lacks fragments"
        payload = b"".join(parts)
        wrong = wrong_payload(payload, block.stored, block.xxh3)
        if wrong:
            return f"payload {block.payload}: {wrong}"
        lost = self.models.need(block.model) if block.model else None
        if lost is not None:
            self.bad[number] = lost
        if lost is not None or not self.c.data:
            return ""
        if block.codec >= FIRST_COLD and block.codec in codec.NAMES:
            model = self.models.sound.get(block.model)
            self.cold.add(number, block, payload, model.fingerprint if model else b"")
            return ""
        try:
            decode_hot(number, block, payload)
        except BlockDamaged as damage:
            return damage.why
        return ""

    def check_index_of(self, number: int, block: Block) -> None:
        prefix, entry = block.hash[: schema.INDEX_SIZE], schema.KEY.pack(number)
        found = self.c.snapshot.get("hash", prefix)
        if found == entry:
            self.indexed += 1
            return
        if found is not None and len(found) == 8:
            try:
                other = load_block(self.c.snapshot, schema.KEY.unpack(found)[0])
            except RecordDamaged:
                other = None
            if other is not None and other.hash[: schema.INDEX_SIZE] == prefix:
                return  # the other one of two blocks with one prefix has the entry
        self.c.problem(
            "index", f"block {number}: the hash index does not lead to it",
            fix=partial(Fixer.put, table="hash", key=prefix, record=entry),
        )  # fmt: skip

    # -- the map

    def check_map(self) -> None:
        for key, record in self.c.scan("map"):
            if self.c.kept.sees("map", key, record):
                self.check_kept_node(key, record)
                continue
            if len(key) != 16:
                drop = partial(Fixer.delete, table="map", key=key)
                self.c.problem("key", f"map table has a key {key.hex()}", fix=drop)
                continue
            ino, number = schema.KEY2.unpack(key)
            owner = self.c.nodes.get(ino)
            if not self.c.may_be(ino, FILE):
                drop = partial(Fixer.drop_node, key=key)
                self.c.problem("map", f"map node {number} of {ino}, which is no file", ino, fix=drop)
                continue
            if owner is not None:
                owner.proof = (owner.proof - sealing.checksum_of(record)) & MASK
            try:
                node = MapNode.unpack(key, record)
                if not node.blocks or node.pack(key) != record:
                    raise RecordDamaged("map", key, "not in its canonical form")
            except RecordDamaged as error:
                self.c.uncertain.add(ino)
                first = number * schema.NODE_SPAN
                self.c.problem("map", f"inode {ino}, chunks {first} to {first + schema.NODE_SPAN - 1}: {error}", ino)
                continue
            self.c.check_commit(f"map node {number} of inode {ino}", node.commit, ino)
            self.check_node(key, ino, number, owner, node)

    def check_node(self, key: bytes, ino: int, number: int, owner: Node | None, node: MapNode) -> None:
        beyond = 0
        size = owner.size if owner is not None and ino not in self.c.orphans else MASK
        for slot, block in node.blocks.items():
            chunk = number * schema.NODE_SPAN + slot
            if owner is not None:
                owner.count -= 1
            if chunk * self.c.store.superblock.chunk_size >= size:
                beyond += 1
                continue
            at = self.find_block(ino, chunk, block)
            if at is not None:
                self.logical += self.plain[at]
                if chunk * self.c.store.superblock.chunk_size + self.plain[at] > size:
                    self.c.problem("tail", f"inode {ino}: chunk {chunk} reaches beyond its end at {size}", ino)
        if beyond:
            self.c.problem(
                "beyond", f"inode {ino}: {beyond} chunks beyond its end at {size}", ino,
                fix=partial(Fixer.cut_node, key=key, size=size),
            )  # fmt: skip

    def check_kept_node(self, key: bytes, record: bytes) -> None:
        """Count the references of a map node that is kept for a snapshot."""
        (ino, number), moment = schema.KEY2.unpack(key), self.c.kept.by_number.get(int.from_bytes(key[:2], "big"))
        try:
            node = MapNode.unpack(key, record)
        except RecordDamaged:
            return  # told already
        if moment is None:
            return  # it has no meaning
        for slot, block in node.blocks.items():
            self.find_block(ino, number * schema.NODE_SPAN + slot, block)

    def find_block(self, ino: int, chunk: int, block: int) -> int | None:
        """Count a reference from a chunk. Return the position of its block, None when there is no sound one."""
        at = self.index_of(block)
        if at is None and block not in self.bad:
            self.bad[block] = self.c.problem("map", f"block {block} is missing")
        if block in self.bad and len(self.bad[block].chunks) < FILES_NAMED:
            self.bad[block].chunks.append((ino, chunk))
        if at is not None:
            self.found[at] += 1
        return at

    def check_files(self) -> None:
        """Check chunk counts and proofs of files, from which the map has been subtracted."""
        for ino, node in self.c.nodes.items():
            if node.kind != FILE or ino in self.c.uncertain:
                if node.kind not in (FILE, DIR) and (node.count or node.proof):
                    fix = partial(Fixer.clear_proof, ino=ino)
                    self.c.problem("proof", f"inode {ino} is no file and proves chunks", ino, fix=fix, derived=True)
                continue
            if node.proof:
                self.c.uncertain.add(ino)
                lost = f"{node.count} chunks are lost" if node.count > 0 else "its chunk map is not the one it proves"
                self.c.problem("proof", f"inode {ino}: {lost}; its holes read as errors, other chunks are sound", ino)
            elif node.count:
                self.c.problem(
                    "count", f"inode {ino}: its count of chunks is {node.count} too high", ino,
                    fix=partial(Fixer.add_count, ino=ino, change=-node.count), derived=True,
                )  # fmt: skip

    # -- derived records

    def check_refs(self) -> None:
        uncertain = bool(self.c.uncertain or self.c.damaged_inodes or self.c.unreadable)
        held = 0
        for number, refs, found in zip(self.numbers, self.refs, self.found, strict=True):
            if refs == found and found:
                continue
            if found < refs and uncertain:
                held += 1
            elif not found:
                delete = partial(Fixer.delete_block, number=number)
                self.c.problem("refs", f"block {number}: nothing refers to it", fix=delete)
            else:
                self.c.problem(
                    "refs", f"block {number}: reference count {refs}, not {found}",
                    fix=partial(Fixer.set_refs, number=number, refs=found), derived=True,
                )  # fmt: skip
        if held:
            self.c.note(f"{held} blocks may be referred to by map nodes that are damaged or lost: kept as they are")

    def check_payloads(self) -> None:
        """Check that every payload number belongs to one block, and every fragment to a payload."""
        claimed = array("Q", sorted(self.payloads))
        for before, after in pairwise(claimed):
            if before == after:
                self.c.problem("payload", f"payload {after} belongs to more than one block")
        if self.fragments == self.c.store.entries("payload"):
            self.c.report.counts["payload"] = self.fragments
            return
        if self.headers_lost or self.models.lost:
            return  # fragments that belong to no block may be theirs
        last = b""
        for key, _ in self.c.scan("payload"):
            if key[:8] == last:
                continue
            last = key[:8]
            at = bisect_left(claimed, int.from_bytes(last, "big"))
            if len(key) != 10 or at == len(claimed) or claimed[at] != int.from_bytes(last, "big"):
                self.c.problem(
                    "payload", f"payload {last.hex()} belongs to no block",
                    fix=partial(Fixer.delete_prefix, table="payload", prefix=last),
                )  # fmt: skip

    def check_index(self) -> None:
        """Check that no entry of the hash index is wrong. Reads it only if it has more entries than there should be."""
        if self.indexed == self.c.store.entries("hash"):
            self.c.report.counts["hash"] = self.indexed
            return
        for key, record in self.c.scan("hash"):
            number = int.from_bytes(record, "big")
            at = self.index_of(number) if len(record) == 8 else None
            block = load_block(self.c.snapshot, number) if at is not None else None
            if block is None or block.hash[: schema.INDEX_SIZE] != key:
                if number in self.bad:
                    continue  # its header is damaged, the entry may be right
                self.c.problem(
                    "index", f"hash index entry {key.hex()} leads to no such block",
                    fix=partial(Fixer.delete_stray_index, key=key, record=record),
                )  # fmt: skip

    def check_totals(self) -> None:
        c = self.c
        recorded: dict[bytes, Total | None] = {}
        for key, record in c.scan("total"):
            try:
                recorded[key] = Total.unpack(key, record) if len(key) == schema.TOTAL_KEY.size else None
            except RecordDamaged:
                recorded[key] = None
        if self.headers_lost or c.unreadable:
            return  # the sums lack the blocks that cannot be read
        for key in sorted(recorded.keys() | self.totals.keys()):
            is_there, want = key in recorded, self.totals.get(key, Total())
            have = recorded.get(key, Total())
            if have is None or (have.blocks, have.plain, have.stored) != (want.blocks, want.plain, want.stored):
                wrong = "damaged" if have is None and is_there else f"{have}, not {want}"
                fix = partial(Fixer.put_total, key=key, total=want)
                c.problem("total", f"sums of codec {key.hex()}: {wrong}", fix=fix, derived=True)
        if c.state.logical != self.logical and not c.uncertain and not self.missing_blocks():
            fix = partial(Fixer.set_state, name="logical", value=self.logical)
            c.problem("state", f"logical bytes {c.state.logical}, not {self.logical}", fix=fix, derived=True)

    def missing_blocks(self) -> bool:
        return any(self.index_of(number) is None for number in self.bad)

    def check_reserved(self) -> None:
        """Check that the table that is kept for later is empty."""
        for key, _ in self.c.scan("queue"):
            drop = partial(Fixer.delete, table="queue", key=key)
            self.c.problem("queue", f"reserved table has a record {key.hex()}", fix=drop)
