"""The daemon's part of `nnfs search` and `nnfs similar`: questions are answered in a thread, one after the other."""

from __future__ import annotations

import logging
import time
from typing import Any

import trio

from nnfs.background.indexing import Indexer
from nnfs.blockio.commit import Committer
from nnfs.errors import NnfsError
from nnfs.mount.control import Handler
from nnfs.store.env import Store

log = logging.getLogger(__name__)


class Searching:
    """Answers questions about one mount. `handlers` are commands of the control socket."""

    def __init__(self, store: Store, committer: Committer, indexer: Indexer) -> None:
        self._store, self._committer, self._indexer = store, committer, indexer
        self._limiter = trio.CapacityLimiter(1)  # the catalog is one
        self.handlers: dict[str, Handler] = {"search": self._search}

    async def _search(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a question as of now: what has been requested so far is committed first."""
        try:
            await self._committer.sync()
        except NnfsError as error:
            log.debug("answering from the last commit: %s", error)
        return await trio.to_thread.run_sync(self._answer, request, limiter=self._limiter)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        from nnfs.fs.search import asking  # late: numpy takes 17 MB of the daemon's memory

        began = time.perf_counter()
        answer = asking.answer(self._store, self._indexer.open_catalog(), request)
        log.debug("a search took %.3f s", time.perf_counter() - began)
        return answer
