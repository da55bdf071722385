"""Every byte class of a store damaged: each answer is right or an error, and nothing but the engine itself may give up.

Most cases are judged offline, through the daemon's own layers in a child process (0.2 s each); some through a mount.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.store import modelfiles, schema
from nnfs.store.env import Store
from nnfs.store.schema import Model
from nnfs.workers.catalogue import fingerprint
from tests.damage.child import Outcome, examine, fsck_code
from tests.damage.kit import Sample
from tests.damage.pages import PAGE, Span, Walk
from tests.damage.truth import Mounted, judge
from tests.harness import FULL, Mount

ROUNDS = 12 if FULL else 1
SEEN = ("inode", "dentry", "xattr", "map", "block", "payload")  # tables that every full look reads wholly
DERIVED = ("hash", "total")  # tables that no answer to a request depends on
ENGINE = (
    "meta", "table descriptor", "branch header", "branch pointers", "branch node", "leaf header", "leaf pointers",
    "node header",
)  # fmt: skip


def flip_bit(rng: random.Random, content: bytearray, span: Span) -> None:
    content[rng.randrange(span.start, span.end)] ^= 1 << rng.randrange(8)


def change_byte(rng: random.Random, content: bytearray, span: Span) -> None:
    content[rng.randrange(span.start, span.end)] ^= rng.randrange(1, 256)


def scramble(rng: random.Random, content: bytearray, span: Span) -> None:
    """All bytes of the span anew: at least one differs."""
    old = bytes(content[span.start : span.end])
    while content[span.start : span.end] == old:
        content[span.start : span.end] = rng.randbytes(len(old))


def zero(rng: random.Random, content: bytearray, span: Span) -> None:
    content[span.start : span.end] = bytes(span.end - span.start)


DAMAGES: tuple[Callable[[random.Random, bytearray, Span], None], ...] = (flip_bit, change_byte, scramble, zero)


def damaged(sample: Sample, spans: list[Span], seed: str) -> Iterator[tuple[str, bytes]]:
    """Drawn damages of a class of bytes, each with its story."""
    rng = random.Random(seed)
    assert spans, "the sample has no such bytes"
    for damage in DAMAGES:
        for _ in range(ROUNDS):
            span = rng.choice(spans)
            content = bytearray(sample.content)
            damage(rng, content, span)
            if content != sample.content:
                yield f"{damage.__name__} {span}", bytes(content)


def outcome_of(folder: Path, sample: Sample, content: bytes) -> Outcome:
    """Return the result of a look at a damaged copy of the sample."""
    store = folder / "damaged"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    (store / "data.mdb").write_bytes(content)
    return examine(store, sample.truth)


def fsck_notices(folder: Path, story: str) -> None:
    """fsck does not call clean what `outcome_of` has just looked at."""
    assert fsck_code(folder / "damaged") != 0, f"{story}: fsck calls it clean"


def no_lies(outcome: Outcome, story: str) -> None:
    """The one thing that holds for all damage."""
    assert outcome.bug == "", f"{story}: an exception outside the error tree\n{outcome.bug}"
    assert outcome.verdict.lies == [], f"{story}:\n" + "\n".join(outcome.verdict.lies[:5])
    assert outcome.killed != signal.SIGALRM, f"{story}: it never ended"


def test_sample_is_right_when_nothing_is_damaged(folder: Path, sample: Sample) -> None:
    outcome = outcome_of(folder, sample, sample.content)
    no_lies(outcome, "undamaged")
    assert (outcome.verdict.errors, outcome.refused, outcome.killed, outcome.message) == (0, 0, 0, "")
    assert outcome.verdict.right > 800


@pytest.mark.parametrize("what", ["record", "key"])
@pytest.mark.parametrize("table", SEEN)
def test_records(folder: Path, sample: Sample, walk: Walk, table: str, what: str) -> None:
    for story, content in damaged(sample, walk.classes()[what, table], f"{what} {table}"):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        assert outcome.killed == 0, f"{story}: signal {outcome.killed}"
        assert outcome.refused == 0, f"{story}: one record refuses the whole store: {outcome.message}"
        # The number of a single fragment matters to nobody, and some bits of a zstd frame mean nothing.
        assert outcome.verdict.errors > 0 or table == "payload", f"{story}: nobody noticed"
        if (what, table) != ("key", "payload"):
            fsck_notices(folder, story)


@pytest.mark.parametrize("what", ["record", "key"])
@pytest.mark.parametrize("table", DERIVED)
def test_derived_records_cost_nothing(folder: Path, sample: Sample, walk: Walk, table: str, what: str) -> None:
    for story, content in damaged(sample, walk.classes()[what, table], f"{what} {table}"):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        assert (outcome.verdict.errors, outcome.refused, outcome.killed) == (0, 0, 0), f"{story}: {outcome}"
        fsck_notices(folder, story)


@pytest.mark.parametrize("table", ["meta", "main"])
def test_one_copy_of_superblock_and_state_is_enough(folder: Path, sample: Sample, walk: Walk, table: str) -> None:
    spans = [Span("record", table, r.start, r.end) for r in walk.of(table) if r.key in (b"nnfs.super", b"nnfs.state")]
    for story, content in damaged(sample, spans, table):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        assert (outcome.verdict.errors, outcome.refused, outcome.killed) == (0, 0, 0), f"{story}: {outcome}"
        assert outcome.message, f"{story}: nobody noticed"


@pytest.mark.parametrize("key", [b"nnfs.super", b"nnfs.state"])
def test_both_copies_damaged_refuse_the_store(folder: Path, sample: Sample, walk: Walk, key: bytes) -> None:
    content = bytearray(sample.content)
    for record in walk.records:
        if record.key == key:
            content[record.start + 9] ^= 4
    outcome = outcome_of(folder, sample, bytes(content))
    assert outcome.refused == 7, str(outcome)
    assert key.decode() in outcome.message


def model_spans(sample: Sample, walk: Walk) -> dict[str, list[Span]]:
    """The bytes of both copies of the model's record and of its file."""
    [record] = walk.of("model")
    [copy] = (found for found in walk.of("main") if found.key.startswith(modelfiles.COPY))
    model = Model.unpack(record.key, sample.content[record.start : record.end])
    spans = {"record": [record], "copy of the record": [copy]}
    for name, payload in zip(("file", "copy of the file"), model.payloads, strict=True):
        spans[name] = [found for found in walk.of("payload") if found.key.startswith(schema.KEY.pack(payload))]
    return {name: [Span(name, r.table, r.start, r.end) for r in records] for name, records in spans.items()}


