"""The parts of a mount that read, joined as the daemon joins them."""

from __future__ import annotations

from nnfs.blockio.cache import BlockCache
from nnfs.blockio.cold import Cold
from nnfs.blockio.damagelist import DamageList
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.fetch import Fetcher
from nnfs.blockio.patience import Patience
from nnfs.blockio.readahead import ReadAhead
from nnfs.blockio.reader import Reader
from nnfs.blockio.thawcache import Thawed
from nnfs.fs.filesystem import Filesystem
from nnfs.store.env import Store
from tests.harness import WAIT_S


def make_reader(
    store: Store, fs: Filesystem, data: DirtyData, *, cache_bytes: int = 1 << 20, timeout: float = WAIT_S,
    ahead: int = 16, cold: Cold | None = None, thawed: Thawed | None = None,
) -> tuple[Fetcher, Reader]:  # fmt: skip
    fetcher = Fetcher(store, BlockCache(cache_bytes), DamageList(), Patience(timeout), cold, thawed)
    return fetcher, Reader(fs, data, fetcher, ReadAhead(store, fs, fetcher, ahead))
