"""Targets of measurements: the lower filesystem, nullfs and nnfs, each a fresh empty directory that can go cold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NNFS = [sys.executable, "-P", "-m", "nnfs"]  # -P: the nnfs that PYTHONPATH leads to


class Failed(Exception):
    """A target or a row could not be measured. The message tells why."""


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until the condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def command(argv: list[str], timeout: float = 120, cwd: Path | None = None) -> str:
    """Run a command to its end and return its output. Raises `Failed` with the command's error message."""
    try:
        done = subprocess.run(argv, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{argv[0]}: no end within {timeout:.0f} s") from late
    if done.returncode:
        raise Failed(f"{' '.join(argv[:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def drop_caches() -> None:
    """Write back and forget everything that the kernel caches."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


class Target:
    """The lower filesystem, and the pattern for the others: `base` is a scratch directory on it."""

    name = "lower"

    def __init__(self, base: Path) -> None:
        self.base = base / self.name
        self.root = self.base / "mnt"
        self.pid = 0

    def start(self) -> None:
        """Begin from nothing."""
        self.root.mkdir(parents=True)

    def stop(self) -> None:
        """Leave nothing, whatever state this is in."""
        shutil.rmtree(self.base, ignore_errors=True)

    def cool(self) -> None:
        """Make the next reads cold, as far as this target can."""
        drop_caches()

    def sync(self) -> None:
        """Make everything written durable: syncfs, then fsync of the root."""
        command(["sync", "-f", str(self.root)])
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def abort(self) -> None:
        """End a daemon that hangs, so that the calls into its mount fail instead of waiting for ever."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    @contextmanager
    def fresh(self) -> Iterator[Target]:
        """Start the target, and stop it after the body in any case."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


class Null(Target):
    """The in-memory filesystem; remounting would empty it, so cold means: the kernel's caches are dropped."""

    name = "nullfs"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.root.mkdir(parents=True)
        # Huge pages for the heap: nullfs keeps the data it is given, and 4 KiB faults were 2/3 of its write time.
        environ = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        self.process = subprocess.Popen([sys.executable, "-m", "bench.nullfs", str(self.root)], env=environ)
        self.pid = self.process.pid
        wait_for(lambda: os.path.ismount(self.root), 20, "mount nullfs")

    def stop(self) -> None:
        if self.process:
            subprocess.run(["umount", "-l", str(self.root)], capture_output=True, check=False)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process, self.pid = None, 0
        super().stop()


class Nnfs(Target):
    """nnfs itself, mounted by its own command line."""

    name = "nnfs"

    def __init__(self, base: Path, options: str = "") -> None:
        super().__init__(base)
        self.store = self.base / "store"
        self.options = options

    def start(self) -> None:
        self.root.mkdir(parents=True)
        command([*NNFS, "mkfs", str(self.store)])
        self.mount()

    def mount(self) -> None:
        """Mount the store and learn the daemon's process id."""
        extra = ["-o", self.options] if self.options else []
        command([*NNFS, "mount", *extra, str(self.store), str(self.root)])
        self.pid = int(self.json("status")["pid"])

    def unmount(self) -> None:
        """Unmount and wait for the daemon's end."""
        command([*NNFS, "umount", str(self.root)])
        wait_for(lambda: not Path(f"/proc/{self.pid}").exists(), 30, "end of the daemon")
        self.pid = 0

    def stop(self) -> None:
        try:
            if os.path.ismount(self.root) or self.pid:
                self.unmount()
        except Failed as why:
            print(f"bench_fs: nnfs did not unmount: {why}", file=sys.stderr)
            subprocess.run(["umount", "-l", str(self.root)], capture_output=True, check=False)
            if self.pid and Path(f"/proc/{self.pid}").exists():
                self.abort()
            self.pid = 0
        super().stop()

    def cool(self) -> None:
        self.unmount()
        drop_caches()
        self.mount()

    def json(self, subcommand: str) -> dict[str, Any]:
        """Return the answer of `nnfs SUBCOMMAND MNT --json`."""
        said: dict[str, Any] = json.loads(command([*NNFS, subcommand, str(self.root), "--json"]))
        return said

    def physical(self) -> int:
        """Return the bytes that the store takes on the lower filesystem, without its reserve (as `nnfs df` does)."""
        from nnfs.constants import RESERVE_FILE  # here: other commits that are measured need not have it

        return sum(path.stat().st_blocks * 512 for path in self.store.iterdir() if path.name != RESERVE_FILE)

    def anonymous(self) -> int:
        """Return RssAnon of the daemon in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise Failed("no RssAnon in /proc")


class Compacting(Nnfs):
    """nnfs while one worker thread recompresses other files of the same mount."""

    name = "compacting"
    COLD = 24 << 20  # bytes that are cold: more than a row's time of work

    def __init__(self, base: Path) -> None:
        super().__init__(base, "policy=cold,write_age=0,read_age=0,compact_threads=1")

    def start(self) -> None:
        super().start()
        folder, left = self.root / ".cold", self.COLD
        folder.mkdir()
        for number, source in enumerate(sorted(Path(os.__file__).parent.rglob("*.py"))):
            if left <= 0:
                break
            text = source.read_bytes()
            (folder / f"{number}.py").write_bytes(text)
            left -= len(text)
        self.sync()
        self._wait_for_work()

    def cool(self) -> None:
        super().cool()
        self._wait_for_work()

    def _wait_for_work(self) -> None:
        def works() -> bool:
            workers = self.json("status")["workers"]
            return any(worker["name"] == "compact" and worker["outstanding"] for worker in workers)

        wait_for(works, 120, "work for the idle worker")
