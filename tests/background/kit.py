"""A daemon that recompresses all the time, with quick codecs and, when asked to, workers that die.

`python -m tests.background.kit STORE MNT -o OPTIONS`, in the foreground; `Chaos` is a mount of it. Variables of the
environment, besides those of `tests.background.coding`: CHAOS_MODELS, the folder of the models that are shipped;
CHAOS_MODE=pass (what has gone cold, as a mount does), all (compact, thaw and deep scrub of everything in turn, and any
payload will do, however large) or none; CHAOS_CLOCK, seconds by which ages are looked at from the future; CHAOS_TAKES,
seconds that the network takes for a chunk, when the speed of codecs is measured.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnfs.model
from nnfs.background import (
    busy,
    chunkrecompression,
    encoder,
    modelchanges,
    modelreader,
    passes,
    scrub,
    service,
    swaps,
    tasks,
)
from nnfs.blockio import commit
from nnfs.blockio.cold import Cold, Progress, specs
from nnfs.cli import client
from nnfs.codec.base import NEURAL
from nnfs.config import Options
from nnfs.errors import BlockDamaged, RecordDamaged
from nnfs.fs import candidates, swapping
from nnfs.mount import daemon, logs
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import ROOT_INO, Block, Inode
from nnfs.workers import catalogue
from nnfs.workers.board import WorkItem
from nnfs.workers.pool import WorkerSpec
from nnfs.workers.wire import Op
from tests.background.coding import SERVE, WORKER, Quick, fingerprint, folder_of_models
from tests.harness import WAIT_S, Mount, environment, wait_for

COLD = ("write_age=0", "read_age=0", "policy=cold")  # everything is cold at once
RESTLESS = (*COLD, "cache=0", "thawed=0")  # and every read decodes
# The lines that a worker's death may leave in the log.
WORKERS = r"worker \S+ was killed|worker \S+ ended|(background|scrub): .*(worker|cancelled)"


def quick_specs(options: Options) -> list[WorkerSpec]:
    """The workers of a mount, but for what they serve."""
    return [
        replace(spec, serve=SERVE, idle=False, environment=(*spec.environment, (WORKER, spec.name)))
        for spec in specs(options)
    ]


def stated(data: bytes) -> bytes:
    """The fingerprint that a model's file says it has: the real ones are computed from weights."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return bytes.fromhex(header["__metadata__"]["fingerprint"])


async def examined(self: modelchanges.ModelChanges, file: Path, data: bytes, base: bytes | None) -> bytes:
    """Return the fingerprint that a model's file states: the real examination loads weights."""
    return stated(data)


class Everything:
    """Takes the place of the background pass: everything cold, everything hot again; and beside that a deep scrub."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def method(self) -> Any:
        async def background(tiers: Any, task: tasks.Task) -> None:
            if tiers._commits.failure is not None:
                return
            everything = functools.partial(tiers._passes.compact, ROOT_INO, everything=True)
            tiers.tasks.add("scrub", functools.partial(tiers._scrub.run, deep=True))
            work = (
                tiers._passes.background, everything(), tiers._passes.thaw(ROOT_INO), everything()
            )  # fmt: skip
            await work[next(self._turn) % len(work)](task)

        return background


def patch(mode: str) -> None:
    """Make this process's daemon the one of the tests."""
    daemon.specs = quick_specs  # type: ignore[attr-defined]
    folder = os.environ["CHAOS_MODELS"]
    catalogue.PRESETS = modelreader.PRESETS = folder  # type: ignore[attr-defined]
    modelchanges.ModelChanges._examine = examined  # type: ignore[method-assign]
    delta = SimpleNamespace(is_delta=lambda data: False)
    sys.modules["nnfs.model.delta"] = nnfs.model.delta = delta  # type: ignore[assignment]
    service.FIRST_PASS = service.PASS_EVERY = 0.05
    tasks.LOOKING = 1
    passes.REST = passes.REST_MOST = 0.2
    passes.QUICK_EVERY = 0.0
    busy.BUSY_MOST = 0
    swaps.FLUSH_S = 0.1
    scrub.REST_S = 0.0
    if mode == "none":
        service.FIRST_PASS = service.PASS_EVERY = 1e9
    if mode == "all":
        commit.INTERVAL = 0.2
        commit.BUSY_COMMITS, commit.KEEP_BUSY = 8, 64  # there are no pauses
        encoder.MIN_GAIN = encoder.MIN_GAIN_COLD = -100.0
        encoder.least_saving = lambda *_: -1e9  # type: ignore[attr-defined]
        chunkrecompression.compressible = lambda plain: True  # type: ignore[attr-defined]
        service.Service._background = Everything().method()  # type: ignore[method-assign]
    tell_more()
    if takes := os.environ.get("CHAOS_TAKES"):
        measure(float(takes))
    ahead = int(os.environ.get("CHAOS_CLOCK", "0")) * 10**9
    clock = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: time.time_ns() + ahead)
    candidates.time = clock  # type: ignore[attr-defined, assignment]


def measure(seconds: float) -> None:
    """Have speeds measured by a clock that moves with chunks that the network decodes, and hardly with others."""
    passed, run = [0.0], Cold.run

    async def counted(self: Cold, item: WorkItem, progress: Progress | None = None) -> Any:
        found = await run(self, item, progress)
        passed[0] += seconds if item.op is Op.DECODE and item.codec == NEURAL else 0.001
        return found

    Cold.run = counted  # type: ignore[method-assign]
    encoder.time = SimpleNamespace(monotonic=lambda: passed[0])  # type: ignore[attr-defined, assignment]


