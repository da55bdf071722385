"""The parts of a mount that background work uses, and no more of each than it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from nnfs.blockio.bases import Bases
from nnfs.blockio.cache import BlockCache
from nnfs.blockio.cold import Cold
from nnfs.blockio.damagelist import DamageList
from nnfs.blockio.thawcache import Thawed
from nnfs.errors import NnfsError
from nnfs.store.env import Store

T = TypeVar("T")


class Commits(Protocol):
    """The committer: changes of the store within the next commit."""

    @property
    def failure(self) -> NnfsError | None: ...
    @property
    def bases(self) -> Bases: ...
    async def sync(self) -> None: ...
    async def amend(self, change: Callable[[Any], T], size: int = 0, *, frees: int = 0) -> T: ...


class Reads(Protocol):
    """The reader: its copies of blocks, the list of damage, and how much it has to do."""

    @property
    def damaged(self) -> DamageList: ...
    @property
    def cache(self) -> BlockCache: ...
    @property
    def thawed(self) -> Thawed | None: ...
    @property
    def waiting(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """One mount's store, commits and reads. `cold` decodes cold blocks."""

    store: Store
    commits: Commits
    reads: Reads
    cold: Cold
    read_only: bool = False
