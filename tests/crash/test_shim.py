"""The instruments themselves: the shim sees everything, and the power cuts can tell durable from careless engines."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from tests.crash.journal import (
    ACK,
    FLUSH,
    PUNCH,
    TRUNCATE,
    WRITE,
    Control,
    Disk,
    Record,
    read_journal,
    replay,
    shim_environment,
)
from tests.crash.lmdb_writer import expected
from tests.harness import WAIT_S

ROOT = Path(__file__).parents[2]


def make_env(folder: Path) -> bytes:
    """A durable empty environment; returns its content."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 30, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"last", b"0")
    return (folder / "data.mdb").read_bytes()


def run_writer(folder: Path, journal: Path, env: dict[str, str], *, sync: bool = True, commits: int = 40) -> int:
    """Returns the exit status of the writer."""
    command = [sys.executable, "-m", "tests.crash.lmdb_writer", *map(str, (folder, journal, 1, commits, int(sync)))]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, timeout=WAIT_S).returncode


def state_of(folder: Path, content: bytes | None = None) -> dict[bytes, bytes]:
    """All records of an environment, or of an image of one."""
    if content is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(content)
    with lmdb.open(str(folder), map_size=1 << 30, lib_version=0) as env, env.begin() as txn:
        return {bytes(key): bytes(value) for key, value in txn.cursor()}


def test_replayed_journal_is_the_file(tmp_path: Path, shim: Path) -> None:
    base = make_env(tmp_path / "env")
    env = shim_environment(shim, tmp_path / "env" / "data.mdb", journal=tmp_path / "journal")
    assert run_writer(tmp_path / "env", tmp_path / "journal", env) == 0
    records = read_journal(tmp_path / "journal")
    assert {WRITE, FLUSH, PUNCH, ACK} <= {record.kind for record in records}
    disk = Disk(base)
    for record in records:
        disk.apply(record)
    assert disk.cache == (tmp_path / "env" / "data.mdb").read_bytes()
    assert [record.offset for record in records if record.kind == ACK] == list(range(1, 41))


def damaged_cuts(tmp_path: Path, shim: Path, *, sync: bool) -> int:
    """Return how many of 60 power cuts lose an acknowledged commit or mix commits up."""
    base = make_env(tmp_path / "env")
    env = shim_environment(shim, tmp_path / "env" / "data.mdb", journal=tmp_path / "journal")
    assert run_writer(tmp_path / "env", tmp_path / "journal", env, sync=sync) == 0
    records = read_journal(tmp_path / "journal")
    rng = random.Random(5)
    cuts = set(rng.sample(range(1, len(records)), 60))
    bad = acked = 0
    for number, disk in replay(base, records):
        if records[number - 1].kind == ACK:
            acked = records[number - 1].offset
        if number in cuts:
            bad += not holds_up(tmp_path / "image", disk.image(rng), acked)
    return bad


def holds_up(folder: Path, image: bytes, acked: int) -> bool:
    """Whether an image opens and holds the state after a commit from `acked` on. In a child: torn pages crash LMDB."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            os._exit(0 if is_state(state_of(folder, image), acked) else 1)
        except BaseException:  # noqa: BLE001  the child must not go on with pytest's work
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def is_state(state: dict[bytes, bytes], acked: int) -> bool:
    last = int(state[b"last"])
    return last >= acked and state == (expected(1, last) or {b"last": b"0"})


def test_power_cuts_spare_a_durable_engine(tmp_path: Path, shim: Path) -> None:
    assert damaged_cuts(tmp_path, shim, sync=True) == 0


def test_power_cuts_find_a_careless_engine(tmp_path: Path, shim: Path) -> None:
    """Else they would prove nothing."""
    assert damaged_cuts(tmp_path, shim, sync=False) > 20


@pytest.mark.parametrize("how", ["before", "after", "torn"])
@pytest.mark.parametrize("at", [1, 7, 38])
def test_kill_at_a_write(tmp_path: Path, shim: Path, at: int, how: str) -> None:
    make_env(tmp_path / "env")
    control = Control(tmp_path / "control")
    control.kill(at, how)
    env = shim_environment(shim, tmp_path / "env" / "data.mdb", journal=tmp_path / "journal", control=control)
    assert run_writer(tmp_path / "env", tmp_path / "journal", env) == -signal.SIGKILL
    assert control.writes == at
    records = read_journal(tmp_path / "journal")
    acked = max((r.offset for r in records if r.kind == ACK), default=0)
    assert is_state(state_of(tmp_path / "env"), acked)


def test_disk_keeps_what_a_flush_covered() -> None:
    disk = Disk(bytes(4096))
    disk.apply(Record(WRITE, 0, data=b"a" * 1024))
    disk.apply(Record(FLUSH))
    disk.apply(Record(WRITE, 100, data=b"b" * 8))
    disk.apply(Record(PUNCH, 512, 512, 3))
    disk.apply(Record(WRITE, 8192, 0, 1, b"c" * 10))  # O_DSYNC
    seen = {disk.image(random.Random(n)) for n in range(200)}
    first = b"a" * 100 + b"b" * 8 + b"a" * 404
    assert {image[:512] for image in seen} == {b"a" * 512, first}
    assert {image[512:1024] for image in seen} == {b"a" * 512, bytes(512)}
    assert {image[8192:] for image in seen} == {b"c" * 10}
    assert all(len(image) == 8202 for image in seen)


def test_disk_shortens_and_grows() -> None:
    disk = Disk(b"x" * 2048)
    disk.apply(Record(TRUNCATE, 700))
    disk.apply(Record(WRITE, 700, data=b"y" * 1000))
    seen = {disk.image(random.Random(n)) for n in range(400)}
    assert b"x" * 2048 in seen
    assert b"x" * 700 in seen
    assert b"x" * 700 + b"y" * 1000 in seen
    disk.apply(Record(FLUSH))
    assert disk.image(random.Random(0)) == b"x" * 700 + b"y" * 1000