def model_is_there(store: Path) -> bool:
    """Whether the sample's model can be read."""
    opened = Store.open(store)
    try:
        with opened.read() as snapshot:
            return fingerprint(modelfiles.whole_model(snapshot, 1)) == modelfiles.load_model(snapshot, 1).fingerprint
    finally:
        opened.close()


@pytest.mark.parametrize("name", ["record", "copy of the record", "file", "copy of the file"])
def test_one_copy_of_a_model_is_enough(folder: Path, sample: Sample, walk: Walk, name: str) -> None:
    for story, content in damaged(sample, model_spans(sample, walk)[name], name):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        assert (outcome.verdict.errors, outcome.refused, outcome.killed) == (0, 0, 0), f"{story}: {outcome}"
        assert model_is_there(folder / "damaged"), story
        fsck_notices(folder, story)


@pytest.mark.parametrize("what", ["old meta", "free page"])
def test_what_is_not_in_use_costs_nothing(folder: Path, sample: Sample, walk: Walk, what: str) -> None:
    for story, content in damaged(sample, walk.classes()[what, ""], what):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        if what == "free page":
            assert (outcome.verdict.errors, outcome.refused, outcome.killed) == (0, 0, 0), f"{story}: {outcome}"


@pytest.mark.parametrize("what", ENGINE)
def test_pages_of_the_engine(folder: Path, sample: Sample, walk: Walk, what: str) -> None:
    """The engine may refuse, or end the process; what it answers is right."""
    spans = [span for span in walk.spans if span.what == what and span.end > span.start]
    noticed = 0
    for story, content in damaged(sample, spans, what):
        outcome = outcome_of(folder, sample, content)
        no_lies(outcome, story)
        if outcome.refused or outcome.killed or outcome.verdict.errors:
            noticed += 1
            fsck_notices(folder, story)
    assert noticed > 0


@pytest.mark.parametrize("table", SEEN)
@pytest.mark.parametrize("factor", [2, 1 / 2])
def test_keys_of_branch_pages(folder: Path, sample: Sample, walk: Walk, table: str, factor: float) -> None:
    """A branch page that leads look-ups to a leaf beside the right one: the record is there, and not found."""
    spans = [s for s in walk.spans if s.what == "branch node" and s.table == table and s.end - s.start > 8]
    for span in random.Random(table).sample(spans, min(len(spans), ROUNDS * 2)):
        key = int.from_bytes(sample.content[span.start + 8 : span.end], "big")
        wrong = max(1, min(int(key * factor), 256 ** (span.end - span.start - 8) - 1))
        content = bytearray(sample.content)
        content[span.start + 8 : span.end] = wrong.to_bytes(span.end - span.start - 8, "big")
        outcome = outcome_of(folder, sample, bytes(content))
        no_lies(outcome, f"{span} leads elsewhere")
        fsck_notices(folder, f"{span} leads elsewhere")


