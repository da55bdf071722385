"""A filesystem with quotas beside a plain model of its tree: the sums are held against a walk of it."""

from __future__ import annotations

import contextlib
from typing import Any

import trio

from nnfs.errors import FsError, OutOfSpace
from nnfs.fs import quotareport
from nnfs.fs.fsck import check
from nnfs.mount.quotas import QuotaService
from nnfs.store import quotas, schema
from nnfs.store.quotas import Quota
from tests.fs.pastkit import FOLDERS, World


class Crashed(BaseException):
    """The world has ended without a commit while inodes were being counted."""


class QuotaWorld(World):
    """A world whose steps set and remove quotas, and count for them while other steps are done."""

    counting = False

    def step(self) -> None:
        if self.random.random() < 0.8:
            with contextlib.suppress(FsError):  # EXDEV, EDQUOT: the model has not changed either
                super().step()
        else:
            self.random.choice([self.set_quota, self.set_quota, self.remove_quota, self.count, self.count])()

    def service(self) -> QuotaService:
        return QuotaService(self.fs, Committer(self), _prove, read_only=False)  # type: ignore[arg-type]

    def set_quota(self, path: str | None = None, size: int | None = None, inodes: int | None = None) -> None:
        path = self.random.choice([*FOLDERS, ""]) if path is None else path
        found = self.at(path)
        if found is not None and found.names is not None:
            large = self.random.choice([1 << 60, 40 * schema.MIN_CHUNK_SIZE]) if size is None else size
            self.service().set_limits(self.inode(path), large, inodes)

    def remove_quota(self) -> None:
        known = self.fs.quotas.all()
        if known:
            root = self.random.choice(known).root
            with contextlib.suppress(FsError):  # removed already
                self.service().set_limits(self.fs.inode(root), 0, 0)

    def count(self) -> None:
        """Do one turn of counting, with other steps in between."""
        if self.counting:
            return
        self.counting = True
        with contextlib.suppress(Crashed):
            trio.run(self.service().turn)
        self.counting = False

    def between(self) -> None:
        """Something happens while inodes are being counted."""
        if self.random.random() < 0.3:
            fs = self.fs
            self.step()
            if self.fs is not fs:
                raise Crashed

    def settle(self) -> None:
        """Count everything that is to be counted, and nothing else."""
        service = self.service()

        async def turns() -> None:
            while await service.turn():
                pass

        self.random.random = lambda: 1.0  # type: ignore[method-assign]  # `between` does nothing
        trio.run(turns)
        del self.random.random

    def limit(self, path: str) -> Quota:
        found = self.fs.quotas.at(self.inode(path).ino)
        assert found is not None
        return found

    def check_quotas(self) -> quotareport.Found:
        """Compare the records of the last commit with its inodes, and the sums in memory with those that are live."""
        with self.store.read() as snapshot:
            known, lost = quotas.load(snapshot)
            assert not lost
            for number in known:
                assert len({copy.pack() if copy else None for copy in quotas.copies(snapshot, number)}) == 1
            found = quotareport.check(snapshot)
        assert not found.missing
        assert not found.unknown
        assert bool(self.store.superblock.ro_compat & quotas.RO_QUOTAS) == bool(known)
        sums = quotas.totals({quota.number: quota for quota in self.fs.quotas.all()})
        for number, (size, inodes) in sums.items():
            level = self.fs.quotas.chain(number)[0]
            assert (level.size, level.inodes) == (size, inodes)
        return found

    def assert_clean(self) -> None:
        report = check(self.store, data=False, repair=False, progress=lambda *_: None)
        assert not report.problems, [problem.message for problem in report.problems]


class Committer:
    """Commits of a world, as the service asks for them."""

    failure = None

    def __init__(self, world: QuotaWorld) -> None:
        self._world = world
        self.admission = self

    async def admit(self, _size: int) -> None:
        self._world.between()

    async def sync(self) -> None:
        with contextlib.suppress(OutOfSpace):
            self._world.commit()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def _prove(_ino: int) -> None:
    pass
