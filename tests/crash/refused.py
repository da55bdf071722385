"""A committer without a mount whose writes fail one after the other; run by test_refused with the shim.

Each step changes some files and makes them durable. From step to step another write of the commit fails, the first one
at first, until no commit has so many. Written data is read meanwhile; afterwards it has to become durable.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio

from nnfs.errors import OutOfSpace, StoreError
from nnfs.store import schema
from tests.blockio.test_commit import CHUNK, Volume
from tests.crash.journal import Control, append_ack

FOREVER = 1 << 40
FIRST = 16  # step in which a write fails: there are free pages by then, and gaps between them


def content(step: int) -> bytes:
    """Incompressible bytes of a step; its length is not one of whole chunks."""
    return random.Random(step).randbytes(3 * CHUNK + abs(step))


def state(step: int) -> dict[str, bytes]:
    """All files after a step: one of four and one of seven are written anew, a new one comes, an old one goes."""
    files = {f"/f{number % 4}": content(number) for number in range(1, step + 1)}
    files |= {f"/h{number % 7}": content(-number)[: CHUNK // 3] for number in range(1, step + 1)}
    return files | {f"/n{number}": content(number)[:CHUNK] for number in range(max(1, step - 2), step + 1)}


async def change(volume: Volume, step: int) -> None:
    """Ask for what `state` says."""
    written = {b"f%d" % (step % 4): content(step), b"h%d" % (step % 7): content(-step)[: CHUNK // 3]}
    for name, data in (written | {b"n%d" % step: content(step)[:CHUNK]}).items():
        inode = volume.names.lookup(schema.ROOT_INO, name) or volume.create(name)
        volume.write(inode, 0, data)
    if step > 3:
        volume.names.unlink(schema.ROOT_INO, b"n%d" % (step - 3))


async def shown(volume: Volume) -> dict[str, bytes]:
    """All files as a reader finds them."""
    volume.reader.cache.clear()
    found = {}
    for _, name, inode in list(volume.names.entries(schema.ROOT_INO, 0)):
        if name not in (b".", b".."):
            found["/" + name.decode()] = await volume.content(volume.fs.inode(inode.ino))
    return found


async def run(volume: Volume, control: Control, journal: int, code: int, count: int) -> None:
    """All steps. Prints a line per step: the write that failed, and what the one who synced was told."""
    for step in range(1, FIRST):
        await change(volume, step)
        await volume.committer.sync()
        append_ack(journal, step)
    write = 0
    while True:
        step, write = step + 1, write + 1
        await change(volume, step)
        before = control.writes
        control.fail(write, code, count)
        try:
            await volume.committer.sync()
            told = "ok"
        except OutOfSpace as error:
            told = os.strerror(error.errno)
        except StoreError as error:
            print(write, f"failure: {error}", flush=True)
            assert await shown(volume) == state(step)
            return
        done = control.writes - before
        control.fail(0, 0)
        assert volume.committer.failure is None
        assert await shown(volume) == state(step), "what was written is not what is read"
        await volume.committer.sync()
        append_ack(journal, step)
        assert await shown(volume) == state(step)
        print(write, told, flush=True)
        if done < write:
            return


async def main(store: Path, control: Control, journal: int, code: int, count: int) -> None:
    volume = Volume(store)
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        nursery.start_soon(volume.committer.run, nursery)
        await run(volume, control, journal, code, count)
        if volume.committer.failure is None:
            await volume.committer.finish()
        nursery.cancel_scope.cancel()
    volume.fs.close()
    volume.store.close()


if __name__ == "__main__":
    path, words, log, code, count = sys.argv[1:]
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    trio.run(main, Path(path), Control(Path(words)), fd, int(code), FOREVER if count == "all" else int(count))