@pytest.mark.parametrize("table", SEEN)
def test_free_list_and_lost_pages(folder: Path, sample: Sample, walk: Walk, table: str) -> None:
    """Whole pages of a table: zeroed, random, or another page in their place."""
    leaves = [s for s in walk.spans if s.what == "leaf header" and s.table == table]
    rng = random.Random(table)
    for _ in range(ROUNDS * 2):
        page, other = (rng.choice(leaves).start for _ in range(2))
        for new in (bytes(PAGE), rng.randbytes(PAGE), sample.content[other : other + PAGE]):
            if new == sample.content[page : page + PAGE]:
                continue
            content = sample.content[:page] + new + sample.content[page + PAGE :]
            outcome = outcome_of(folder, sample, content)
            no_lies(outcome, f"page {page // PAGE} of {table}")
            fsck_notices(folder, f"page {page // PAGE} of {table}")


def stale_pages(content: bytes, walk: Walk) -> Iterator[tuple[Span, int, bytes]]:
    """(branch node, page it names, older version of that page that still lies in the file)."""
    free: dict[bytes, list[int]] = {}
    for span in walk.spans:
        if span.what == "free page" and content[span.start + 10] & 2:
            free.setdefault(first_key(content, span.start), []).append(span.start)
    for span in walk.spans:
        if span.what == "branch node" and span.table in SEEN:
            child = int.from_bytes(content[span.start : span.start + 6], "little") * PAGE
            for old in free.get(first_key(content, child), []):
                if content[old + 8 : old + PAGE] != content[child + 8 : child + PAGE]:
                    yield span, child, content[old : old + PAGE]


def first_key(content: bytes, page: int) -> bytes:
    node = page + int.from_bytes(content[page + 16 : page + 18], "little")
    return content[node + 8 : node + 8 + int.from_bytes(content[node + 6 : node + 8], "little")]


def test_stale_pages(folder: Path, sample: Sample, walk: Walk) -> None:
    """An older version of a page in place of the newest: a write that the disk acknowledged and lost."""
    found = list(stale_pages(sample.content, walk))
    for span, child, old in random.Random(1).sample(found, min(len(found), 60 if FULL else 6)):
        content = bytearray(sample.content)
        content[child + 8 : child + PAGE] = old[8:]
        outcome = outcome_of(folder, sample, bytes(content))
        no_lies(outcome, f"stale page {child // PAGE} of {span.table}")


MOUNTED = (
    "record inode",
    "record dentry",
    "record map",
    "record block",
    "record payload",
    "branch node",
    "leaf header",
)


@pytest.mark.parametrize("name", MOUNTED)
def test_through_a_mount(folder: Path, sample: Sample, walk: Walk, name: str) -> None:
    """No lies through the kernel either; the daemon survives damaged records and goes on serving and storing."""
    what, _, table = name.partition(" ") if name.startswith("record") else (name, "", "")
    spans = [s for s in walk.spans if s.what == what and s.end > s.start and table in ("", s.table)]
    rng = random.Random(name)
    for turn in range(5 if FULL else 1):
        content = bytearray(sample.content)
        for _ in range(1 if what != "record" else 10):
            flip_bit(rng, content, rng.choice(spans))
        store = folder / f"mounted-{turn}"
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        (store / "data.mdb").write_bytes(content)
        try:
            _judge_mount(store, sample, must_live=what == "record")
        finally:
            shutil.rmtree(store)


def _judge_mount(store: Path, sample: Sample, *, must_live: bool) -> None:
    mount = Mount(store)
    try:
        with mount:
            mount.expect_log("(?i)damage|inode|block|missing")
            mount.deadline()
            verdict = judge(Mounted(mount.path), sample.truth)
            assert verdict.lies == []
            if must_live:
                assert mount.alive, mount.log()[-2000:]
                _goes_on(mount)
            elif not mount.alive:
                mount.unmount(expect=None)
    except AssertionError as error:
        refused = "before the mount was up" in str(error) and not must_live
        if not refused:
            raise


def _goes_on(mount: Mount) -> None:
    """A directory that is not damaged takes new files, or says that it cannot."""
    try:
        (mount.path / "new").mkdir()
        (mount.path / "new" / "file").write_bytes(b"new content")
    except OSError:
        return
    mount.drop_caches()
    assert (mount.path / "new" / "file").read_bytes() == b"new content"