def settled(store: Store) -> int:
    """Count the files that are marked as done."""
    count = 0
    with store.read() as snapshot:
        for key, record in snapshot.range("inode", b""):
            with suppress(RecordDamaged):
                inode = Inode.unpack(schema.KEY.unpack(key)[0], record)
                count += not inode.is_directory and bool(inode.flags & Inode.FLAG_SETTLED)
    return count


def swapped() -> Path:
    """A file that grows by a byte with each swap, over all daemons of a `Chaos`."""
    return Path(os.environ["CHAOS_MODELS"], "swaps")


def tell_more() -> None:
    """A command of the control socket that counts passes and settled files."""
    init, background, ended = service.Service.__init__, service.Service._background, [0]
    swap = swapping.swap

    async def counted(self: service.Service, task: tasks.Task) -> None:
        try:
            await background(self, task)
        finally:
            ended[0] += 1

    def recounted(*args: Any, **kwargs: Any) -> list[int | None]:
        changes = swap(*args, **kwargs)
        with swapped().open("ab") as file:
            file.write(b"x" * sum(change is not None for change in changes))
        return changes

    def extended(self: service.Service, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

        async def passes(_: object) -> dict[str, Any]:
            return {"passes": ended[0], "settled": settled(self._parts.store)}

        self.handlers["passes"] = passes

    swapping.swap = recounted
    service.Service.__init__ = extended  # type: ignore[method-assign]
    service.Service._background = counted  # type: ignore[method-assign]


class Chaos(Mount):
    """A mount of this daemon."""

    def __init__(
        self, store: Path | None = None, *, mode: str = "pass", options: Sequence[str] = COLD,
        env: dict[str, str] | None = None, chunk_size: int | None = None, **knobs: str,
    ) -> None:  # fmt: skip
        super().__init__(
            store, options=options, chunk_size=chunk_size, argv=lambda m: [*start(), str(m.store), str(m.path)]
        )
        self.env = {**(env or {}), "CHAOS_MODELS": os.fspath(folder_of_models(self.base / "models"))}
        self.is_damaged = False  # on purpose
        self.set(mode=mode, **knobs)
        if "kill" in knobs:
            self.expect_log(WORKERS)

    def ask(self, command: str, **args: Any) -> dict[str, Any]:
        """Return the daemon's answer to a command."""
        return client.ask(self.store, command, **args)

    def turn_round(self, passes: int = 2) -> None:
        """Wait for the ends of some of the daemon's passes."""
        last = self.ask("passes")["passes"]
        wait_for("a pass", lambda: self.ask("passes")["passes"] >= last + passes, step=0.01)

    @property
    def swaps(self) -> int:
        """Payloads swapped so far."""
        path = self.base / "models" / "swaps"
        return path.stat().st_size if path.exists() else 0

    def set(self, **knobs: str) -> None:
        """Change variables, for the next daemon."""
        self.env = {**(self.env or {}), **{f"CHAOS_{name.upper()}": value for name, value in knobs.items()}}


@contextmanager
def restless(store: Path | None = None, *, chunk_size: int | None = 16384, kill: int = 30) -> Iterator[Chaos]:
    """A mount on which everything is recompressed, thawed and scrubbed all the time, by workers that die."""
    with Chaos(store, mode="all", options=RESTLESS, chunk_size=chunk_size, kill=str(kill)) as mount:
        yield mount
        mount.unmount()
        fsck_clean(mount.store)
        mount.mount()


def start() -> list[str]:
    """The argv of the daemon, but for its arguments."""
    return [sys.executable, "-m", "tests.background.kit"]


def fsck_clean(store: Path) -> None:
    """`nnfs fsck --data`, with these codecs, finds nothing."""
    argv = [*start(), "fsck", os.fspath(store), "--data"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, f"fsck: exit {done.returncode}\n{done.stdout}{done.stderr}"


class Here:
    """Decodes what the workers of these tests have encoded with the model that is shipped, in this process."""

    trouble = ""

    def watch(self, go_on: Callable[[], None]) -> None:
        """There are no workers that could get on."""

    async def decode(self, number: int, block: Block, payload: bytes, **_: Any) -> bytes:
        plain = Quick(block.codec, fingerprint("default")).decode(payload, block.plain)
        if blake2b(plain).digest() != block.hash:
            raise BlockDamaged(number, "its content does not have its BLAKE2b-512")
        return plain


def main() -> int:
    """The daemon, or `fsck STORE ...` that knows the tests' codecs."""
    if sys.argv[1] == "fsck":
        from nnfs.cli.main import main as cli
        from nnfs.fs.fsck import cold

        cold.SERVE = SERVE
        catalogue.fingerprint = stated
        return cli(sys.argv[1:])
    patch(os.environ.get("CHAOS_MODE", "pass"))
    logs.configure(Path(sys.argv[1]), foreground=True)
    options = [word for word in sys.argv[3:] if word != "-o"]
    return daemon.run(Path(sys.argv[1]), Path(sys.argv[2]), options, lambda: None)


if __name__ == "__main__":
    sys.exit(main())
